"""Min-sum belief propagation on the grid of pixels, as a layer: plain PyTorch, any batch and device.

Each pixel pays for its label, ``cost[b, label, y, x]``, and each pair of neighbours (above, below, left,
right) for theirs. A message says what the label of a pixel would cost the pixels on one side of it at
least:

    message(b) = min over a of  cost(a) + messages from the neighbour's other sides (a) + pairwise(a, b)

less its least entry, so that numbers stay small. One iteration passes messages to the right, to the left,
down and up; a belief is the cost and the four messages into a pixel.

**What is exact.** On one row or one column beliefs are the min-marginals: the least cost of any labelling
with this label at this pixel, up to a number that does not depend on the label. After one iteration on a
grid they are those of the comb of all rows and the pixel's own column. Those of the whole grid are only
approached.

**Ties** are broken by a rule: of several labels that attain a minimum the lowest one gets its gradient. (Of
labels by their difference, the lowest within the window, and a label beyond it only if none within attains
the minimum.)

**The source** is arXiv 2003.06258 (CVPR 2020), of which the abstract and the introduction alone were read,
and its released code, of which nothing was copied. From there come: the recursion, the four sweeps and
their order, one iteration, the cost as minus the softmax probability, a learned temperature that begins at
1, pairwise costs by the difference of labels with a window of 2 that never fall as the difference grows,
and weights of edges.

**Ours** are: messages less their minimum instead of their log-sum-exp (no softmin
sees the difference); the rule for ties; one weight for an edge in both directions; what weights are made
of; how parameters are kept positive; the batch; both directions of an axis at once, which neither of them
sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def beliefs(
    cost: Tensor,
    across: Tensor,
    down: Tensor,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    iterations: int = 1,
) -> Tensor:
    """Return what each label of each pixel costs, with what it costs the other pixels at least.

    Args:
        cost: ``[B, K, H, W]``, float32 or float64: of each of K labels at each pixel.
        across: pairwise costs of a pixel and the one to its right: ``[K, K]``, where ``[a, b]`` is that of
            ``a`` on the left and ``b`` on the right; or ``[2 * delta + 2]``, those of the differences
            ``b - a`` from ``-delta`` to ``delta`` and, last and no less than any other, of all beyond.
        down: those of a pixel and the one below it.
        weights: factors ``[B, H, W - 1]`` of the edges across, and ``[B, H - 1, W]`` of those down, none
            negative; None for 1.
        iterations: of the four sweeps.

    Returns:
        ``[B, K, H, W]``. What is the same for all labels of a pixel means nothing.
    """
    weight_across = None if weights is None else weights[0].permute(2, 0, 1)
    weight_down = None if weights is None else weights[1].permute(1, 0, 2)
    sideways = upright = torch.zeros_like(cost)
    for _ in range(iterations):
        columns = (cost + upright).permute(3, 0, 1, 2)
        sideways = _messages(columns, across, weight_across).permute(1, 2, 3, 0)
        rows = (cost + sideways).permute(2, 0, 1, 3)
        upright = _messages(rows, down, weight_down).permute(1, 2, 0, 3)
    return cost + sideways + upright


def _messages(cost: Tensor, table: Tensor, weight: Tensor | None) -> Tensor:
    """Pass messages along many chains, in both directions at once.

    Args:
        cost: ``[N, B, K, P]``: of K labels at N places of P chains.
        table: pairwise costs ``[K, K]`` or ``[2 * delta + 2]``, see :func:`beliefs`.
        weight: ``[N - 1, B, P]``, or None.

    Returns:
        For each place the sum of both messages into it, ``[N, B, K, P]``.
    """
    both = _there_and_back(table)
    places = torch.stack([cost, cost.flip(0)], 1).unbind()  # each [2, B, K, P]
    messages = [torch.zeros_like(places[0])]
    for place, factor in zip(places[:-1], _factors(weight, len(places) - 1), strict=True):
        penalty = both if factor is None else both * factor
        message = _least(_candidates(place + messages[-1], table) + penalty).squeeze(2)
        messages.append(message - _least(message))
    there, back = torch.stack(messages).unbind(1)
    return there + back.flip(0)


def _factors(weight: Tensor | None, edges: int) -> Sequence[Tensor | None]:
    """Return the factors ``[2, B, 1, 1, P]`` of each edge in turn, of weights ``[edges, B, P]``."""
    if weight is None:
        return [None] * edges
    return torch.stack([weight, weight.flip(0)], 1)[:, :, :, None, None].unbind()


def _there_and_back(table: Tensor) -> Tensor:
    """Return what is added to the candidates in either direction, ``[2, 1, candidates, K or 1, 1]``.

    Candidates come in the order of the labels that they stand for, so that the first is the lowest.
    """
    if table.ndim == 2:
        return torch.stack([table, table.T])[:, None, :, :, None]
    window, beyond = table[:-1], table[-1:]
    there, back = torch.cat([window.flip(0), beyond]), torch.cat([window, beyond])
    return torch.stack([there, back])[:, None, :, None, None]


def _candidates(costs: Tensor, table: Tensor) -> Tensor:
    """Return costs ``[2, B, K, P]`` of the neighbour's labels for each label: ``[2, B, candidates, K or 1,
    P]``.

    With pairwise costs by difference these are, for label b, those of ``b - delta`` to ``b + delta``, of
    which none that there is not is ever the least, and the least of all labels.
    """
    if table.ndim == 2:
        return costs[:, :, :, None]
    delta, labels = len(table) // 2 - 1, costs.shape[2]
    wide = F.pad(costs, (0, 0, delta, delta), value=torch.inf)
    window = wide.unfold(2, labels, 1).transpose(-1, -2)
    least = _least(costs)[:, :, :, None].expand(-1, -1, -1, labels, -1)
    return torch.cat([window, least], 2)


def _least(x: Tensor) -> Tensor:
    """Return the minimum over the third dimension, kept; the first that attains it gets the gradient.

    ``torch.min`` does not say which of several it takes, ``torch.amin`` shares the gradient out, and
    ``torch.argmin`` says it, but is slower on CPUs.
    """
    least, *others = x.unbind(2)
    for other in others:
        least = torch.where(other < least, other, least)
    return least.unsqueeze(2)


class Potts(nn.Module):
    """Pairwise costs with two parameters: a price for two labels that differ, across and down.

    Args:
        labels: number K of labels.
        price: of both at the beginning.
    """

    def __init__(self, labels: int, price: float = 0.1) -> None:
        super().__init__()
        self.price = nn.Parameter(_before_softplus(torch.full((2,), price)))
        self.register_buffer("differ", 1 - torch.eye(labels), persistent=False)
        self.differ: Tensor

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the tables ``[K, K]`` across and down."""
        across, down = F.softplus(self.price)
        return across * self.differ, down * self.differ


class Differences(nn.Module):
    """Pairwise costs of ordered labels, such as disparities, by their difference.

    They are 0 for equal labels and never fall as the difference grows, to either side.

    Args:
        delta: differences up to which each has a cost of its own.
        step: what one more costs at the beginning.
    """

    def __init__(self, delta: int = 2, step: float = 0.1) -> None:
        super().__init__()
        self.steps = nn.Parameter(_before_softplus(torch.full((2, 2, delta), step)))
        self.last = nn.Parameter(_before_softplus(torch.full((2,), step)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the tables ``[2 * delta + 2]`` across and down."""
        tables = []
        for steps, last in zip(self.steps, self.last, strict=True):
            below, above = F.softplus(steps).cumsum(1)
            beyond = torch.maximum(below[-1], above[-1]) + F.softplus(last)
            equal = torch.zeros_like(last)
            tables.append(torch.cat([below.flip(0), torch.stack([equal, *above, beyond])]))
        return tables[0], tables[1]


def _before_softplus(value: Tensor) -> Tensor:
    """Return what softplus makes these values of."""
    return value + torch.log(-torch.expm1(-value))


class EdgeWeights(nn.Module):
    """Weights of edges from how much features differ across them: ``softplus(bias - gain . |f - f'|)``.

    All begin at 1, and none depends on the direction in which it is seen.

    Args:
        channels: number C of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(2, channels))
        self.bias = nn.Parameter(_before_softplus(torch.ones(2)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights ``[B, H, W - 1]`` and ``[B, H - 1, W]``, of features ``[B, C, H, W]``."""
        differences = (features.diff(dim=3).abs(), features.diff(dim=2).abs())
        across, down = (
            F.softplus(bias - torch.einsum("c,bchw->bhw", gain, difference))
            for gain, bias, difference in zip(self.gain, self.bias, differences, strict=True)
        )
        return across, down


class BeliefPropagation(nn.Module):
    """Costs ``[B, K, H, W]`` to logits of the same shape: minus the beliefs over a learned temperature.

    Args:
        pairwise: returns the tables of :func:`beliefs`, across and down, such as :class:`Potts`.
        iterations: of the four sweeps.
        temperature: at the beginning.
    """

    def __init__(
        self, pairwise: nn.Module, *, iterations: int = 1, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.pairwise = pairwise
        self.iterations = iterations
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def beliefs(self, cost: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return :func:`beliefs` with this layer's pairwise costs, ``[B, K, H, W]``."""
        across, down = self.pairwise()
        return beliefs(cost, across, down, weights=weights, iterations=self.iterations)

    def forward(self, cost: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return -self.beliefs(cost, weights) / self.log_temperature.exp()


def cost_of(logits: Tensor) -> Tensor:
    """Return minus the probabilities of logits ``[B, K, H, W]``, as costs."""
    return -logits.softmax(1)
