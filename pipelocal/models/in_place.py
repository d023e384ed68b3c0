"""Modules that work on their input in place, where the input must stay as it is.

A stage's input lies where the next batch will be received, its output is on its way while the head works
on it, and what is computed again begins from the same input. So no unit and no head may change what it is
given: ``inplace=True`` is turned off, and what changes its input all the same is given a copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


def disable_inplace(module: nn.Module) -> None:
    """Turn ``inplace=True`` off: a stage's input and output are shared with transfers under way."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]


def give_own_input(module: nn.Module) -> None:
    """Have a module work on a copy of its input; the names of what it holds stay."""
    if not isinstance(module, fx.GraphModule):
        module.register_forward_pre_hook(_copied)
        return
    # Copies of a GraphModule lose their hooks, but not their graph.
    graph = module.graph
    x = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(x):
        own = graph.call_method("clone", (x,))
    x.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    module.recompile()


def _copied(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
