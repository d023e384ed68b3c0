"""What each unit of a chain costs: time and memory, measured on the device it will run on.

Each unit is built, run as a stage would run it, and dropped again, so that never more than one is
held. Its input is random: what it computes does not matter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, autograd, nn

from pipelocal.models.chain import Chain, Shape, build_unit
from pipelocal.objective.local import cross_entropy
from pipelocal.telemetry.memory import SavedBytes, tensor_bytes

HeadBuilder = Callable[[Shape], nn.Module]
"""Makes the auxiliary head for a feature of this shape (no batch dimension)."""

OptimizerOf = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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
    names: list[str]
    units: list[Cost]
    heads: list[Cost]
    """Of the head that would sit behind each unit; behind the last one the classifier."""
    input_bytes: int
    """Of a batch of samples."""

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How to measure.

    Args:
        batch_size: rows.
        device: where to run.
        reconcile: whether stages reconcile exactly (double backward).
        optimizer: makes the optimizer of some parameters.
        target_shape: shape of one sample's labels.
        repeats: the median of so many runs counts, after one that does not.
        seed: of parameters and inputs.
    """

    batch_size: int
    device: torch.device
    reconcile: bool
    optimizer: OptimizerOf
    target_shape: Shape = ()
    repeats: int = 3
    seed: int = 0

    def measure(self, chain: Chain, shapes: list[Shape], head: HeadBuilder) -> Profile:
        """The costs of a chain.

        Args:
            chain: the model.
            shapes: output shape of each unit (:meth:`Chain.shapes`).
            head: makes the auxiliary heads.
        """
        units: list[Cost] = []
        heads: list[Cost] = []
        seen: dict[object, Cost] = {}

        def cost(module: nn.Module, x: Tensor, target: Tensor | None, reconcile: bool) -> Cost:
            # Most networks repeat themselves: modules of the same make and input cost the same.
            key = (_make(module), tuple(x.shape), reconcile)
            if key not in seen:
                seen[key] = self._cost(module, x, target, reconcile)
            return seen[key]

        before, dtype = chain.input_shape, chain.input_dtype
        for index, (unit, shape) in enumerate(zip(chain.units, shapes, strict=True)):
            x = self._random(before, dtype, chain.classes)
            # The first stage never reconciles: there is none before it.
            units.append(cost(build_unit(unit, self.seed), x, None, self.reconcile and index > 0))
            last = index == len(shapes) - 1
            module = build_unit(chain.classifier, self.seed) if last else head(shape)
            target = self._random(self.target_shape, torch.int64, chain.classes)
            feature = self._random(shape, torch.float32, chain.classes)
            heads.append(cost(module, feature, target, self.reconcile))
            before, dtype = shape, torch.float32
        return Profile(
            batch_size=self.batch_size,
            device=str(self.device),
            names=[unit.name for unit in chain.units],
            units=units,
            heads=heads,
            input_bytes=self.batch_size * prod(chain.input_shape) * chain.input_dtype.itemsize,
        )

    def _random(self, shape: Shape, dtype: torch.dtype, classes: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        whole = (self.batch_size, *shape)
        if dtype.is_floating_point:
            return torch.randn(whole, generator=generator).to(self.device)
        return torch.randint(classes, whole, generator=generator).to(self.device, dtype)

    def _cost(self, module: nn.Module, x: Tensor, target: Tensor | None, reconcile: bool) -> Cost:
        """Of a module; with a target it is a head, and what is trained is its loss."""
        module.to(self.device).train()
        float_input = x.is_floating_point()
        times = self._times(module, x.requires_grad_(float_input), target, reconcile=False)
        without = self._times(module, x.detach(), target, reconcile=False) if float_input else times
        saved, output = _saved(module, x, target, reconcile=False)
        reconcile_s, reconcile_bytes = 0.0, 0
        if reconcile:
            reconcile_s = sum(self._times(module, x, target, reconcile=True)) - sum(times)
            reconcile_bytes = _saved(module, x, target, reconcile=True)[0] - saved
        update_s, optimizer_bytes = self._update(module)
        return Cost(
            forward_s=times[0],
            backward_s=times[1],
            input_gradient_s=max(0.0, times[1] - without[1]),
            reconcile_s=max(0.0, reconcile_s),
            update_s=update_s,
            saved_bytes=saved,
            reconcile_bytes=max(0, reconcile_bytes),
            parameter_bytes=tensor_bytes(module.parameters()),
            buffer_bytes=tensor_bytes(module.buffers()),
            optimizer_bytes=optimizer_bytes,
            output_bytes=tensor_bytes([output]),
        )

    def _times(
        self, module: nn.Module, x: Tensor, target: Tensor | None, *, reconcile: bool
    ) -> tuple[float, float]:
        """Median seconds of the forward and of the backward pass."""
        runs = []
        for _ in range(self.repeats + 1):
            module.zero_grad(set_to_none=True)
            leaf = x.detach().requires_grad_(x.requires_grad)
            started = self._now()
            out = _forward(module, leaf, target)
            between = self._now()
            _backward(leaf, out, reconcile=reconcile)
            runs.append((between - started, self._now() - between))
        return (
            statistics.median(forward for forward, _ in runs[1:]),
            statistics.median(backward for _, backward in runs[1:]),
        )

    def _update(self, module: nn.Module) -> tuple[float, int]:
        """Median seconds of the optimizer's step, and the bytes of its state."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            return 0.0, 0
        optimizer = self.optimizer(parameters)
        runs = []
        for _ in range(self.repeats + 1):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            started = self._now()
            optimizer.step()
            runs.append(self._now() - started)
        state = [value for values in optimizer.state.values() for value in values.values()]
        return statistics.median(runs[1:]), tensor_bytes(v for v in state if isinstance(v, Tensor))

    def _now(self) -> float:
        if self.device.type == "cuda":
            # This measures and does not train: nothing else is under way.
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


def _make(module: nn.Module) -> tuple[object, ...]:
    """Equal for modules that compute the same with other parameters.

    Attributes that say nothing of themselves but their address make it unequal, to be safe.
    """
    return tuple(
        (
            name,
            type(part),
            tuple((n, tuple(p.shape)) for n, p in part.named_parameters(recurse=False)),
            tuple(sorted((k, repr(v)) for k, v in vars(part).items() if not k.startswith("_"))),
        )
        for name, part in module.named_modules()
    )


def _forward(module: nn.Module, leaf: Tensor, target: Tensor | None) -> Tensor:
    out: Tensor = module(leaf)
    return out if target is None else cross_entropy(out, target)


def _backward(leaf: Tensor, out: Tensor, *, reconcile: bool) -> None:
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


def _saved(
    module: nn.Module, x: Tensor, target: Tensor | None, *, reconcile: bool
) -> tuple[int, Tensor]:
    """Bytes that autograd keeps beyond the module's own tensors and its input; the output."""
    leaf = x.detach().requires_grad_(x.requires_grad)
    counter = SavedBytes()
    with counter.counting():
        out = _forward(module, leaf, target)
        _backward(leaf, out, reconcile=reconcile)
    module.zero_grad(set_to_none=True)
    own = [*module.parameters(), *module.buffers(), leaf]
    return counter.bytes_beyond(own), out.detach()
