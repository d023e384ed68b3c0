"""Profiles each unit of a chain, and the head that would follow it, for time and memory.

Units are built, measured and dropped one at a time, so that never more than one is in memory. A meter
finds the costs, by measuring on a device (:mod:`pipelocal.partition.measured`) or by analysis on the meta
device (:mod:`pipelocal.partition.analysed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, autograd, nn

from pipelocal.errors import NotTwiceDifferentiable, UserError
from pipelocal.models.chain import Chain
from pipelocal.models.in_place import disable_inplace
from pipelocal.models.payload import tensors_of
from pipelocal.models.unit import Shape, build_unit
from pipelocal.system.tensor_kind import TensorKind
from pipelocal.telemetry.memory import SavedBytes, tensor_bytes

LossOf = Callable[[Tensor], Tensor]
"""Called with a head's output; returns the scalar loss."""

HeadBuilder = Callable[[int], nn.Module]
"""Called with a unit's index; builds the auxiliary head of a stage that ends before that unit."""

OptimizerOf = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Called with ``(name, parameter)`` pairs; makes their optimizer."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a unit or a head for one training batch; times are medians in seconds."""

    forward_s: float
    backward_s: float
    """Time of the local loss's backward pass, including the gradient at the input."""
    input_gradient_s: float
    """Part of :attr:`backward_s` for the gradient at the input, which the first unit of a stage does
    not need unless the stage reconciles."""
    reconcile_s: float
    """Time that exact reconciliation adds; 0 if not requested."""
    update_s: float
    """Time of the optimizer's step."""
    saved_bytes: int
    """Bytes that autograd keeps for the local loss's backward pass, without parameters and input."""
    reconcile_bytes: int
    """Further bytes that autograd keeps for reconciliation."""
    parameters: int
    """Number of them."""
    parameter_bytes: int
    buffer_bytes: int
    optimizer_bytes: int
    output_bytes: int
    """Bytes of the output for the whole batch, which an edge would carry as x."""

    @property
    def train_s(self) -> float:
        """Time of forward, backward and update, without reconciliation."""
        return self.forward_s + self.backward_s + self.update_s

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both, with the output of this one."""
        names = [field.name for field in fields(self) if field.name != "output_bytes"]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def held_bytes(self) -> int:
        """Bytes of parameters, their equally large gradients, buffers, optimizer state and activations."""
        state = 2 * self.parameter_bytes + self.buffer_bytes + self.optimizer_bytes
        return state + self.saved_bytes


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Costs of a chain, for one batch size on one device."""

    batch_size: int
    device: str
    units: list[Cost]
    heads: list[Cost]
    """Cost of the head that would follow each unit; after the last unit, of the classifier."""
    fuller_heads: list[Cost] | None = None
    """The same with what the objective trains beside a head; None if it trains nothing there."""
    input_bytes: int
    """Bytes of a batch of samples."""


Seen = dict[object, Cost]
"""Costs by what was measured, so that profiles of the same kind measure it once."""


class Meter(Protocol):
    """Measures how long things take on a device."""

    @property
    def device(self) -> torch.device:
        """Device of modules and inputs."""
        ...

    def seconds_of_pass(
        self, module: nn.Module, x: Tensor, loss: LossOf | None, *, reconcile: bool
    ) -> tuple[float, float]:
        """Return the seconds of the forward and of the backward pass.

        Args:
            module: in training mode, on :attr:`device`.
            x: its input, ``[B, ...]``; whether it requires a gradient matters.
            loss: loss of its output, if the module is a head, which is then trained by it.
            reconcile: whether to run the backward pass of exact reconciliation.
        """
        ...

    def seconds_of_step(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the seconds of an optimizer step, which also creates the optimizer's state."""
        ...


def profile_chain(
    chain: Chain,
    head: HeadBuilder,
    meter: Meter,
    *,
    batch_size: int,
    classes: int,
    target: TensorKind,
    loss: Callable[[Tensor, Tensor], Tensor],
    exact: bool,
    optimizer: OptimizerOf,
    seed: int = 0,
    seen: Seen | None = None,
    beside: Callable[[int], nn.Module | None] | None = None,
) -> Profile:
    """Profile a chain.

    Args:
        chain: the model; a chain returned by :meth:`Chain.tried`.
        head: builds the auxiliary heads.
        meter: measures durations.
        batch_size: number of rows in a batch.
        classes: width of the model's output.
        target: what a target is.
        loss: scalar loss of outputs and targets.
        exact: whether to also measure exact reconciliation (double backward).
        optimizer: makes the optimizer of some parameters.
        seed: seed of the random parameters and inputs, whose values do not matter.
        seen: what earlier profiles measured with the same meter and options, which is added to.
        beside: builds what is trained on a stage's output beside the head of such an index; None for none.

    Raises:
        NotTwiceDifferentiable: a unit or a head cannot be differentiated twice for exact
            reconciliation.
        UserError: a unit or a head needs values, on the meta device.
    """
    units: list[Cost] = []
    heads: list[Cost] = []
    fuller: list[Cost] = []
    seen = {} if seen is None else seen
    on_meta = meter.device.type == "meta"

    def random(shape: Shape, dtype: torch.dtype) -> Tensor:
        whole = (batch_size, *shape)
        if on_meta:
            return torch.empty(whole, dtype=dtype, device="meta")
        generator = torch.Generator().manual_seed(seed)
        if dtype.is_floating_point:
            return torch.randn(whole, generator=generator).to(meter.device)
        return torch.randint(classes, whole, generator=generator).to(meter.device, dtype)

    def cost(
        name: str,
        build: Callable[[], nn.Module],
        given: tuple[Tensor, ...],
        loss: LossOf | None,
        reconcile: bool,
    ) -> Cost:
        try:
            with torch.device("meta") if on_meta else nullcontext():
                module = build().to(meter.device).train()
            disable_inplace(module)  # as a stage does
            if loss is not None and not getattr(module, "takes_beside", False):
                given = given[:1]
            # Most networks are repetitive: equally built modules with equal inputs cost the same.
            kinds = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in given)
            key = (_make(module), kinds, loss is None, reconcile)
            if key not in seen:
                x, *beside = given
                seen[key] = _cost(meter, optimizer, _OfMain(module, beside), x, loss, reconcile)
            return seen[key]
        except RuntimeError as error:
            if on_meta and "meta" in str(error):
                raise UserError(
                    f"{name} looks at values, of which --device meta has none ({error}): plan with "
                    f"--device cpu"
                ) from error
            if not reconcile or "derivative" not in str(error):
                raise
            raise NotTwiceDifferentiable(
                f"{name} cannot be differentiated twice, as exact reconciliation wants it "
                f"({error}): choose --reconcile first-order"
            ) from error

    def payload(kinds: Sequence[TensorKind]) -> tuple[Tensor, ...]:
        main, *beside = kinds
        # Masks, and numbers in tables of any size.
        ones = (torch.ones_like(random(kind.shape, kind.dtype)) for kind in beside)
        return (random(main.shape, main.dtype), *ones)

    before = chain.inputs
    targets = random(target.shape, target.dtype)

    def loss_of(output: Tensor) -> Tensor:
        return loss(output, targets)

    for index, unit in enumerate(chain.units):
        # The first stage never reconciles: no stage precedes it.
        x, with_delta = payload(before), exact and index > 0
        unit_of = partial(build_unit, unit, seed)
        units.append(cost(f"unit '{unit.name}'", unit_of, x, None, with_delta))
        last = index == len(chain.units) - 1
        build = partial(chain.build_classifier, seed=seed) if last else partial(head, index + 1)
        features = payload(chain.crossing[index])
        heads.append(cost(f"the head behind '{unit.name}'", build, features, loss_of, exact))
        fuller.append(heads[-1])
        made = None if last or beside is None else beside(index + 1)
        if made is not None:
            what = f"what is trained beside the head behind '{unit.name}'"
            extra = cost(what, partial(nn.Sequential, made), features, mean_square, False)
            fuller[-1] = heads[-1].plus(extra)
        before = chain.crossing[index]
    return Profile(
        batch_size=batch_size,
        device=str(meter.device),
        units=units,
        heads=heads,
        fuller_heads=None if beside is None else fuller,
        input_bytes=batch_size * sum(kind.bytes_per_row for kind in chain.inputs),
    )


def mean_square(output: Tensor) -> Tensor:
    """Compute a loss that costs what the error of a reconstruction does, about."""
    return output.square().mean()


class _OfMain(nn.Module):
    """A module of several tensors as one of the main tensor, with the others beside it fixed."""

    def __init__(self, inner: nn.Module, beside: Sequence[Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.beside = tuple(beside)

    def forward(self, x: Tensor) -> Tensor:
        return tensors_of(self.inner((x, *self.beside) if self.beside else x))[0]


def _cost(
    meter: Meter,
    optimizer: OptimizerOf,
    module: _OfMain,
    x: Tensor,
    loss: LossOf | None,
    reconcile: bool,
) -> Cost:
    takes_gradient = x.is_floating_point()
    forward_s, backward_s = meter.seconds_of_pass(
        module, x.requires_grad_(takes_gradient), loss, reconcile=False
    )
    input_gradient_s, reconcile_s, reconcile_bytes = 0.0, 0.0, 0
    if takes_gradient:
        without = meter.seconds_of_pass(module, x.detach(), loss, reconcile=False)
        input_gradient_s = max(0.0, backward_s - without[1])
    saved, output = _saved_bytes(module, x, loss, reconcile=False)
    if reconcile:
        seconds = sum(meter.seconds_of_pass(module, x, loss, reconcile=True))
        reconcile_s = max(0.0, seconds - forward_s - backward_s)
        reconcile_bytes = max(0, _saved_bytes(module, x, loss, reconcile=True)[0] - saved)
    update_s, state = 0.0, []
    trained = [(name, p) for name, p in module.inner.named_parameters() if p.requires_grad]
    if trained:
        of_module = optimizer(trained)
        update_s = meter.seconds_of_step(of_module)
        state = [value for values in of_module.state.values() for value in values.values()]
    return Cost(
        forward_s=forward_s,
        backward_s=backward_s,
        input_gradient_s=input_gradient_s,
        reconcile_s=reconcile_s,
        update_s=update_s,
        saved_bytes=saved,
        reconcile_bytes=reconcile_bytes,
        parameters=sum(p.numel() for p in module.parameters()),
        parameter_bytes=tensor_bytes(module.parameters()),
        buffer_bytes=tensor_bytes(module.buffers()),
        optimizer_bytes=tensor_bytes(value for value in state if isinstance(value, Tensor)),
        output_bytes=tensor_bytes([output]),
    )


def forward_pass(module: nn.Module, leaf: Tensor, loss: LossOf | None) -> Tensor:
    """Return a module's output, or a head's loss."""
    out: Tensor = module(leaf)
    return out if loss is None else loss(out)


def backward_pass(leaf: Tensor, out: Tensor, *, reconcile: bool) -> None:
    """Run what a stage's backward pass needs of a module."""
    upstream = torch.ones_like(out) / out.numel()
    if not reconcile:
        if out.requires_grad:
            out.backward(upstream)  # type: ignore[no-untyped-call]
        return
    (gradient,) = autograd.grad(out, leaf, upstream, create_graph=True)
    total = (out * upstream).sum()
    if gradient.requires_grad:
        total = total + gradient.square().sum()
    total.backward()  # type: ignore[no-untyped-call]


def _saved_bytes(
    module: _OfMain, x: Tensor, loss: LossOf | None, *, reconcile: bool
) -> tuple[int, Tensor]:
    """Return bytes that autograd keeps besides the module's tensors and its inputs, and the output."""
    leaf = x.detach().requires_grad_(x.requires_grad)
    counter = SavedBytes([*module.parameters(), *module.buffers(), leaf, *module.beside])
    with counter.counting():
        out = forward_pass(module, leaf, loss)
        backward_pass(leaf, out, reconcile=reconcile)
    module.zero_grad(set_to_none=True)
    return counter.peak_bytes, out.detach()


def _make(module: nn.Module) -> tuple[object, ...]:
    """Return a key that is equal for modules that differ only in parameter values.

    Attributes whose text is only an address make keys unequal, to be safe. Names within a sequence do not
    matter, so that heads made of equal units are equal.
    """
    number = {part: place for place, part in enumerate(module.modules())}
    return tuple(
        (
            type(part),
            tuple((n, tuple(p.shape)) for n, p in part.named_parameters(recurse=False)),
            tuple(sorted((k, repr(v)) for k, v in vars(part).items() if not k.startswith("_"))),
            tuple(
                ("" if type(part) is nn.Sequential else name, number[child])
                for name, child in part._modules.items()
                if child is not None
            ),
        )
        for part in number
    )
