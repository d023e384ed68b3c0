"""``--cuda-graphs``: a module's passes in training as CUDA graphs, each of which the host launches as one.

A pass of a small network is hundreds of short kernels, and the host takes longer to launch them than the
device to run them. A graph launches them together, on the same memory each time::

    first batch     as it stands
    second batch    tried  >  forward pass captured  >  backward pass captured  >  as all that follow:
    every batch     x > copied in > [forward graph] > copied out > out
                    gradient at x < copied out < [backward graph] < copied in < gradient at out

Copies at both ends let the output travel on, and the next input arrive, while the graph's own memory is
written again. Parameters and buffers are read and written where they lie. Random numbers are those of the
eager pass, since a graph reads seed and offset of the device's generator anew.

What cannot be a graph runs as it stands: fewer rows than the longest batch had (the last one of the data), a
second pass on the same batch, evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipelocal.errors import StageError, UserError
from pipelocal.seeding import states_of_draws
from pipelocal.stage.replay import call_with

Run = Callable[..., Any]
Signature = tuple[Any, ...]

TRIALS = 3
"""Passes before a capture, in which libraries choose algorithms and allocate what they work in."""


def check_cuda_graphs(
    device: torch.device, objective: object, *, stage: int, several: bool
) -> None:
    """Refuse graphs where there are none, or where passes are not what is captured.

    Args:
        device: where the stage computes.
        objective: of the stage, which may look into its passes.
        stage: its number.
        several: whether it gets or passes on several tensors.

    Raises:
        UserError: says which.
    """
    if device.type != "cuda":
        raise UserError(
            f"--cuda-graphs is for CUDA devices, and this stage computes on {device.type}: leave it out"
        )
    if hasattr(objective, "run_body") or getattr(objective, "watches", None):
        raise UserError(
            f"--cuda-graphs runs a body as one, and {type(objective).__name__} looks into it: leave it out"
        )
    if several:
        raise UserError(
            f"--cuda-graphs captures one tensor to one, and stage {stage} gets or passes on several: leave "
            f"it out, or cut where one tensor crosses"
        )


class GraphedPasses:
    """Runs a module's passes in training by CUDA graphs where it can, and as they stand otherwise.

    Args:
        module: whose parameters and buffers the passes use.
        what: names the module in errors, such as ``the body``.
        stage: the stage's number.
    """

    def __init__(self, module: nn.Module, *, what: str, stage: int) -> None:
        self._module = module
        self._what = what
        self._stage = stage
        self._places = _Places(module)
        self._shapes: Signature | None = None
        """Of the inputs that are captured: of the first batch, or of a longer one that came later."""
        self._rows = 0
        self._captured: dict[Signature, _Captured] = {}
        """By which inputs want a gradient."""
        self._batches = 0
        self._busy = False

    def __call__(self, run: Run, *inputs: Any) -> Any:
        """Return ``run(*inputs)``, the output of the module on a batch.

        Args:
            run: runs the module.
            inputs: ``[B, ...]`` each, on a CUDA device.

        Raises:
            StageError: the pass cannot be captured; says why.
        """
        # The first batch runs as it stands: its memory is what is reported.
        if self._busy or self._batches == 0 or not torch.is_grad_enabled():
            return run(*inputs)
        if not all(isinstance(x, Tensor) for x in inputs):
            raise self._refused("it gets several tensors")
        shapes = tuple((x.shape, x.dtype, x.stride()) for x in inputs)
        if shapes != self._shapes:
            if len(inputs[0]) <= self._rows:
                return run(*inputs)
            self.forget()
            self._shapes, self._rows = shapes, len(inputs[0])
        wanted = tuple(x.requires_grad for x in inputs)
        captured = self._captured.get(wanted)
        if captured is not None and captured.places != self._places.now():
            captured = None
            self.forget()
        if captured is None:
            captured = self._captured[wanted] = self._capture(run, inputs)
        if not captured.trains:
            return run(*inputs)
        self._busy = True
        return _Replayed.apply(captured, *inputs, *captured.parameters)  # type: ignore[no-untyped-call]

    def end_batch(self) -> None:
        """Let the next batch use the graphs, whose memory this one no longer needs."""
        self._busy = False
        self._batches += 1

    def forget(self) -> None:
        """Let go of the graphs, and of the memory that they hold."""
        self._captured.clear()

    def _capture(self, run: Run, inputs: Sequence[Tensor]) -> _Captured:
        device = inputs[0].device
        generator = generator_of(device)
        drawn = generator.get_state()
        try:
            with torch.cuda.device(device):
                return _Captured(self._module, self._places, run, inputs)
        except _NoGraphError as error:
            raise self._refused(str(error)) from error
        finally:
            generator.set_state(drawn)

    def _refused(self, why: str) -> StageError:
        return StageError(
            f"--cuda-graphs: {self._what} cannot be captured ({why}): leave the option out",
            stage=self._stage,
        )


class _NoGraphError(Exception):
    """A graph would not do what the module does."""


class _Captured:
    """The forward and the backward pass of a module, for inputs of one shape."""

    def __init__(
        self, module: nn.Module, places: _Places, run: Run, inputs: Sequence[Tensor]
    ) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parameters = list(trained.values())
        self.places = places.now()
        self.trains = bool(trained) or any(x.requires_grad for x in inputs)
        """Whether there is a backward pass; without one, nothing is captured."""
        if not self.trains:
            return
        self._inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        # Leaves in the parameters' memory: what averages over replicas ties the parameters themselves to
        # another stream, which must not wait for one that is captured.
        leaves = {f"module.{name}": p.detach().requires_grad_() for name, p in trained.items()}
        running = partial(call_with, leaves, _Running(module, run))
        tensors = [*self._inputs, *leaves.values()]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        before = [(tensor, tensor.detach().clone()) for tensor in _state(module)]
        try:
            self._try(running, wanted)
            if self.places != places.now():
                raise _NoGraphError("it puts new tensors in place of its buffers or parameters")
            pairs = zip(leaves.values(), self.parameters, strict=True)
            if any(leaf.data_ptr() != parameter.data_ptr() for leaf, parameter in pairs):
                raise _NoGraphError("it moves its parameters, as nn.LSTM and nn.GRU do")
            self._record(running, tensors, wanted)
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)
        self._read = _state(module)
        """Held, since the graphs read their memory, though the module may put others in their place."""

    def _try(self, running: Run, wanted: Sequence[Tensor]) -> None:
        """Run both passes before they are captured, beside the stream of the training.

        Raises:
            _NoGraphError: a graph would not repeat what they do.
        """
        drawn = states_of_draws()
        ours = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(ours)
        with torch.cuda.stream(aside):
            for _ in range(TRIALS):
                out = running(*self._inputs)
                if not isinstance(out, Tensor):
                    raise _NoGraphError("it passes on several tensors")
                if not out.requires_grad:
                    raise _NoGraphError("its output has no gradient")
                found = _gradients(out, [*wanted, *self.parameters], torch.ones_like(out))
        ours.wait_stream(aside)
        if states_of_draws() != drawn:
            raise _NoGraphError("it draws random numbers on the host, which a graph would repeat")
        if any(gradient is not None for gradient in found[len(wanted) :]):
            raise _NoGraphError("it holds its parameters in another place too")

    def _record(self, running: Run, tensors: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        # Gradients leave the memory of the graphs, which the next forward pass uses for something else.
        at = {id(tensor): torch.empty_like(tensor) for tensor in wanted}
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _capturing(self._forward):
            out = running(*self._inputs)
        self._out: Tensor = out.detach()
        self._given = torch.empty_like(self._out)
        with _capturing(self._backward, pool=self._forward.pool()):
            for tensor, gradient in zip(wanted, _gradients(out, wanted, self._given), strict=True):
                if gradient is None:
                    del at[id(tensor)]
                else:
                    at[id(tensor)].copy_(gradient)
        self._at = [at.get(id(tensor)) for tensor in tensors]
        """The gradients at inputs and parameters; None where there is none."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the output ``[B, ...]``."""
        for own, x in zip(self._inputs, inputs, strict=True):
            own.copy_(x)
        self._forward.replay()
        return self._out.clone()

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients at inputs and parameters, from that at the output."""
        count = len(self._inputs)
        for parameter, own in zip(self.parameters, self._at[count:], strict=True):
            kept = parameter.grad
            if kept is not None and own is not None and kept.data_ptr() == own.data_ptr():
                parameter.grad = kept.clone()  # of the batch before, in an update of several
        self._given.copy_(gradient)
        self._backward.replay()
        at_inputs = [None if own is None else own.clone() for own in self._at[:count]]
        # Autograd takes a detached tensor as a parameter's gradient without copying it.
        return (*at_inputs, *(None if own is None else own.detach() for own in self._at[count:]))


class _Running(nn.Module):
    """Runs a module, with what :func:`call_with` puts in place of its parameters."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        super().__init__()
        self.module = module
        self._run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(*inputs)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, **pool: Any) -> Iterator[None]:
    """Capture what a block launches.

    Raises:
        _NoGraphError: it cannot be captured; says why.
    """
    try:
        # A capture that breaks does not go back to the stream of before by itself. Other threads go on with
        # their transfers meanwhile, which by default would break it.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local", **pool),
        ):
            yield
    except RuntimeError as error:
        # The generator stays in the capture that failed, so that nothing could be drawn any more.
        generator = generator_of(torch.device("cuda", torch.cuda.current_device()))
        generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        first: BaseException = error
        while isinstance(first.__context__, RuntimeError):
            first = first.__context__  # the end of a broken capture says only that it is broken
        raise _NoGraphError(str(first).strip().splitlines()[0]) from error


def generator_of(device: torch.device) -> torch.Generator:
    """Return the default generator of a CUDA device."""
    return torch.cuda.default_generators[device.index]


def _gradients(out: Tensor, wanted: Sequence[Tensor], given: Tensor) -> Sequence[Tensor | None]:
    return torch.autograd.grad(out, list(wanted), given, allow_unused=True)


class _Replayed(torch.autograd.Function):
    """Runs captured passes."""

    @staticmethod
    def forward(ctx: Any, captured: _Captured, *tensors: Tensor) -> Tensor:
        ctx.captured = captured
        return captured.forward(tensors[: len(tensors) - len(captured.parameters)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        captured, ctx.captured = ctx.captured, None
        if captured is None:
            raise RuntimeError(
                "--cuda-graphs: a second backward pass through the same forward pass finds its memory used "
                "for something else: leave the option out"
            )
        return (None, *captured.backward(gradient))


def _state(module: nn.Module) -> list[Tensor]:
    """Return the buffers, and the tensors that modules keep as plain attributes."""
    plain = (value for part in module.modules() for value in vars(part).values())
    return [*module.buffers(), *(value for value in plain if isinstance(value, Tensor))]


class _Places:
    """Tells where the parameters and buffers of a module lie, and which are trained.

    It keeps the modules' own tables, since walking through a large module takes longer than a launch.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = [
            table for part in module.modules() for table in (part._parameters, part._buffers)
        ]

    def now(self) -> Signature:
        held = (tensor for table in self._tables for tensor in table.values())
        return tuple((t.data_ptr(), t.requires_grad) for t in held if t is not None)
