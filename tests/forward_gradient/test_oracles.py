"""Forward gradients against autograd, in float64: exactly, where all directions are tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.closed_form.run import ClosedRun
from pipelocal.forward_gradient import ForwardRun, Noise, Program
from pipelocal.models.mixing import (
    GroupedLayerNorm,
    GroupedLinear,
    Residual,
    TokenMean,
    TokenMixing,
)
from pipelocal.objective import LGFG
from pipelocal.seeding import seeded

TOKENS, CHANNELS, GROUPS = 2, 6, 2
Estimate = list[Tensor]


def block() -> nn.Sequential:
    """A block of LocalMixer with its residual sum, and another norm, which has parameters."""
    norm = GroupedLayerNorm
    linear = nn.Linear(CHANNELS, CHANNELS)
    grouped = GroupedLinear(CHANNELS, CHANNELS, GROUPS)
    mixing = (norm(), TokenMixing(TOKENS, TOKENS), nn.LayerNorm(CHANNELS), nn.ReLU())
    channels = (norm(), linear, norm(), nn.ReLU(), norm(GROUPS), grouped, norm(GROUPS))
    return nn.Sequential(Residual(*mixing, *channels), nn.ReLU())


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2))


BODIES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "block": (block, (TOKENS, CHANNELS)),
    "two blocks": (lambda: nn.Sequential(block(), block()), (TOKENS, CHANNELS)),
    "dense": (dense, (3,)),
    "tiny": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), (2,)),
    "layer": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh()), (3,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
        (2, 3, 3),
    ),
}


class Case:
    """A body with a batch, and the gradient of a loss at its output.

    Args:
        name: of a body.
        rows: in the batch.
    """

    def __init__(self, name: str, rows: int) -> None:
        make, shape = BODIES[name]
        with seeded(3, name):
            self.body = make().double()
            with torch.no_grad():
                for parameter in self.body.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
            self.x = torch.randn(rows, *shape).double()
            out = self.body(self.x)
            self.upstream = torch.randn_like(out) / rows
        self.parameters = list(self.body.parameters())
        self.gradient = list(torch.autograd.grad(out, self.parameters, self.upstream))

    def run(self, options: LGFG, noise: Callable[[Tensor], Tensor]) -> ForwardRun:
        """The pass forward."""
        return ForwardRun(Program.of(self.body), self.x, options, noise)

    def estimate(self, options: LGFG, noise: Callable[[Tensor], Tensor]) -> Estimate:
        """The gradients of all parameters for this noise."""
        self.body.zero_grad()
        self.run(options, noise).backward(self.upstream, wants_input=False)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]


class Given:
    """Hands out the parts of one long vector as noise, one place after the other."""

    def __init__(self, vector: Sequence[float] | None = None, one: int | None = None) -> None:
        self.vector = vector
        self.one = one
        self.size = 0

    def __call__(self, like: Tensor) -> Tensor:
        start, self.size = self.size, self.size + like.numel()
        flat = like.new_zeros(like.numel())
        if self.vector is not None:
            flat += torch.tensor(self.vector[start : self.size]).to(flat)
        elif self.one is not None and start <= self.one < self.size:
            flat[self.one - start] = 1
        return flat.view(like.shape)


def size_of(case: Case, options: LGFG) -> int:
    """In how many dimensions the noise is."""
    noise = Given()
    case.run(options, noise)
    return noise.size


def total(estimates: Iterator[Estimate]) -> Estimate:
    """Sums of each parameter's."""
    return [torch.stack(each).sum(0) for each in zip(*estimates, strict=True)]


def check_close(found: Estimate, expected: Estimate) -> None:
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "rows", "options", "size"),
    [
        ("dense", 1, LGFG(), 5),
        ("tiny", 2, LGFG(), 6),
        ("tiny", 2, LGFG(perturb="weight"), 9),
    ],
    ids=["activity", "noise of each sample", "weight"],
)
def test_mean_over_all_signs_is_the_gradient(
    name: str, rows: int, options: LGFG, size: int
) -> None:
    case = Case(name, rows)
    assert size_of(case, options) == size
    signs = itertools.product((-1.0, 1.0), repeat=size)
    found = total(case.estimate(options, Given(each)) for each in signs)
    check_close([each / 2**size for each in found], case.gradient)


@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        ("block", 2, LGFG()),
        ("block", 1, LGFG(losses="one")),
        ("block", 2, LGFG(perturb="weight")),
        ("two blocks", 1, LGFG()),
        ("dense", 2, LGFG(losses="one")),
        ("dense", 2, LGFG(perturb="weight", losses="one")),
        ("convolution", 2, LGFG()),
        ("convolution", 2, LGFG(perturb="weight")),
    ],
)
def test_sum_over_a_basis_is_the_gradient(name: str, rows: int, options: LGFG) -> None:
    case = Case(name, rows)
    basis = range(size_of(case, options))
    check_close(total(case.estimate(options, Given(one=one)) for one in basis), case.gradient)


def derivatives(case: Case, run: ForwardRun) -> Tensor:
    """Of each row's losses along the noise, ``[B, tokens, groups]``."""
    (direction,) = run._directions
    return run._by_loss(case.upstream * direction.tangent)


def explicit_loss(head: nn.Linear, out: Tensor, target: Tensor, token: int, group: int) -> Tensor:
    """The loss of one token and group, for each row: of the mean, with all the rest held fast."""
    own = torch.zeros_like(out)
    width = CHANNELS // GROUPS
    own[:, token, group * width : (group + 1) * width] = 1
    held = torch.where(own > 0, out, out.detach())
    return F.cross_entropy(head(held.mean(1)), target, reduction="none") / len(out)


PARTS = list(itertools.product(range(TOKENS), range(GROUPS)))


def test_replicated_losses() -> None:
    """All are equal; their gradients sum up to that of one; and so do their derivatives along noise."""
    case = Case("block", 3)
    target = torch.tensor([2, 0, 1])
    with seeded(5, "head"):
        head = nn.Linear(CHANNELS, 3).double()
    out = case.body(case.x).detach().requires_grad_()
    one = F.cross_entropy(head(out.mean(1)), target)
    (at_out,) = torch.autograd.grad(one, out)
    losses = [explicit_loss(head, out, target, *part) for part in PARTS]
    for each in losses:
        torch.testing.assert_close(each.sum(), one, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(torch.stack(losses).sum(), out)
    torch.testing.assert_close(found, at_out, rtol=1e-12, atol=1e-15)
    # By formulas, as a stage does it:
    run = ClosedRun(nn.Sequential(TokenMean(), head), out.detach(), moves_buffers=False)
    at_logits = (run.out.softmax(1) - F.one_hot(target, 3)) / 3
    by_formula = run.backward(at_logits, wants_input=True)
    assert by_formula is not None
    torch.testing.assert_close(by_formula, at_out, rtol=1e-12, atol=1e-15)

    case.upstream = at_out
    noisy = case.run(LGFG(), Noise("gaussian", 1))
    ours = derivatives(case, noisy)
    tangent = noisy._directions[0].tangent
    for token, group in PARTS:

        def loss(y: Tensor, t: int = token, g: int = group) -> Tensor:
            return explicit_loss(head, y, target, t, g)

        expected = torch.func.jvp(loss, (out.detach(),), (tangent,))[1]
        torch.testing.assert_close(ours[:, token, group], expected, rtol=1e-11, atol=1e-15)


def test_noise_of_one_token_and_group_moves_its_own_loss_alone() -> None:
    case = Case("block", 2)
    ends = [TOKENS * CHANNELS * 2 * n for n in range(4)]  # of the three places for noise
    width = CHANNELS // GROUPS
    for site, kept in enumerate(["tokens", "tokens and groups", "tokens and groups"]):
        for token, group in PARTS:
            noise = torch.zeros(2, TOKENS, CHANNELS)
            noise[:, token, group * width : (group + 1) * width] = torch.randn(2, width)
            vector = torch.zeros(ends[-1])
            vector[ends[site] : ends[site + 1]] = noise.flatten()
            moved = derivatives(case, case.run(LGFG(), Given(vector.tolist()))) != 0
            if kept == "tokens and groups":
                assert moved.sum() <= 2
                moved[:, token, group] = False
            else:
                moved[:, token] = False
            assert not moved.any()


@pytest.mark.parametrize(("noise", "more"), [("gaussian", 1), ("rademacher", -1)])
@pytest.mark.parametrize("perturb", ["activity", "weight"])
def test_many_draws_are_as_far_off_as_the_formula_says(perturb: str, noise: str, more: int) -> None:
    """The variance of a draw is (d + 1) or (d - 1) times the square of the gradient."""
    # Of one layer the errors at the weights are those at the activations.
    case, draws = Case("layer" if perturb == "activity" else "tiny", 1), 400
    options = LGFG(perturb=perturb, noise=noise)  # type: ignore[arg-type]
    size = size_of(case, options)
    drawn = Noise(noise, 4)
    found = torch.stack(
        [torch.cat([g.flatten() for g in case.estimate(options, drawn)]) for _ in range(draws)]
    )
    gradient = torch.cat([g.flatten() for g in case.gradient])
    variance = (size + more) * gradient.square().sum()
    assert (found.mean(0) - gradient).norm() < 4 * (variance / draws).sqrt()
    assert (found - gradient).square().sum(1).mean() == pytest.approx(float(variance), rel=0.25)


def test_passes_are_averaged() -> None:
    case = Case("block", 2)
    drawn = Noise("rademacher", 7)
    singly = total(case.estimate(LGFG(noise="rademacher"), drawn) for _ in range(3))
    together = case.estimate(LGFG(noise="rademacher", passes=3), Noise("rademacher", 7))
    check_close(together, [each / 3 for each in singly])


def test_the_output_has_no_noise() -> None:
    case = Case("two blocks", 2)
    expected = case.body(case.x)
    for options in (LGFG(), LGFG(perturb="weight"), LGFG(passes=2)):
        out = case.run(options, Noise("gaussian", 1)).out
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
        assert not out.requires_grad
