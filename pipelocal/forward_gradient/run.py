"""A batch of forward gradients: outputs and their derivatives along noise in one pass, then the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from pipelocal.closed_form.form import accumulate, form_of
from pipelocal.closed_form.run import ClosedRun
from pipelocal.forward_gradient.program import Branch, Program, Scope, Segment, Site
from pipelocal.models.mixing import in_groups
from pipelocal.objective.lg_fg import LGFG


class Noise:
    """Draws noise of mean 0 and variance 1.

    Args:
        kind: ``gaussian`` or ``rademacher``.
        seed: of this batch.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind = kind
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, like: Tensor) -> Tensor:
        """Return noise of the shape, dtype and device of a tensor."""
        if self._generator is None:
            self._generator = torch.Generator(like.device).manual_seed(self._seed)
        noise = torch.empty_like(like, memory_format=torch.contiguous_format)
        if self._kind == "gaussian":
            return noise.normal_(generator=self._generator)
        return noise.random_(2, generator=self._generator).mul_(2).sub_(1)


@dataclass
class _Direction:
    """A pass with noise."""

    tangent: Tensor
    """The output's derivative along the noise, with its shape."""
    at_sites: list[Tensor] = field(default_factory=list)
    """The noise at each site; empty if weights are perturbed."""
    of_weights: list[tuple[nn.Module, Scope, dict[str, Tensor]]] = field(default_factory=list)
    """The noise of each module's parameters by name; empty if activity is perturbed."""


class ForwardRun:
    """The forward passes of a body on a batch, in use as a :class:`~pipelocal.closed_form.run.ClosedRun`.

    Args:
        program: the body's steps.
        x: input ``[B, ...]``.
        options: what to perturb, and how often.
        noise: draws it, of the shape of a tensor; see :class:`Noise`.
    """

    def __init__(
        self, program: Program, x: Tensor, options: LGFG, noise: Callable[[Tensor], Tensor]
    ) -> None:
        self._program = program
        self._noise = noise
        self._activity = options.perturb == "activity"
        self._parts = options.losses == "parts"
        self._runs: dict[Segment, ClosedRun] = {}
        self._directions = [self._pass(x) for _ in range(options.passes)]

    out: Tensor
    """Output ``[B, ...]``, without noise."""

    @torch.no_grad()
    def _pass(self, x: Tensor) -> _Direction:
        direction = _Direction(tangent=x)
        with forward_ad.dual_level():
            skipped: list[Tensor] = []
            for step in self._program.steps:
                match step:
                    case Branch.OPEN:
                        skipped.append(x)
                    case Branch.CLOSE:
                        x = skipped.pop() + x
                    case Segment():
                        x = self._through(step, x, direction)
                    case Site() if self._activity:
                        value, tangent = _parts(x)
                        noise = self._noise(value)
                        if step.into_relu:
                            noise *= value > 0
                        direction.at_sites.append(noise)
                        x = _dual(value, noise if tangent is None else tangent + noise)
            # The tangents of all that is kept end with the level.
            self.out, tangent = _parts(x)
            direction.tangent = torch.zeros_like(self.out) if tangent is None else tangent
        return direction

    def _through(self, segment: Segment, x: Tensor, direction: _Direction) -> Tensor:
        if self._activity:
            run = ClosedRun(segment.row, x, moves_buffers=True)
            self._runs[segment] = run
            return run.out
        for module, scope in zip(segment.row, segment.scopes, strict=True):
            trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
            noise = {name: self._noise(parameter) for name, parameter in trained.items()}
            moved = {name: _dual(trained[name], noise[name]) for name in trained}
            x = functional_call(module, moved, (x,))
            direction.of_weights.append((module, scope, noise))
        return x

    @torch.no_grad()
    def backward(self, upstream: Tensor, *, wants_input: bool) -> None:
        """Add the estimates of the parameters' gradients to their ``.grad``; call it only once.

        Args:
            upstream: gradient of the loss at the output, of its shape.
            wants_input: must be false: there is no gradient at the input.
        """
        assert not wants_input, "forward gradients end at the stage's parameters"
        passes = len(self._directions)
        derivatives = [self._by_loss(upstream * d.tangent) / passes for d in self._directions]
        if self._activity:
            sites = [step for step in self._program.steps if isinstance(step, Site)]
            for place, site in enumerate(sites):
                at_site = sum(
                    scaled(direction.at_sites[place], derivative, site.scope)
                    for direction, derivative in zip(self._directions, derivatives, strict=True)
                )
                assert isinstance(at_site, Tensor)
                self._runs[site.segment].backward(at_site, wants_input=False)
        else:
            for direction, derivative in zip(self._directions, derivatives, strict=True):
                for module, scope, noise in direction.of_weights:
                    _add(module, scope, noise, derivative)
        self._runs.clear()
        self._directions.clear()

    def kept(self) -> Iterator[Tensor]:
        """Return the tensors that :meth:`backward` needs."""
        for run in self._runs.values():
            yield from run.kept()
        for direction in self._directions:
            yield direction.tangent
            yield from direction.at_sites
            for _, _, noise in direction.of_weights:
                yield from noise.values()

    def _by_loss(self, products: Tensor) -> Tensor:
        """Return the derivative of each loss along the noise ``[B, T, groups]``; T and groups may be 1.

        Each loss depends on its own token and group of the output alone, the rest being held fast.

        Args:
            products: of gradient and tangent at the output ``[B, ...]``.
        """
        if not self._parts or products.dim() not in (2, 3):
            return products.flatten(1).sum(1)[:, None, None]
        tokens = products if products.dim() == 3 else products[:, None]
        return in_groups(tokens, self._program.groups).sum(-1)


def scaled(noise: Tensor, derivative: Tensor, scope: Scope) -> Tensor:
    """Multiply noise by the derivative of the losses on which it has an effect.

    Args:
        noise: ``[B, ...]``.
        derivative: ``[B, T, groups]``.
        scope: which these are.
    """
    if not scope.tokens:
        derivative = derivative.sum(1, keepdim=True)
    if not scope.groups:
        derivative = derivative.sum(2, keepdim=True)
    if derivative.shape[1:] == (1, 1):
        return noise * derivative.view(-1, *[1] * (noise.dim() - 1))
    tokens = noise if noise.dim() == 3 else noise[:, None]
    grouped = in_groups(tokens, derivative.shape[2])
    return (grouped * derivative[..., None]).view(noise.shape)


def _add(module: nn.Module, scope: Scope, noise: dict[str, Tensor], derivative: Tensor) -> None:
    """Add the estimates of a module's gradients, each row by the losses on which it has an effect."""
    over_tokens = form_of(module).over_tokens
    apart = scope.tokens if over_tokens else scope.groups
    rows = derivative.sum((0, 2) if over_tokens else (0, 1))
    if not apart:
        rows = rows.sum(0, keepdim=True)
    for name, parameter in module.named_parameters():
        if name not in noise:
            continue
        own = rows.repeat_interleave(len(parameter) // len(rows))
        factors = own.view(-1, *[1] * (parameter.dim() - 1))
        accumulate(parameter, partial(torch.mul, noise[name], factors))


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    return forward_ad.make_dual(value, tangent)  # type: ignore[no-any-return, no-untyped-call]


def _parts(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a value and its tangent, which it may lack."""
    value, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, tangent
