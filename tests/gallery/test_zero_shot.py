"""What docs/gallery/zero_shot says of its layer, policy, figures and head is so, and it trains over ranks."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal.seeding import seeded

FOLDER = Path(__file__).parents[2] / "docs" / "gallery" / "zero_shot"
sys.path.insert(0, str(FOLDER))
import digit_pairs as data  # noqa: E402
from partial_convolution import PartialConv2d  # noqa: E402
from policy_gradient import PolicyGradient  # noqa: E402
from region_policy import (  # noqa: E402
    entropy,
    log_policy,
    pick,
    policy_loss,
    rewards,
    to_go,
)
from zero_shot_head import ZeroShotHead, in_cells  # noqa: E402
from zero_shot_task import ZeroShot, best_gamma  # noqa: E402

from tests.test_gallery import NEAR, figures_of  # noqa: E402

REGIONS, STEPS = 4, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Partial convolution.


def partial_convolution() -> PartialConv2d:
    with seeded(0, "partial convolution"):
        return PartialConv2d(3, 4).double()


def test_a_full_mask_is_the_ordinary_convolution() -> None:
    """At the border up to the scale: what is outside is closed."""
    made, x = partial_convolution(), draw(2, 3, 5, 6)
    found, ordinary = made(x, torch.ones(2, 1, 5, 6).double()), made.convolution(x)
    inner = (..., slice(1, -1), slice(1, -1))
    assert torch.allclose(found[inner], ordinary[inner], rtol=0, atol=1e-12)
    bias = made.convolution.bias
    assert bias is not None
    corner = (ordinary[..., 0, 0] - bias) * 9 / 4 + bias
    assert torch.allclose(found[..., 0, 0], corner, rtol=0, atol=1e-12)
    assert torch.equal(made(x), found)


def test_it_makes_no_difference_whether_the_rest_is_closed_or_cut_off() -> None:
    made, x = partial_convolution(), draw(2, 3, 6, 4)
    for region, cell in enumerate(in_cells(x, 2).unbind(1)):
        where = (
            ...,
            slice(3 * (region // 2), 3 * (region // 2) + 3),
            slice(2 * (region % 2), 2 * (region % 2) + 2),
        )
        assert torch.equal(x[where], cell)
        mask = torch.zeros(2, 1, 6, 4).double()
        mask[where] = 1
        assert torch.allclose(made(x, mask)[where], made(cell), rtol=0, atol=1e-12)


def test_an_empty_mask_gives_nothing() -> None:
    found = partial_convolution()(draw(2, 3, 5, 6), torch.zeros(2, 1, 5, 6).double())
    assert not found.any()


def test_what_is_masked_has_no_influence() -> None:
    made, x = partial_convolution(), draw(2, 3, 5, 6).requires_grad_()
    mask = (draw(2, 1, 5, 6, seed=1) > 0.3).double()
    found = made(x, mask)
    other = torch.where(mask > 0, x.detach(), float("nan"))
    assert torch.equal(made(other, mask), found)
    found.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[(mask == 0).expand_as(x)].any()


def test_partial_convolution_by_loops() -> None:
    made, x = partial_convolution(), draw(2, 3, 5, 6)
    mask = (draw(2, 1, 5, 6, seed=1) > 0.3).double()
    weight, bias = made.state_dict()["convolution.weight"], made.state_dict()["convolution.bias"]
    wanted = torch.zeros(2, 4, 5, 6).double()
    for row, out, i, j in itertools.product(range(2), range(4), range(5), range(6)):
        total, opened = 0.0, 0
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            y, z = i + di, j + dj
            if 0 <= y < 5 and 0 <= z < 6 and mask[row, 0, y, z]:
                opened += 1
                total += float(weight[out, :, di + 1, dj + 1] @ x[row, :, y, z])
        if opened:
            wanted[row, out, i, j] = total * 9 / opened + float(bias[out])
    assert torch.allclose(made(x, mask), wanted, rtol=0, atol=1e-12)


# REINFORCE, by all 12 sequences of two of four regions.

FIRST, THEN = draw(REGIONS, seed=2), draw(REGIONS, REGIONS, seed=3)
"""Scores at the first step; and at the second, by the first pick."""
AT_FIRST, AT_THEN = draw(REGIONS, seed=4) + 5, draw(REGIONS, REGIONS, seed=5) + 3
"""Rewards of the first pick; and of the second, by both."""


def log_p_of(first: Tensor, then: Tensor, picks: Tensor) -> Tensor:
    """Log probabilities of picks ``[N, 2]``, by scores ``[N, 4]`` and ``[N, 4, 4]``."""
    rows, none = torch.arange(len(picks)), torch.zeros(len(picks), REGIONS, dtype=torch.bool)
    taken = none.scatter(1, picks[:, :1], True)
    steps = [log_policy(first, none), log_policy(then[rows, picks[:, 0]], taken)]
    return torch.stack(steps, 1).gather(2, picks.unsqueeze(2)).squeeze(2)


def returns_of(picks: Tensor) -> Tensor:
    steps = [AT_FIRST[picks[:, 0]], AT_THEN[picks[:, 0], picks[:, 1]]]
    return to_go(torch.stack(steps, 1))


def expected_gradient() -> Tensor:
    """That of the expected sum of rewards, by autograd through all sequences."""
    picks = torch.tensor(list(itertools.permutations(range(REGIONS), STEPS)))
    first, then = FIRST.clone().requires_grad_(), THEN.clone().requires_grad_()
    rows = len(picks)
    p = log_p_of(first.expand(rows, -1), then.expand(rows, -1, -1), picks).sum(1).exp()
    assert float(p.sum().detach()) == pytest.approx(1, abs=1e-12)
    found = torch.autograd.grad((p * returns_of(picks)[:, 0]).sum(), (first, then))
    return torch.cat([gradient.flatten() for gradient in found])


def estimates(picks: Tensor, baseline: Tensor) -> Tensor:
    """REINFORCE's estimate of the gradient from each row of picks, ``[N, 20]``."""
    rows = len(picks)
    first = FIRST.repeat(rows, 1).requires_grad_()
    then = THEN.repeat(rows, 1, 1).requires_grad_()
    loss = policy_loss(log_p_of(first, then, picks), returns_of(picks), baseline)
    found = torch.autograd.grad(-rows * loss, (first, then))
    return torch.cat([gradient.flatten(1) for gradient in found], 1)


@pytest.mark.parametrize("baseline", [[0.0, 0.0], [8.0, 3.0], [-1.0, 70.0]])
def test_the_expected_estimate_is_the_gradient_of_the_expected_reward(
    baseline: list[float],
) -> None:
    """With any constant baseline, and although each step has the rewards from it on alone."""
    picks = torch.tensor(list(itertools.permutations(range(REGIONS), STEPS)))
    assert len(picks) == 12
    rows = len(picks)
    p = log_p_of(FIRST.expand(rows, -1), THEN.expand(rows, -1, -1), picks).sum(1).exp()
    found = p @ estimates(picks, torch.tensor(baseline).double())
    assert torch.allclose(found, expected_gradient(), rtol=0, atol=1e-12)


def test_drawn_estimates_scatter_about_the_gradient_and_less_with_a_baseline() -> None:
    rows = 20_000
    none = torch.zeros(rows, REGIONS, dtype=torch.bool)
    with seeded(0, "draws"):
        one = pick(log_policy(FIRST.expand(rows, -1), none), sample=True)
        taken = none.scatter(1, one.unsqueeze(1), True)
        two = pick(log_policy(THEN[one], taken), sample=True)
    picks = torch.stack([one, two], 1)
    assert (one != two).all()
    spread = []
    for baseline in (torch.zeros(STEPS).double(), returns_of(picks).mean(0)):
        drawn = estimates(picks, baseline)
        error = drawn.std(0) / rows**0.5
        assert ((drawn.mean(0) - expected_gradient()).abs() <= 4 * error + 1e-12).all()
        spread.append(float(drawn.var(0).sum()))
    assert spread[1] < spread[0] / 4


def test_the_most_likely_region_is_picked_in_evaluation() -> None:
    taken = torch.tensor([[False, True, False, False]])
    log_p = log_policy(torch.tensor([[0.0, 9.0, 1.0, 1.0]]), taken)
    assert pick(log_p, sample=False).tolist() == [2]
    assert float(entropy(torch.zeros(1, 4).log_softmax(1))) == pytest.approx(
        torch.tensor(4.0).log()
    )


# Rewards.


def test_the_entropy_s_parts_add_up_to_what_all_steps_gained_where_the_answer_is_right() -> None:
    logits, labels = draw(6, 5, 7), torch.arange(6)
    logits[torch.arange(6), :, labels] += 20  # right throughout
    log_p = logits.log_softmax(-1)
    h = entropy(log_p)
    assert torch.allclose(h, -(log_p.exp() * log_p).sum(-1), rtol=0, atol=1e-12)
    both, gain = (rewards(logits, labels, certainty=weight) for weight in (1.0, 0.0))
    part = both - gain
    assert torch.allclose(part.sum(1), h[:, 0] - h[:, -1], rtol=0, atol=1e-12)


def test_certainty_counts_against_a_wrong_answer() -> None:
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]]).double()
    p = logits[0].softmax(-1)
    surer = (p * p.log()).sum(-1).diff()
    found = rewards(logits, torch.tensor([1]), certainty=2.0)[0]
    gain = p[:, 1].log().diff()
    assert torch.allclose(found, gain + 2 * torch.stack([-surer[0], surer[1]]), atol=1e-12)
    assert torch.allclose(to_go(found[None])[0], torch.stack([found.sum(), found[1]]))


# Figures.


def answers(table: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Logits and targets of a confusion table: how often a class, by rows, was taken for another."""
    pairs = [
        (label, said)
        for label, row in enumerate(table)
        for said, count in enumerate(row)
        for _ in range(count)
    ]
    labels, said = torch.tensor(pairs).T
    return F.one_hot(said, len(table)).double(), F.pad(labels.unsqueeze(1), (0, 1))


def test_figures_are_means_over_classes_of_any_size() -> None:
    task = ZeroShot(classes=4, seen=2, regions=1)
    output, target = answers([[8, 2, 0, 0], [1, 1, 2, 0], [3, 0, 1, 0], [0, 0, 5, 15]])
    found = task.figures(task.sums(output, target))
    s, u = (8 / 10 + 1 / 4) / 2, (1 / 4 + 15 / 20) / 2
    # Of class 2's answers "class 0" are ties among the unseen, of which the first is taken.
    wanted = {"s": s, "u": u, "H": 2 * s * u / (s + u), "unseen": (1 + 15 / 20) / 2}
    assert found == pytest.approx(wanted, abs=1e-12)
    halves = [task.sums(output[part], target[part]) for part in (slice(0, 20), slice(20, None))]
    assert found == task.figures({name: halves[0][name] + halves[1][name] for name in halves[0]})


def test_figures_of_classes_that_do_not_occur() -> None:
    task = ZeroShot(classes=3, seen=2, regions=1)
    output, target = answers([[2, 2, 0], [0, 0, 0], [0, 0, 0]])
    found = task.figures(task.sums(output, target))
    assert found["s"] == 0.5
    assert all(found[name] != found[name] for name in ("u", "H", "unseen"))
    output, target = answers([[0, 2, 0], [0, 0, 2], [2, 0, 0]])
    assert task.figures(task.sums(output, target))["H"] == 0


def test_gamma_is_what_makes_h_greatest() -> None:
    task = ZeroShot(classes=2, seen=1, regions=1)
    lead = torch.tensor([5.0, 4.0, 1.0, 3.0, 0.5, 0.2]).double()  # of the seen class
    target = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [1, 0]])
    gamma = best_gamma(task, torch.stack([lead, torch.zeros(6)], 1), target)
    assert 0.5 < gamma <= 1, "from 3 to 4 H is the same, and the least is taken"


# Training.


def head(classes: int = 6, attributes: Tensor | None = None, **options: Any) -> ZeroShotHead:
    if attributes is None:
        attributes = (draw(classes, 5, seed=7) > 0).float()
    given = {"seen": 4, "steps": STEPS, "width": 8} | options
    return ZeroShotHead((4, 4, 4), classes, attributes=attributes, **given)


def trained(attributes: Tensor) -> tuple[pl.Pipeline, dict[str, Any]]:
    """Two stages after five batches of classes 0 to 3."""
    classes = len(attributes)

    def build(feature_shape: tuple[int, ...], count: int) -> ZeroShotHead:
        assert feature_shape == (4, 4, 4)
        return head(count, attributes)

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (1, 4)]
    pipe = pl.Pipeline(
        nn.Sequential(*blocks, build((4, 4, 4), classes)),
        stages=2,
        head=build,
        task=ZeroShot(classes=classes, seen=4, regions=REGIONS),
        objective=PolicyGradient(STEPS),
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=0.01),
    )
    labels = torch.arange(40).unsqueeze(1) % 4
    target = torch.cat([labels, (draw(40, REGIONS, seed=8) > 0).long()], 1)
    train = TensorDataset(draw(40, 1, 4, 4).float() + labels[..., None, None], target)
    return pipe, pipe.fit(DataLoader(train, 8), epochs=1, progress=False)


def test_attributes_of_unseen_classes_do_not_matter_in_training() -> None:
    attributes = (draw(6, 5, seed=7) > 0).float()
    assert not torch.equal(attributes[4], attributes[5])
    states = []
    for kept in (attributes, attributes[[0, 1, 2, 3, 5, 4]], attributes[:4]):
        pipe, summary = trained(kept)
        states.append(pipe.module().state_dict())
        stages = [stage["figures"]["train"] for stage in summary["stages"]]
        assert all(0 <= figures["on digits"] <= 1 for figures in stages)
        assert all(figures["u"] is None for figures in stages), "no unseen class is in training"
        states[-1]["losses"] = torch.tensor([stage["loss"] for stage in summary["stages"]])
        assert torch.equal(states[-1].pop("2.attributes"), kept)
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[name], states[0][name]) for name in other)


def test_the_exported_network_holds_policy_attributes_and_gamma() -> None:
    attributes = (draw(6, 5, seed=7) > 0).float()
    pipe, _ = trained(attributes)
    net = pipe.module().eval()
    names = net.state_dict().keys()
    assert {"2.attributes", "2.gamma", "2.policy.layers.0.weight"} <= names
    fresh = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (1, 4)),
        head(attributes=torch.zeros(6, 5), gamma=3.0),
    ).eval()
    fresh.load_state_dict(net.state_dict())
    x = draw(3, 1, 4, 4, seed=9).float()
    assert torch.equal(fresh(x), net(x))
    assert net(x).shape == (3, 6)


def test_in_training_unseen_classes_are_no_answer_and_gamma_is_for_evaluation() -> None:
    with seeded(0, "head"):
        made = head(gamma=2.0)
    x = draw(5, 4, 4, 4, seed=6).float()
    training = made(x)
    assert (training[:, 4:] == float("-inf")).all()
    episode = made.take_episode()
    assert episode.logits.shape == (5, STEPS + 1, 4)
    assert torch.equal(training[:, :4], episode.logits[:, -1])
    assert (episode.picks[:, 0] != episode.picks[:, 1]).all()
    made.eval()
    less = made(x)
    made.gamma.zero_()
    assert torch.allclose(made(x) - less, torch.tensor([2.0] * 4 + [0.0] * 2), atol=1e-6)
    assert torch.equal(made.picks(x), made.picks(x)), "nothing is drawn in evaluation"


def test_all_regions_are_looked_at_in_any_order() -> None:
    with seeded(0, "head"):
        made = head(steps=REGIONS, learned=False).double().eval()
    x = draw(2, 4, 4, 4, seed=6)
    assert made.picks(x).tolist() == [[0, 1, 2, 3]] * 2
    turned = x.roll((2, 2), (2, 3))  # each region is in the place of the one opposite
    steps = [
        made(each) - made.describe(made._feature(each)) @ made.attributes.T for each in (x, turned)
    ]
    assert torch.allclose(steps[0], steps[1], rtol=0, atol=1e-12)


def test_a_head_that_does_not_fit_says_so() -> None:
    with pytest.raises(pl.UserError, match=r"attributes of 5 classes, 4 of them seen"):
        head(6, torch.zeros(5, 5))
    with pytest.raises(pl.UserError, match=r"5 of 2 x 2 regions of features 4 x 4"):
        head(steps=5)


# The mosaics, and the script.


def test_mosaics_are_what_their_targets_say() -> None:
    x, target = data.mosaics(data.TEST, range(data.CLASSES), 90, seed=1).tensors
    assert x.shape == (90, 1, 16, 16)
    assert target[:, 0].bincount().tolist() == [2] * data.CLASSES
    assert (target[:, 1:].sum(1) == 2).all()
    assert (data.ATTRIBUTES.sum(1) == 2).all()
    assert (data.ATTRIBUTES[: data.LEARNT].sum(0) == 4).all(), "every digit, and as often"
    assert (data.ATTRIBUTES[data.SEEN :].sum(0) == 3).all()
    digits = set(map(tuple, _digits().tolist()))
    cells = x.view(90, 2, 8, 2, 8).transpose(2, 3).reshape(90, 4, 64)
    for picture, holds in zip(cells, target[:, 1:], strict=True):
        assert [tuple(cell.tolist()) in digits for cell in picture] == holds.bool().tolist()


def _digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data).float() / 16


@pytest.mark.slow
def test_the_script_prints_the_same_figures_on_1_and_2_ranks(tmp_path: Path) -> None:
    figures = [each for size in (1, 2) for each in figures_of(FOLDER, tmp_path, size)]
    assert figures[1:] == figures[:1] * 2
    docstring = ast.get_docstring(ast.parse((FOLDER / "run.py").read_text())) or ""
    for text in (docstring, (FOLDER.parent / "README.md").read_text()):
        (told,) = re.findall(r'\{"unseen".*?\}', text)
        assert figures[0] == pytest.approx(json.loads(told), abs=NEAR, rel=NEAR)


@pytest.mark.slow
def test_the_long_form_compares_all_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("zero_shot_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, run)
    spec.loader.exec_module(run)
    monkeypatch.setattr(run, "FULL", run.Budget(mosaics=128, epochs=5, test=90))
    run.compare(1, str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == list(run.ARMS)
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in ("unseen", "s", "u", "H"))
        assert row["gamma"] >= 0
        assert row["batches_until"] in (None, 10), "a record is written every ten batches"
    picks = [row.get("on_digits") for row in rows]
    assert picks[0] is None, "the global feature looks at no region"
    assert picks[-1] == 0.5, "two of four places hold digits"
