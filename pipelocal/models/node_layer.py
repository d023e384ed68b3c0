"""Layers of units that can be perturbed: noise is added to what a unit receives, before its activation.

::

    h = W (D x) + noise

D decorrelates what comes in. It is a buffer, the unit matrix at first, which no gradient trains. Tensors over
steps ``[B, S, ...]`` of a sequence end together: S steps are the last S.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Link:
    """What came into a layer in one pass, through one of its matrices."""

    weight: nn.Parameter
    """``[n, m]``."""
    decorrelation: Tensor
    """D, ``[m, m]``."""
    inputs: Tensor
    """Decorrelated, ``[B, S, m]``."""


@dataclass(frozen=True, kw_only=True)
class NodePass:
    """What happened in a layer in one pass."""

    received: Tensor
    """What its units received, with noise, before their activation: ``[B, S, n]``."""
    links: tuple[Link, ...]


class NodeLayer(nn.Module):
    """Base of layers whose units can be perturbed, and which have no parameters but the matrices of links."""

    _probe: Probe | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output."""
        if self._probe is None:
            return self.perturbed(x, None)[0]
        out, self._probe.passes[self] = self.perturbed(x, self._probe.noise.get(self))
        return out

    @abstractmethod
    def perturbed(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, NodePass]:
        """Compute the output, and what happened.

        Args:
            x: input ``[B, ...]``.
            noise: added to what the units receive, ``[B, S, n]``; None for none.
        """


@dataclass(frozen=True)
class Probe:
    """Says with what noise layers run, and keeps what happened in them."""

    noise: Mapping[NodeLayer, Tensor]
    passes: dict[NodeLayer, NodePass]


@contextmanager
def probed(
    *modules: nn.Module, noise: Mapping[NodeLayer, Tensor] | None = None
) -> Iterator[dict[NodeLayer, NodePass]]:
    """Have the layers in some modules perturbed within the block, and what happens in them recorded.

    Args:
        modules: each layer in them runs at most once.
        noise: ``[B, S, n]`` for each layer that is perturbed.

    Yields:
        What happened, in the order in which layers run.
    """
    layers = [
        part for module in modules for part in module.modules() if isinstance(part, NodeLayer)
    ]
    probe = Probe(noise or {}, {})
    for layer in layers:
        layer._probe = probe
    try:
        yield probe.passes
    finally:
        for layer in layers:
            layer._probe = None


def first_matrix(outputs: int, inputs: int) -> nn.Parameter:
    """Draw a matrix ``[outputs, inputs]`` by Xavier's normal rule."""
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(outputs, inputs)))


def last_steps(x: Tensor, steps: int) -> Tensor:
    """Return the last steps of ``[B, S, ...]``, with zeros in front where there are fewer."""
    missing = steps - x.shape[1]
    if missing <= 0:
        return x[:, -missing:]
    return torch.cat([x.new_zeros(x.shape[0], missing, *x.shape[2:]), x], 1)
