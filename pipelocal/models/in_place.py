"""Handles modules that work in place on an input that must stay unchanged.

A stage's input occupies a receive buffer, its output is being sent while the head uses it, and recomputation
starts from the same input. So no unit and no head may change its input: ``inplace=True`` is turned off, and
a module that changes its input anyway gets a copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


def disable_inplace(module: nn.Module) -> None:
    """Turn ``inplace=True`` off: a stage's input and output are shared with transfers in progress."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]


def give_own_input(module: nn.Module) -> None:
    """Make a module work on a copy of its input; the names in its state dict stay the same."""
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
