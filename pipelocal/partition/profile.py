"""What each unit of a chain, and the head that would sit behind it, cost: time and memory.

Units are built, costed and dropped one at a time, so that never more than one is held. How a module
is costed is a meter's business: measured on a device (:mod:`pipelocal.partition.measured`), or by
analysis on the meta device (:mod:`pipelocal.partition.analysed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, autograd, nn

from pipelocal.errors import NotTwiceDifferentiable, UserError
from pipelocal.models.chain import Chain, Shape, build_unit
from pipelocal.models.in_place import disable_inplace
from pipelocal.telemetry.memory import SavedBytes, tensor_bytes

HeadBuilder = Callable[[int], nn.Module]
"""Makes the auxiliary head of a stage that ends before the unit of this index."""

OptimizerOf = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes the optimizer of some parameters, which it is given with their names."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a unit or a head, for one training batch; times in seconds, medians."""

    forward_s: float
    backward_s: float
    """Of the local loss, the gradient at the input included."""
    input_gradient_s: float
    """The part of it that the gradient at the input takes, which the first unit of a stage is spared
    unless the stage reconciles."""
    reconcile_s: float
    """What exact reconciliation adds; 0 where it is not asked for."""
    update_s: float
    """Of the optimizer's step."""
    saved_bytes: int
    """What autograd keeps for the backward pass of the local loss, without parameters and input."""
    reconcile_bytes: int
    """What it keeps beyond that for the reconciliation."""
    parameter_bytes: int
    buffer_bytes: int
    optimizer_bytes: int
    output_bytes: int
    """Of the output for the whole batch: what an edge would carry as x."""

    @property
    def train_s(self) -> float:
        """Forward, backward and update, without reconciliation."""
        return self.forward_s + self.backward_s + self.update_s

    @property
    def held_bytes(self) -> int:
        """Parameters and their gradients, which are as large, buffers, optimizer state, activations."""
        state = 2 * self.parameter_bytes + self.buffer_bytes + self.optimizer_bytes
        return state + self.saved_bytes


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Costs of a chain, for one batch size on one device."""

    batch_size: int
    device: str
    units: list[Cost]
    heads: list[Cost]
    """Of the head that would sit behind each unit; behind the last one the classifier."""
    input_bytes: int
    """Of a batch of samples."""


class Meter(Protocol):
    """Says how long things take on a device."""

    @property
    def device(self) -> torch.device:
        """Where modules and inputs are put."""
        ...

    def seconds_of_pass(
        self, module: nn.Module, x: Tensor, target: Tensor | None, *, reconcile: bool
    ) -> tuple[float, float]:
        """Of the forward and of the backward pass.

        Args:
            module: in training mode, on :attr:`device`.
            x: its input, ``[B, ...]``; whether it requires a gradient matters.
            target: labels ``[B, ...]`` if the module is a head, whose loss is what is trained.
            reconcile: whether the backward pass is that of exact reconciliation.
        """
        ...

    def seconds_of_step(self, optimizer: torch.optim.Optimizer) -> float:
        """Of a step of the optimizer; afterwards it has the state that it will keep."""
        ...


def profile_chain(
    chain: Chain,
    shapes: list[Shape],
    head: HeadBuilder,
    meter: Meter,
    *,
    batch_size: int,
    classes: int,
    exact: bool,
    optimizer: OptimizerOf,
    target_shape: Shape = (),
    seed: int = 0,
) -> Profile:
    """The costs of a chain.

    Args:
        chain: the model.
        shapes: output shape of each unit (:meth:`Chain.shapes`).
        head: makes the auxiliary heads.
        meter: says how long things take.
        batch_size: rows.
        classes: width of the model's output.
        exact: whether to cost exact reconciliation (double backward) too.
        optimizer: makes the optimizer of some parameters.
        target_shape: shape of one sample's labels.
        seed: of parameters and of inputs, which are random: what is computed does not matter.

    Raises:
        NotTwiceDifferentiable: a unit or a head, as exact reconciliation wants it.
        UserError: a unit or a head looks at values, on the meta device.
    """
    units: list[Cost] = []
    heads: list[Cost] = []
    seen: dict[object, Cost] = {}
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
        x: Tensor,
        target: Tensor | None,
        reconcile: bool,
    ) -> Cost:
        try:
            with torch.device("meta") if on_meta else nullcontext():
                module = build().to(meter.device).train()
            disable_inplace(module)  # as a stage does
            # Most networks repeat themselves: modules of the same make and input cost the same.
            key = (_make(module), tuple(x.shape), target is None, reconcile)
            if key not in seen:
                seen[key] = _cost(meter, optimizer, module, x, target, reconcile)
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

    before, dtype = chain.input_shape, chain.input_dtype
    target = random(target_shape, torch.int64)
    for index, (unit, shape) in enumerate(zip(chain.units, shapes, strict=True)):
        # The first stage never reconciles: there is none before it.
        x, with_delta = random(before, dtype), exact and index > 0
        units.append(
            cost(f"unit '{unit.name}'", partial(build_unit, unit, seed), x, None, with_delta)
        )
        last = index == len(shapes) - 1
        build = partial(build_unit, chain.classifier, seed) if last else partial(head, index + 1)
        feature = random(shape, torch.float32)
        heads.append(cost(f"the head behind '{unit.name}'", build, feature, target, exact))
        before, dtype = shape, torch.float32
    return Profile(
        batch_size=batch_size,
        device=str(meter.device),
        units=units,
        heads=heads,
        input_bytes=batch_size * prod(chain.input_shape) * chain.input_dtype.itemsize,
    )


def _cost(
    meter: Meter,
    optimizer: OptimizerOf,
    module: nn.Module,
    x: Tensor,
    target: Tensor | None,
    reconcile: bool,
) -> Cost:
    takes_gradient = x.is_floating_point()
    forward_s, backward_s = meter.seconds_of_pass(
        module, x.requires_grad_(takes_gradient), target, reconcile=False
    )
    input_gradient_s, reconcile_s, reconcile_bytes = 0.0, 0.0, 0
    if takes_gradient:
        without = meter.seconds_of_pass(module, x.detach(), target, reconcile=False)
        input_gradient_s = max(0.0, backward_s - without[1])
    saved, output = _saved_bytes(module, x, target, reconcile=False)
    if reconcile:
        seconds = sum(meter.seconds_of_pass(module, x, target, reconcile=True))
        reconcile_s = max(0.0, seconds - forward_s - backward_s)
        reconcile_bytes = max(0, _saved_bytes(module, x, target, reconcile=True)[0] - saved)
    update_s, state = 0.0, []
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
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
        parameter_bytes=tensor_bytes(module.parameters()),
        buffer_bytes=tensor_bytes(module.buffers()),
        optimizer_bytes=tensor_bytes(value for value in state if isinstance(value, Tensor)),
        output_bytes=tensor_bytes([output]),
    )


def forward_pass(module: nn.Module, leaf: Tensor, target: Tensor | None) -> Tensor:
    """A module's output, or a head's loss."""
    out: Tensor = module(leaf)
    return out if target is None else F.cross_entropy(out.flatten(0, -2), target.flatten())


def backward_pass(leaf: Tensor, out: Tensor, *, reconcile: bool) -> None:
    """What a stage's backward pass asks of a module."""
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
    module: nn.Module, x: Tensor, target: Tensor | None, *, reconcile: bool
) -> tuple[int, Tensor]:
    """Bytes that autograd keeps beyond the module's own tensors and its input; the output."""
    leaf = x.detach().requires_grad_(x.requires_grad)
    counter = SavedBytes([*module.parameters(), *module.buffers(), leaf])
    with counter.counting():
        out = forward_pass(module, leaf, target)
        backward_pass(leaf, out, reconcile=reconcile)
    module.zero_grad(set_to_none=True)
    return counter.peak_bytes, out.detach()


def _make(module: nn.Module) -> tuple[object, ...]:
    """Equal for modules that compute the same with other parameters.

    Attributes that say nothing of themselves but their address make it unequal, to be safe. The names
    of a row's links do not matter, so that heads made of like units are alike.
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
