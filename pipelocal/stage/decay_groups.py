"""Parameter groups with and without weight decay, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, *, skip: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return two parameter groups: biases, norms and the named parameters are not decayed.

    Parameters with at most one dimension, or called ``bias``, are not decayed, as is customary (timm's
    ``param_groups_weight_decay``).

    Args:
        named: pairs of name and parameter, as an ``optimizer`` of a Pipeline is called with.
        weight_decay: weight decay of the other parameters.
        skip: further names, or patterns such as ``*pos_embedding``, that are not decayed.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        skipped = any(fnmatch(name, pattern) for pattern in skip)
        is_plain = parameter.dim() <= 1 or name.rpartition(".")[2] == "bias" or skipped
        (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
