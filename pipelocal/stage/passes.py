"""Runs the body and the head of a stage: for the first time on a batch, and again on the same batch.

All runs on a batch draw the same random numbers, which depend on the stage and the step alone. A run after
the first starts from the buffers of the first, and updates none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.heads import takes_beside, takes_input
from pipelocal.models.payload import Payload, each, pack, unpack
from pipelocal.seeding import derive_seed, reseed
from pipelocal.stage.displacement import Displacement, WithPenalty
from pipelocal.stage.graphs import GraphedPasses
from pipelocal.stage.layout import laid_out, own_memory
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.recompute import RecomputedBody
from pipelocal.stage.replay import Buffers, copies_of_buffers, leaving_input, replay

HALF = (torch.float16, torch.bfloat16)
"""Dtypes of models in half precision; their auxiliary heads, and all losses, are in float32."""


class Passes:
    """The passes of one stage.

    Args:
        number: the stage's number, from 1.
        body: the units, in order.
        head: maps the body's output to the task's output.
        seed: the run's seed.
        compute: how to compute; see :class:`~pipelocal.stage.stage.Stage`.
        displacement: the transport penalty on the body; None for none.
    """

    def __init__(
        self,
        *,
        number: int,
        body: nn.Sequential,
        head: nn.Module,
        seed: int,
        compute: ComputeOptions,
        displacement: Displacement | None = None,
    ) -> None:
        self.beside: tuple[Tensor, ...] = ()
        """What the last output has beside its main tensor, detached, to be sent along."""
        self.beside_input: tuple[Tensor, ...] = ()
        """What the batch's input has beside its main tensor."""
        self.step = 0
        """Batches of the run before this one."""
        self.kept_bytes = 0
        """Bytes kept for the last batch's backward pass outside autograd, which are counted elsewhere."""
        self.run_body: Callable[[nn.Module, Payload], Payload] = leaving_input
        """Runs the units on a new batch of training."""
        self._number = number
        self._body = body
        self._head = head
        self._head_takes_input = takes_input(head)
        self._head_takes_beside = takes_beside(head)
        self._seed = seed
        self._autocast = compute.autocast_dtype
        self._channels_last = compute.channels_last
        self._displacement = displacement
        self.displaced: Tensor | None = None
        """The sum of the transport penalty in the first pass on this batch, detached."""
        self._graphs: tuple[GraphedPasses, GraphedPasses] | None = None
        """Of body and head."""
        if compute.cuda_graphs:
            self._graphs = (
                GraphedPasses(body, what="the body", stage=number),
                GraphedPasses(head, what="the head", stage=number),
            )
        units = compute.checkpoint_activations
        self._recomputed = RecomputedBody(body, units) if units else None
        self._out: Tensor | None = None
        self._beside: tuple[Tensor, ...] = ()
        """What the output has beside its main tensor, with its graph."""
        self._leaves: tuple[Tensor, ...] = ()
        """The same without a graph, for a head whose backward pass ends at the output."""
        self._before: dict[nn.Module, Buffers] = {}
        """Buffers of body and head at the start of this batch, if they may be run again on it."""

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the stage's memory layout."""
        return laid_out(tensor, channels_last=self._channels_last)

    def seed_for(self, what: str) -> None:
        """Seed all generators for a part of this step."""
        reseed(derive_seed(self._seed, what, self._number, self.step))

    def body(
        self, x: Tensor, beside: Sequence[Tensor], *, again: bool, input_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the body on a new batch.

        Args:
            x: main input ``[B, ...]``.
            beside: further inputs, which get no gradient.
            again: whether body and head may run again on this batch.
            input_gradient: whether x gets a gradient.

        Returns:
            x as a leaf; the main output with its graph; and the same detached, in memory of its own.
        """
        self.seed_for("step")
        x = self.laid_out(x)
        leaf = x.detach().requires_grad_(input_gradient)
        self.beside_input = tuple(tensor.detach() for tensor in beside)
        if again:
            self._before[self._body] = copies_of_buffers(self._body)
        run = partial(self._run, self._recomputed or partial(self.run_body, self._body))
        if self._graphs is not None:
            run = partial(self._graphs[0], run)
        with self._noting():
            out, self._beside = unpack(run(pack(leaf, self.beside_input)))
        if (penalty := self.penalty()) is not None:
            assert self._displacement is not None
            self.displaced = penalty.detach() / self._displacement.weight
            if out.requires_grad:
                out = WithPenalty.apply(out, penalty)  # type: ignore[no-untyped-call]
        if self._recomputed is not None:
            self.kept_bytes = self._recomputed.kept_bytes
        if self._head_takes_beside and out.requires_grad:
            self._leaves = tuple(
                t.detach().requires_grad_(t.is_floating_point()) for t in self._beside
            )
            out = _Join.apply(self._leaves, out, *self._beside)  # type: ignore[no-untyped-call]
        self._out = out
        return leaf, out, self._sent(out, x)

    def head(self, out: Tensor, x: Tensor) -> Tensor:
        """Run the head on this batch's output, or on a leaf of the same values.

        Args:
            out: main output of the body ``[B, ...]``.
            x: main input of the stage, which some heads take.
        """
        # Without this, the backward pass from a leaf would go on into the body.
        beside = self._beside if out is self._out or not self._leaves else self._leaves
        if not out.requires_grad:  # what an objective keeps from the body, it keeps from all of it
            beside = tuple(tensor.detach() for tensor in beside)

        def run(out: Tensor, x: Tensor | None = None) -> Tensor:
            return self._run_head(self._head, out, beside, x)

        inputs = (out, x) if self._head_takes_input else (out,)
        if self._graphs is None or beside:  # which a graph would read where it was
            return run(*inputs)
        made: Tensor = self._graphs[1](run, *inputs)
        return made

    def before_head(self, *, again: bool) -> None:
        """Prepare for the head's first run on this batch; ``again`` says whether it may run again."""
        if again:
            self._before[self._head] = copies_of_buffers(self._head)
        # Draws by others while the output is sent must not change the head's dropout.
        self.seed_for("head")

    def evaluate(self, x: Tensor, beside: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the main output, and the head's; without a graph.

        Whatever draws in evaluation too draws the same on every batch, for any number of ranks.
        """
        reseed(derive_seed(self._seed, "evaluation", self._number))
        x = self.laid_out(x)
        self.beside_input = tuple(beside)
        out, self._beside = unpack(self._run(self._body, pack(x, self.beside_input)))
        return self._sent(out, x), self._run_head(self._head, out, self._beside, x)

    def _noting(self) -> AbstractContextManager[None]:
        return nullcontext() if self._displacement is None else self._displacement.noting()

    def penalty(self) -> Tensor | None:
        """Return the transport penalty of the last pass with its graph, once; None if there is none."""
        if self._displacement is None or (moved := self._displacement.taken()) is None:
            return None
        return self._displacement.weight * moved

    def replay_body(self, x: Payload, *, full: bool = False) -> Payload:
        """Run the body again, with a graph.

        Args:
            x: inputs ``[B, ...]``.
            full: whether to run without autocast.
        """
        self.seed_for("step")
        before = self._begun(self._body)
        run: Callable[[Payload], Payload] = partial(replay, self._body, before=before)
        if self._recomputed is not None:
            run = partial(self._recomputed.replay, before=before)
        with self._noting():
            return run(x) if full else self._run(run, x)

    def replay_head(self, out: Payload, x: Tensor | None, *, full: bool = False) -> Tensor:
        """Run the head again on outputs of the body ``[B, ...]``, with a graph; see :meth:`replay_body`."""
        self.seed_for("head")
        main, beside = unpack(out)
        again = partial(replay, self._head, before=self._begun(self._head))
        return self._run_head(again, main, beside, x, full=full)

    def end_batch(self) -> None:
        """Let go of the batch."""
        self.beside_input = self.beside = self._beside = self._leaves = ()
        self.penalty()  # which a run on other inputs may have left
        self.displaced = None
        self._out = None
        self._before.clear()
        for graphs in self._graphs or ():
            graphs.end_batch()

    def forget_graphs(self) -> None:
        """See :meth:`~pipelocal.stage.stage.Stage.forget_graphs`."""
        for graphs in self._graphs or ():
            graphs.forget()

    def _begun(self, module: nn.Module) -> Buffers:
        return self._before.get(module) or copies_of_buffers(module)

    def _sent(self, out: Tensor, x: Tensor) -> Tensor:
        inputs = (x, *self.beside_input) if self.beside_input else (x,)
        self.beside = ()
        if self._beside:
            self.beside = tuple(own_memory(tensor.detach(), *inputs) for tensor in self._beside)
        return own_memory(out.detach(), *inputs, channels_last=self._channels_last)

    def _run(self, module: Callable[[Payload], Payload], x: Payload) -> Payload:
        """Run under autocast if requested; floating-point outputs are then float32."""
        if self._autocast is None:
            return module(x)
        with torch.autocast(unpack(x)[0].device.type, self._autocast):
            return each(lambda t: t.float() if t.is_floating_point() else t, module(x))

    def _run_head(
        self,
        head: Callable[..., Any],
        out: Tensor,
        beside: tuple[Tensor, ...],
        x: Tensor | None,
        *,
        full: bool = False,
    ) -> Tensor:
        if out.dtype in (*HALF, torch.float64):
            out = out.to(next((p.dtype for p in self._head.parameters()), out.dtype))
        features = pack(out, beside) if self._head_takes_beside else out
        second = (x,) if self._head_takes_input and x is not None else ()
        if full or self._autocast is None:
            made: Tensor = head(features, *second)
            return made.float() if made.dtype in HALF else made
        with torch.autocast(out.device.type, self._autocast):
            made = head(features, *second)
            return made.float()


class _Join(torch.autograd.Function):
    """Hands the main output on; in the backward pass, adds the gradients that a head left at the leaves.

    So objectives deal with one output and one delta, and a body is still trained by all that its head reads.
    """

    @staticmethod
    def forward(ctx: Any, leaves: tuple[Tensor, ...], out: Tensor, *beside: Tensor) -> Tensor:
        del beside
        ctx.leaves = leaves
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        found = [leaf.grad for leaf in ctx.leaves]
        for leaf in ctx.leaves:
            leaf.grad = None
        return (None, gradient, *found)
