"""What docs/gallery/contrastive says of its views and its loss is so, and it trains over ranks."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pipelocal as pl
from pipelocal.errors import DataError
from tests.test_gallery import NEAR, figures_of, told

FOLDER = Path(__file__).parents[2] / "docs" / "gallery" / "contrastive"
sys.path.insert(0, str(FOLDER))
from info_nce import InfoNCE  # noqa: E402
from two_views import Pairwise, TwoViews  # noqa: E402

IDS = torch.tensor([3, 0, 3, 7, 7, 0])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def brute_force(output: Tensor, ids: Tensor, temperature: float) -> float:
    """Row by row, as the formula is written."""
    total = 0.0
    for i, row in enumerate(output):
        scores = {
            j: math.exp(float(nn.functional.cosine_similarity(row, other, dim=0)) / temperature)
            for j, other in enumerate(output)
            if j != i
        }
        (other_view,) = [j for j in scores if ids[j] == ids[i]]
        total -= math.log(scores[other_view] / sum(scores.values()))
    return total / len(output)


def test_the_loss_is_that_of_a_loop() -> None:
    output = draw(6, 5)
    made = InfoNCE(temperature=0.3).loss(output, IDS)
    assert float(made.mean) == pytest.approx(brute_force(output, IDS, 0.3), abs=1e-12)
    assert made.weight == 6


def test_equal_rows_have_the_loss_of_a_guess() -> None:
    """Of 2B - 1 other rows, one is right: so the row itself is no choice."""
    made = InfoNCE().loss(torch.ones(6, 5, dtype=torch.float64), IDS)
    assert float(made.mean) == pytest.approx(math.log(5), abs=1e-12)


def test_the_order_of_rows_changes_nothing() -> None:
    output, order = draw(6, 5), torch.tensor([4, 2, 5, 0, 1, 3])
    task = InfoNCE()
    whole, permuted = task.loss(output, IDS).mean, task.loss(output[order], IDS[order]).mean
    torch.testing.assert_close(whole, permuted, rtol=0, atol=1e-12)


def test_the_other_view_is_found_where_it_is_nearest() -> None:
    """A view that is a negative would pull the loss of a perfect match up to log 2 and more."""
    output = nn.functional.one_hot(IDS, 8).double()
    task = InfoNCE(temperature=0.05)
    assert float(task.loss(output, IDS).mean) < 1e-6
    assert task.figures({k: torch.as_tensor(v) for k, v in task.sums(output, IDS).items()}) == {
        "found": 1.0
    }
    assert float(task.sums(output, IDS.roll(1))["found"]) < 6


@pytest.mark.parametrize("ids", [[0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
def test_a_batch_without_pairs_is_refused(ids: list[int]) -> None:
    with pytest.raises(DataError, match="two views of each"):
        InfoNCE().check_target(torch.tensor(ids), (32,))


def test_both_views_are_in_a_batch_and_differ() -> None:
    images = draw(6, 1, 8, 8).float()
    views = TwoViews(images, mirror=True)
    assert len(views) == 12
    torch.manual_seed(0)
    order = list(Pairwise(6))
    assert sorted(order) == list(range(12))
    for first, second in zip(order[::2], order[1::2], strict=True):
        (x, i), (y, j) = views[first], views[second]
        assert i == j == first // 2
        assert x.shape == y.shape == images[0].shape
        assert not torch.equal(x, y)


@pytest.mark.parametrize("objective", ["LoCo", "Greedy"])
def test_stages_learn_to_find_the_other_view(objective: str) -> None:
    """All of them, without a label; the draws of a sample depend on its index, so views differ here too."""
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    net = nn.Sequential(rows, nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 32))
    pipe = pl.Pipeline(
        net,
        cut=["1"],
        head=lambda features, dimensions: nn.Linear(features[0], dimensions),
        task=InfoNCE(),
        objective=getattr(pl.objectives, objective)(),
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=3e-3),
    )
    images = pl.data.load_dataset("digits", root=None, seed=0).train_x[:400]
    views = TwoViews(images, mirror=False)
    loader = DataLoader(views, batch_size=40, sampler=Pairwise(400))
    summary = pipe.fit(loader, DataLoader(views, batch_size=40), epochs=6, progress=False)
    found = [stage["figures"]["eval"]["found"] for stage in summary["stages"]]
    assert min(found) > 0.15, f"{found}: a guess is right in 1 of 39"


@pytest.mark.slow
def test_the_script_prints_the_same_figures_on_1_and_2_ranks(tmp_path: Path) -> None:
    figures = [each for size in (1, 2) for each in figures_of(FOLDER, tmp_path, size)]
    assert figures[1:] == figures[:1] * 2
    docstring = ast.get_docstring(ast.parse((FOLDER / "run.py").read_text())) or ""
    assert figures[0] == pytest.approx(told(docstring), abs=NEAR)
