"""The variance of one layer's forward gradients: square of the error over that of the gradient.

By the formula it is d + 1 for Gaussian and d - 1 for Rademacher noise in d dimensions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import common
from benchmarks.common import Target
from pipelocal.forward_gradient import ForwardRun, Noise, Program
from pipelocal.objective import LGFG

Row = dict[str, Any]


def measured(draws: int) -> list[Row]:
    """A row for each number of dimensions and kind of noise: the ratio measured, and the formula's.

    Args:
        draws: estimates of each.
    """
    rows: list[Row] = []
    torch.manual_seed(0)
    for units in (4, 16, 64, 256):
        body = nn.Sequential(nn.Linear(7, units), nn.Tanh()).double()
        x = torch.randn(1, 7).double()
        upstream = torch.randn(1, units).double()
        exact = torch.autograd.grad(body(x), [*body.parameters()], upstream)
        kinds: tuple[Literal["activity", "weight"], ...] = ("activity", "weight")
        for perturb in kinds:
            for noise, more in (("gaussian", 1), ("rademacher", -1)):
                drawn, total = Noise(noise, 1), 0.0
                for _ in range(draws):
                    body.zero_grad()
                    run = ForwardRun(Program.of(body), x, LGFG(perturb=perturb), drawn)
                    run.backward(upstream, wants_input=False)
                    total += _distance([p.grad for p in body.parameters()], exact)
                dimensions = units if perturb == "activity" else 8 * units
                rows.append(
                    {
                        "perturb": perturb,
                        "noise": noise,
                        "dimensions": dimensions,
                        "measured": total / draws,
                        "formula": dimensions + more,
                    }
                )
    return rows


def _distance(found: Sequence[torch.Tensor | None], exact: Sequence[torch.Tensor]) -> float:
    """The square of the distance over that of the exact gradient."""
    pairs = [(one, two) for one, two in zip(found, exact, strict=True) if one is not None]
    far = sum(float((one - two).square().sum()) for one, two in pairs)
    return far / sum(float(two.square().sum()) for two in exact)


def target(spreads: Sequence[Row]) -> Target:
    """The measured variances are the formula's."""
    off = statistics.fmean(abs(row["measured"] / row["formula"] - 1) for row in spreads)
    return common.at_most("variance of a layer's gradient off the formula, mean share", off, 0.15)


def show(spreads: Sequence[Row]) -> None:
    """Print the table."""
    common.print_table(
        "square of the error of one layer's gradient over that of the gradient",
        ("noise", "dimensions", "measured", "formula"),
        [
            (
                f"{row['perturb']}, {row['noise']}",
                str(row["dimensions"]),
                f"{row['measured']:.1f}",
                str(row["formula"]),
            )
            for row in spreads
        ],
    )


def plot(spreads: Sequence[Row], path: Path) -> None:
    """Draw measured variances over the formula's."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(5, 4))
    most = max(row["formula"] for row in spreads)
    axes.plot([1, most], [1, most], color="grey", label="formula")
    for perturb in ("activity", "weight"):
        for noise in ("gaussian", "rademacher"):
            own = [r for r in spreads if (r["perturb"], r["noise"]) == (perturb, noise)]
            x, y = ([r[key] for r in own] for key in ("formula", "measured"))
            axes.plot(x, y, "o", label=f"{perturb}, {noise}")
    axes.set(xscale="log", yscale="log", xlabel="formula", ylabel="measured")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
