"""Counts the multiply-adds of units, to compare units and heads before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipelocal.models.payload import each, pack
from pipelocal.models.trial import sample_value
from pipelocal.seeding import seeded
from pipelocal.system.tensor_kind import TensorKind

META, CPU = torch.device("meta"), torch.device("cpu")
ROWS = 2
"""Rows that are tried: BatchNorm wants more than one."""

Part = tuple[Callable[[], nn.Module], Sequence[TensorKind]]
"""Builds a module, for this alone; and the kinds of what it takes, main first."""


def multiply_adds(parts: Iterable[Part]) -> tuple[int, ...]:
    """Count the multiply-adds of the forward pass of each of some modules, for one sample.

    Those of matrix products, convolutions and attention count. The count is by shapes, so every rank finds
    the same: on the meta device where a module runs there, else with values on the CPU. Modules that print
    alike are counted once, which saves seconds with recurrent layers.

    Returns:
        The numbers; 0 for what cannot be counted.
    """
    seen: dict[object, int] = {}
    return tuple(_counted(build, tuple(given), seen) for build, given in parts)


def _counted(
    build: Callable[[], nn.Module], given: tuple[TensorKind, ...], seen: dict[object, int]
) -> int:
    for device in (META, CPU):
        with suppress(Exception), seeded(0, "trial"):
            with torch.device(device):
                module = build().to(device)
            key = (repr(module), tuple((kind.shape, kind.dtype) for kind in given))
            if key not in seen:
                seen[key] = _run(module, given, device)
            return seen[key]
    return 0


def _run(module: nn.Module, given: tuple[TensorKind, ...], device: torch.device) -> int:
    main, *beside = (
        torch.empty((ROWS, *kind.shape), dtype=kind.dtype, device=META) for kind in given
    )
    x = pack(main, tuple(beside))
    if device != META:
        x = each(lambda one: sample_value(one, device), x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops()) // (2 * ROWS)
