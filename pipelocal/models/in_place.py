"""Handles modules that work in place on an input that must stay unchanged.

A stage's input occupies a receive buffer, its output is being sent while the head uses it, and recomputation
starts from the same input. So no unit and no head may change its input: ``inplace=True`` is turned off, and
a module that changes its input anyway gets a copy.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

PART = "part_of_input"
"""How the names of nodes begin in a GraphModule that take the tensors out of its input."""


def disable_inplace(module: nn.Module) -> None:
    """Turn ``inplace=True`` off: a stage's input and output are shared with transfers in progress."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]


def give_own_input(module: nn.Module, places: Collection[int] = (0,)) -> None:
    """Make a module work on a copy of its input; the names in its state dict stay the same.

    Args:
        module: takes a tensor, or a tuple of tensors.
        places: places in the tuple of the tensors that it needs a copy of. What it hands on as it came
            stays as it is, where that can be seen.
    """
    if not isinstance(module, fx.GraphModule):
        module.register_forward_pre_hook(partial(_copied, places))
        return
    # Copies of a GraphModule lose their hooks, but not their graph.
    graph = module.graph
    x = next(node for node in graph.nodes if node.op == "placeholder")
    parts = {node: node.args[1] for node in x.users if node.name.startswith(PART)}
    inputs = parts or {x: 0}
    for node, place in inputs.items():
        if place in places:
            with graph.inserting_after(node):
                own = graph.call_method("clone", (node,))
            node.replace_all_uses_with(
                own, delete_user_cb=lambda user, own=own: user is not own and user.op != "output"
            )
    module.recompile()


def _copied(places: Collection[int], _module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    x = inputs[0]
    if isinstance(x, tuple):
        return (tuple(t.clone() if at in places else t for at, t in enumerate(x)), *inputs[1:])
    return tuple(one.clone() if isinstance(one, Tensor) else one for one in inputs)
