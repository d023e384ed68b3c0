"""``--step-early``: updates parameters as soon as their gradients are ready, then frees the gradients.

So a stage's gradients need not all exist at once. There is still one optimizer with one state dict: for the
moment of a step its groups hold the parameters that are ready, so that it does not walk over all the others.
Small gradients wait for each other, since a call costs more than they do; those that wait at the end of the
batch are left to its ordinary step, which skips parameters without a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError

READY_BYTES = 256 * 1024
"""Bytes of gradients that make a step of their own."""


class EarlyStep:
    """Steps an optimizer during backward passes.

    Args:
        optimizer: over the parameters; elementwise, so that updating them in any order changes nothing.
        parameters: the trained parameters.

    Raises:
        UserError: something is to be done before or after a step of all parameters; and in training: the
            optimizer counts its steps in its groups, or a gradient comes in parts.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
    ) -> None:
        hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
        if any(getattr(optimizer, name, None) for name in hooks):
            raise UserError(
                "--step-early: the optimizer has a step hook, which would see some parameters at a time: "
                "leave one of the two out"
            )
        self._optimizer = optimizer
        self._on = self._tried = False
        self._stepped: set[int] = set()
        """The parameters of this batch whose gradient was ready."""
        self._ready: list[Tensor] = []
        self._bytes = 0
        self._seen: list[dict[str, Any]] = []
        self._group_of: dict[Tensor, dict[str, Any]] = {}
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._made)  # type: ignore[no-untyped-call]

    def begin(self, *, on: bool) -> None:
        """Begin a batch.

        Args:
            on: whether the next backward pass that reaches a parameter is its only one of the batch.
        """
        self._on = on
        self._ready.clear()
        self._stepped.clear()
        self._bytes = 0

    def _made(self, parameter: Tensor) -> None:
        if not self._on:
            return
        assert parameter.grad is not None
        if id(parameter) in self._stepped:
            raise UserError(
                "--step-early: the gradient of a weight comes in parts, as with reentrant checkpoints "
                "(use_reentrant=True) that share it: use the other kind, or leave the option out"
            )
        self._stepped.add(id(parameter))
        self._ready.append(parameter)
        self._bytes += parameter.grad.nbytes
        if self._bytes >= READY_BYTES:
            self._step()

    def _step(self) -> None:
        """Step the groups that hold a parameter which is ready, with these alone."""
        optimizer = self._optimizer
        if self._seen is not optimizer.param_groups:  # loading a state makes them anew
            self._seen = optimizer.param_groups
            self._group_of = {each: group for group in self._seen for each in group["params"]}
        ready: dict[int, list[Tensor]] = {}
        groups: dict[int, dict[str, Any]] = {}
        for parameter in self._ready:
            if (group := self._group_of.get(parameter)) is not None:
                groups[id(group)] = group
                ready.setdefault(id(group), []).append(parameter)
        members = {key: group["params"] for key, group in groups.items()}
        # The groups themselves and no copies, since an optimizer may keep more in them than its options.
        optimizer.param_groups = [*groups.values()]
        try:
            for key, group in groups.items():
                group["params"] = ready[key]
            if not self._tried:
                before = [_others(group) for group in groups.values()]
            optimizer.step()
            if not self._tried and before != [_others(group) for group in groups.values()]:
                raise UserError(
                    f"--step-early: {type(optimizer).__name__} counts its steps in its groups, and would "
                    f"count several for every batch: leave the option out"
                )
            self._tried = True
        finally:
            optimizer.param_groups = self._seen
            for key, group in groups.items():
                group["params"] = members[key]
        for parameter in self._ready:
            parameter.grad = None
        self._ready.clear()
        self._bytes = 0


def _others(group: dict[str, Any]) -> dict[str, str]:
    """Return what a group holds beside its parameters, as text, since tensors have no one truth."""
    return {name: repr(value) for name, value in group.items() if name != "params"}
