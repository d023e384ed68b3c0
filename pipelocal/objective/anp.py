"""Activity-based node perturbation (García Fernández et al. 2024, arXiv 2405.08967), and its relatives.

A stage runs each batch twice, once as it is and once with noise on what its units receive, and learns from
how its own head's loss changed. There is no backward pass. This is a local form: a stage perturbs itself
alone, and its clean output is what the next one is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.node_layer import Link, NodeLayer, NodePass, probed
from pipelocal.objective import node_rules
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import LocalPass, Objective, Place
from pipelocal.objective.options import check_words
from pipelocal.objective.residual import Residual
from pipelocal.tasks.row_losses import row_losses

LEAST_STD = 1e-3
"""Below this, the change of the loss drowns in the rounding of a pass in float32."""

Passes = dict[NodeLayer, NodePass]


@dataclass(frozen=True, kw_only=True)
class ANP(ForwardRecipe):
    """Activity-based node perturbation of recurrent stages, its relatives, and decorrelation; its options.

    Args:
        rule: ``trajectory`` (from the change of each sample's activity over all steps and layers),
            ``released`` (the rule of the authors' code, which underestimates the gradient), ``np`` (node
            perturbation, from the noise itself) or ``wp`` (weight perturbation).
        noise: ``gaussian`` or ``rademacher`` (signs).
        std: standard deviation of the noise.
        decorrelate: learning rate of the matrices that decorrelate the layers' inputs; 0 leaves them alone.

    Raises:
        UserError: a value is out of range.
    """

    rule: Literal["released", "trajectory", "np", "wp"] = "trajectory"
    noise: Literal["gaussian", "rademacher"] = "gaussian"
    std: float = 1e-3
    decorrelate: float = 0.0

    without_backward = True

    def __post_init__(self) -> None:
        check_words(self)
        if not LEAST_STD <= self.std < inf:
            raise UserError(
                f"ANP: std={self.std}: give at least {LEAST_STD}, below which the change of the loss is "
                f"rounding"
            )
        if not 0 <= self.decorrelate < inf:
            raise UserError(f"ANP: decorrelate={self.decorrelate}: give a number of at least 0")

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        del place
        return Perturbing(self)

    def check_stage(self, body: nn.Module, head: nn.Module, *, stage: int) -> None:
        """Refuse a stage with layers whose units cannot be perturbed.

        Raises:
            UserError: says which, and what to choose.
        """
        for name, unit in body.named_children():
            if other := not_perturbed(unit):
                raise UserError(
                    f"stage {stage}: --objective anp cannot perturb a {other} (unit "
                    f"'{name.replace('/', '.')}'): choose --model rnn or rnn-last, or another objective"
                )
        if other := not_perturbed(head):
            raise UserError(
                f"stage {stage}: --objective anp cannot perturb a {other} (in the head): choose "
                f"--head auto or downstream, which are made of the model's own layers"
            )


def not_perturbed(module: nn.Module) -> str | None:
    """Return the class of a part that is more than a fixed map and no :class:`NodeLayer`; None if none is."""
    if isinstance(module, NodeLayer):
        return None
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if own or isinstance(module, nn.modules.dropout._DropoutNd):
        return type(module).__name__
    return next(filter(None, map(not_perturbed, module.children())), None)


class Perturbing(Greedy):
    """Learns from the change of the loss in a second pass, with noise.

    Args:
        options: rule, noise and rate of decorrelation.
    """

    def __init__(self, options: ANP) -> None:
        self._options = options
        self._body: nn.Module | None = None
        self._passes: Passes = {}
        self._losses: Tensor | None = None
        self._checked = False

    @torch.no_grad()
    def run_body(self, body: nn.Module, x: Tensor) -> Tensor:
        """Run the clean pass without a graph; see :class:`~pipelocal.objective.local.Objective`."""
        self._body = body
        with probed(body) as self._passes:
            out: Tensor = body(x)
        return out

    @torch.no_grad()
    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """Return the loss, and zeros in place of delta, which nobody is sent."""
        head, logits = _head(local), list[Tensor]()
        hook = head.register_forward_hook(lambda _head, _given, made: logits.append(made))
        try:
            with probed(head) as passes:
                loss = self.loss(local, local.out)
        finally:
            hook.remove()
        self._passes |= passes
        self._losses = self._taken_apart(local, logits[0])
        if not self._checked:
            self._check(loss)
        return loss, torch.zeros_like(local.out)

    @torch.no_grad()
    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """Run the pass with noise; add the estimated gradients to those of the parameters."""
        assert previous_delta is None, "nobody sends it"
        generator = torch.Generator(local.x.device).manual_seed(local.seed)
        if self._options.rule == "wp":
            self._perturb_weights(local, generator)
        else:
            self._perturb_nodes(local, generator)
        if self._options.decorrelate > 0:
            for link in self._links():
                node_rules.decorrelate(link, self._options.decorrelate)
        self._body, self._passes, self._losses = None, {}, None
        return None

    def _perturb_nodes(self, local: LocalPass, generator: torch.Generator) -> None:
        options, clean = self._options, self._passes
        noise = {layer: self._drawn(done.received, generator) for layer, done in clean.items()}
        scaled = {layer: options.std * xi for layer, xi in noise.items()}
        with probed(self._ran(), _head(local), noise=scaled) as noisy:
            differences = self._differences(local)
        if options.rule == "np":
            drawn = [xi.double() for xi in noise.values()]
            found = node_rules.node_perturbation(drawn, differences, std=options.std)
        else:
            changes = [noisy[k].received.double() - clean[k].received.double() for k in clean]
            if options.rule == "trajectory":
                found = node_rules.trajectory(changes, differences)
            else:
                inputs = next(self._links()).weight.shape[1]
                found = node_rules.released(changes, differences, inputs=inputs)
        for done, at_units in zip(clean.values(), found, strict=True):
            for link in done.links:
                _add_gradient(link.weight, node_rules.weight_gradient(at_units, link))

    def _perturb_weights(self, local: LocalPass, generator: torch.Generator) -> None:
        weights = [link.weight for link in self._links()]
        noise = [self._drawn(weight, generator) for weight in weights]
        before = [weight.clone() for weight in weights]
        try:
            for weight, xi in zip(weights, noise, strict=True):
                weight.add_(xi, alpha=self._options.std)
            change = self._differences(local).sum() / self._options.std
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
        for weight, xi in zip(weights, noise, strict=True):
            _add_gradient(weight, (change * xi).to(xi.dtype))

    def _differences(self, local: LocalPass) -> Tensor:
        """Run the stage again as it is now; return the change of the losses ``[B, S]``, float64."""
        assert self._losses is not None, "head_backward comes first"
        return self._taken_apart(local, _head(local)(self._ran()(local.x))) - self._losses

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:
        if self._options.noise == "rademacher":
            signs = torch.randint(2, like.shape, generator=generator, device=like.device)
            return (2 * signs - 1).to(like.dtype)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _taken_apart(self, local: LocalPass, logits: Tensor) -> Tensor:
        """Compute the losses of rows and steps ``[B, S]``, in float64."""
        assert local.loss_function is not None
        assert local.target is not None
        try:
            return row_losses(local.loss_function, logits.double(), local.target)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{_WRONG_LOSS} ({reason})") from error

    def _check(self, loss: Tensor) -> None:
        assert self._losses is not None
        if not torch.allclose(self._losses.sum(), loss.double(), rtol=1e-3, atol=1e-6):
            raise UserError(f"{_WRONG_LOSS} (their sum is another than the batch's loss)")
        self._checked = True

    def _links(self) -> Iterator[Link]:
        return (link for done in self._passes.values() for link in done.links)

    def _ran(self) -> nn.Module:
        assert self._body is not None, "run_body comes first"
        return self._body


_WRONG_LOSS = (
    "--objective anp takes the loss sample by sample, and this one is no mean of that: leave --loss or "
    "--head-loss out, or choose another objective"
)


def _head(local: LocalPass) -> nn.Module:
    assert local.head is not None, "head_backward comes first"
    return local.head


def _add_gradient(weight: nn.Parameter, gradient: Tensor) -> None:
    if weight.requires_grad:
        weight.grad = gradient if weight.grad is None else weight.grad + gradient
