"""The layer of docs/gallery/belief_propagation is exact where it claims to be, and trains over ranks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelocal

FOLDER = Path(__file__).parents[2] / "docs" / "gallery" / "belief_propagation"
sys.path.insert(0, str(FOLDER))
from beliefs import BeliefPropagation, Differences, EdgeWeights, Potts, beliefs  # noqa: E402
from label_mosaics import Mosaics, make  # noqa: E402
from label_networks import CUTS, LABELS, LevelHead, levels, potts, unary  # noqa: E402

from tests.test_gallery import NEAR, figures_of, told  # noqa: E402

Edge = tuple[tuple[int, int], tuple[int, int]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from 0 to 1, float64; no two labellings of them cost the same."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def less_least(x: Tensor) -> Tensor:
    """Beliefs of each pixel ``[B, K, H, W]``, less the least of them."""
    return x - x.amin(1, keepdim=True)


def rows_and_column(height: int, width: int, column: int) -> list[Edge]:
    """The edges of a comb: all rows, and one column."""
    rows = [((y, x), (y, x + 1)) for y in range(height) for x in range(width - 1)]
    return rows + [((y, column), (y + 1, column)) for y in range(height - 1)]


def min_marginals(
    cost: Tensor,
    edges: Iterable[Edge],
    across: Tensor,
    down: Tensor,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The least cost of all labellings with each label at each pixel, ``[K, H, W]``, by trying them all."""
    labels, height, width = cost.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    at = {pixel: number for number, pixel in enumerate(pixels)}
    all_labellings = torch.tensor(list(itertools.product(range(labels), repeat=len(pixels))))
    total = torch.zeros(len(all_labellings), dtype=cost.dtype)
    for (y, x), column in zip(pixels, all_labellings.T, strict=True):
        total += cost[column, y, x]
    for one, other in edges:
        sideways = one[0] == other[0]
        pair = (across if sideways else down)[
            all_labellings[:, at[one]], all_labellings[:, at[other]]
        ]
        weight = 1 if weights is None else weights[0 if sideways else 1][one]
        total += weight * pair
    found = torch.empty_like(cost)
    for (y, x), label in itertools.product(pixels, range(labels)):
        found[label, y, x] = total[all_labellings[:, at[y, x]] == label].min()
    return found


@pytest.mark.parametrize(("labels", "width"), [(2, 8), (4, 6), (7, 4)])
@pytest.mark.parametrize("standing", [False, True])
def test_on_a_chain_beliefs_are_min_marginals(labels: int, width: int, standing: bool) -> None:
    shape = (width, 1) if standing else (1, width)
    cost, across, down = (
        draw(1, labels, *shape),
        draw(labels, labels, seed=1),
        draw(labels, labels, seed=2),
    )
    weights = (draw(1, shape[0], shape[1] - 1, seed=3), draw(1, shape[0] - 1, shape[1], seed=4))
    pixels = [(n, 0) if standing else (0, n) for n in range(width)]
    wanted = min_marginals(
        cost[0], list(itertools.pairwise(pixels)), across, down, (weights[0][0], weights[1][0])
    )
    found = beliefs(cost, across, down, weights=weights)
    torch.testing.assert_close(less_least(found), less_least(wanted[None]), rtol=0, atol=1e-12)
    again = beliefs(cost, across, down, weights=weights, iterations=3)
    torch.testing.assert_close(less_least(again), less_least(found), rtol=0, atol=1e-12)


def test_after_one_iteration_a_belief_is_that_of_all_rows_and_its_own_column() -> None:
    cost, across, down = draw(1, 2, 3, 3), draw(2, 2, seed=1), draw(2, 2, seed=2)
    found = less_least(beliefs(cost, across, down))
    for column in range(3):
        comb = rows_and_column(3, 3, column)
        wanted = less_least(min_marginals(cost[0], comb, across, down)[None])
        torch.testing.assert_close(found[..., column], wanted[..., column], rtol=0, atol=1e-12)


def test_gradients_of_costs_prices_weights_and_temperature() -> None:
    """Where every minimum is attained once: a step of gradcheck is far smaller than any difference."""
    pairwise = Potts(3)
    layer = BeliefPropagation(pairwise).double()
    inputs = [draw(2, 3, 3, 4), draw(3, 3, seed=1), draw(3, 3, seed=2)]
    inputs += [draw(2, 3, 3, seed=3), draw(2, 2, 4, seed=4)]

    def by_tables(cost: Tensor, across: Tensor, down: Tensor, *weights: Tensor) -> Tensor:
        sideways, upright = weights
        return beliefs(cost, across, down, weights=(sideways, upright), iterations=2)

    def by_layer(cost: Tensor, log_temperature: Tensor, price: Tensor) -> Tensor:
        named = {"log_temperature": log_temperature, "pairwise.price": price}
        made: Tensor = torch.func.functional_call(layer, named, (cost,))
        return made

    assert torch.autograd.gradcheck(by_tables, [each.requires_grad_() for each in inputs])
    scalars = [layer.log_temperature.detach() + 0.3, pairwise.price.detach()]
    leaves = [each.clone().requires_grad_() for each in (inputs[0].detach(), *scalars)]
    assert torch.autograd.gradcheck(by_layer, leaves)


def test_gradients_of_windowed_costs_and_of_edges() -> None:
    window, weights = Differences(delta=1).double(), EdgeWeights(2).double()
    with torch.no_grad():
        weights.gain.copy_(draw(2, 2, seed=5))
        window.steps.copy_(-1 - draw(2, 2, 1, seed=6))
    cost, features = draw(1, 4, 2, 3), draw(1, 2, 2, 3, seed=7)
    names = ("steps", "last")

    def made(cost: Tensor, features: Tensor, *parameters: Tensor) -> Tensor:
        across, down = torch.func.functional_call(
            window, dict(zip(names, parameters, strict=True)), ()
        )
        return beliefs(cost, across, down, weights=weights(features))

    given = [cost, features, window.steps.detach(), window.last.detach() + draw(2, seed=8)]
    assert torch.autograd.gradcheck(made, [each.clone().requires_grad_() for each in given])


def test_of_several_labels_that_attain_a_minimum_the_lowest_gets_the_gradient() -> None:
    cost = torch.zeros(1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    table = torch.tensor([[0.0, 1.0], [5.0, 1.0]], dtype=torch.float64)  # both cost 1 beside a 1
    (grad,) = torch.autograd.grad(beliefs(cost, table, table)[0, 1, 0, 1], cost)
    # Of both messages, from label 0 each: what they have in common has no gradient. The pixel's own cost has.
    assert grad.tolist() == [[[[0.0, 0.0]], [[0.0, 1.0]]]]


def test_without_a_price_beliefs_are_the_costs() -> None:
    cost = draw(2, 3, 4, 5)
    assert torch.equal(beliefs(cost, torch.zeros(3, 3).double(), torch.zeros(3, 3).double()), cost)


def test_at_any_price_a_row_has_the_one_label_that_costs_it_least() -> None:
    cost = draw(1, 4, 3, 6)
    price = torch.full((4, 4), torch.inf, dtype=torch.float64).fill_diagonal_(0)
    found = beliefs(cost, price, torch.zeros_like(price))
    whole_row = cost.sum(3, keepdim=True).expand_as(cost)
    torch.testing.assert_close(less_least(found), less_least(whole_row), rtol=0, atol=1e-12)
    assert torch.equal(found.argmin(1), whole_row.argmin(1))


def test_a_mirrored_image_has_mirrored_beliefs() -> None:
    """To the last bit, if pairwise costs are the same in both directions."""
    cost, features = draw(1, 3, 4, 5), draw(1, 2, 4, 5, seed=1)
    edge_weights = EdgeWeights(2).double()
    torch.nn.init.normal_(edge_weights.gain, generator=torch.Generator().manual_seed(0))
    across, down = Potts(3).double()()
    for axis in (2, 3):
        there = beliefs(cost, across, down, weights=edge_weights(features), iterations=2)
        weights = edge_weights(features.flip(axis))
        back = beliefs(cost.flip(axis), across, down, weights=weights, iterations=2)
        assert torch.equal(back, there.flip(axis))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_has_the_bits_of_its_images_alone(dtype: torch.dtype) -> None:
    cost = draw(5, 4, 6, 7).to(dtype).requires_grad_()
    tables = [draw(4, 4, seed=1).to(dtype), draw(4, 4, seed=2).to(dtype)]
    together = beliefs(cost, tables[0], tables[1])
    (together_grad,) = torch.autograd.grad(together.square().sum(), cost)
    for number in range(5):
        alone = cost[number : number + 1].detach().requires_grad_()
        found = beliefs(alone, tables[0], tables[1])
        assert torch.equal(found[0], together[number])
        (grad,) = torch.autograd.grad(found.square().sum(), alone)
        assert torch.equal(grad[0], together_grad[number])


@pytest.mark.parametrize("delta", [1, 2, 4, 6])
def test_costs_by_difference_equal_the_whole_table(delta: int) -> None:
    """Within and beyond the window; with one of all labels and more there is nothing beyond."""
    labels = 5
    window = Differences(delta).double()
    with torch.no_grad():
        window.steps.copy_(
            draw(2, 2, delta, seed=1) - 2
        )  # another step for each difference and side
    short = window()
    far = torch.arange(labels) - torch.arange(labels)[:, None]  # [a, b] is b - a
    index = torch.where(far.abs() <= delta, far + delta, 2 * delta + 1)
    whole = [table[index] for table in short]
    cost, weights = draw(2, labels, 4, 5), (draw(2, 4, 4, seed=2), draw(2, 3, 5, seed=3))
    wanted = beliefs(cost, whole[0], whole[1], weights=weights)
    found = beliefs(cost, short[0], short[1], weights=weights)
    assert torch.equal(found, wanted)


def test_costs_by_difference_never_fall() -> None:
    for table in Differences(delta=2)():
        below, above, beyond = table[:3].flip(0), table[2:5], table[5:]
        assert table[2] == 0
        for side in (below, above):
            assert bool((torch.cat([side, beyond]).diff() > 0).all())


def mosaics() -> tuple[Mosaics, Mosaics]:
    return make(None, count=16)


def test_a_mosaic_has_a_label_for_each_pixel() -> None:
    train, test = mosaics()
    image, labels = test[3]
    assert image.shape == (1, 16, 16)
    assert labels.shape == (16, 16)
    assert len(train.classes) == LABELS
    assert torch.equal(test[3][0], image)  # the same noise again
    assert not torch.equal(train[3][0], train[3][0])
    parts = test.parts[3]
    corner = test.images[parts[0, 1]]  # above, on the right
    assert torch.equal(labels[:8, 8:] > 0, corner > 0.1)
    assert set(labels[:8, 8:].flatten().tolist()) <= {0, int(test.kinds[parts[0, 1]])}


def trained(net: torch.nn.Sequential, cut: str, **given: Any) -> torch.nn.Module:
    """Train for two batches; the plain network."""
    pipe = pipelocal.Pipeline(
        net,
        cut=[cut],
        task=pipelocal.tasks.Segmentation(classes=LABELS),
        objective=pipelocal.Greedy(),
        **{"head": "linear", **given},
    )
    train, test = mosaics()
    pipe.fit(train, test, epochs=1, batch_size=8, progress=False)
    return pipe.module()


def drawn(build: Any) -> torch.nn.Sequential:
    torch.manual_seed(0)
    net: torch.nn.Sequential = build((1, 16, 16), LABELS)
    return net


def test_stage_1_does_not_know_of_belief_propagation_in_stage_2() -> None:
    without, with_it = (
        trained(drawn(build), CUTS["unary"]).state_dict() for build in (unary, potts)
    )
    shared = [name for name in without if name.startswith(("conv1.", "conv2."))]
    assert shared
    assert all(torch.equal(without[name], with_it[name]) for name in shared)


def test_stage_2_learns_alone_and_the_layer_is_part_of_the_network() -> None:
    net = drawn(potts)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    whole = trained(net, CUTS["potts"], freeze_stage="1:0")
    after = whole.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {
        "classifier.propagation.pairwise.price",
        "classifier.propagation.log_temperature",
    } <= changed
    assert not {name for name in changed if name.startswith(("conv1.", "conv2."))}
    plain = drawn(potts)
    plain.load_state_dict(after)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(plain.eval()(x), whole.eval()(x))


def test_every_level_learns_by_a_loss_of_its_own() -> None:
    net = drawn(levels)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = trained(net, CUTS["levels"], head=LevelHead).state_dict()
    for level in ("coarse.propagation", "classifier"):
        name = f"{level}.pairwise.price"
        assert not torch.equal(after[name], before[name])


@pytest.mark.slow
def test_the_script_prints_the_same_figures_on_1_and_2_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one batch for each network in place of all."""
    fit = pipelocal.Pipeline.fit

    def short(self: pipelocal.Pipeline, *data: Any, **given: Any) -> dict[str, Any]:
        return fit(self, *data, **{**given, "epochs": 1, "max_steps": 1})

    monkeypatch.setattr(pipelocal.Pipeline, "fit", short)  # the forked ranks inherit it
    (alone,) = figures_of(FOLDER, tmp_path, 1)
    assert figures_of(FOLDER, tmp_path, 2) == [alone, alone]
    assert alone.keys() == told(docstring()).keys()


def docstring() -> str:
    return (FOLDER / "run.py").read_text().split('"""')[1]


def test_readme_and_script_tell_the_same_figures() -> None:
    readme = (FOLDER.parent / "README.md").read_text()
    (row,) = (line for line in readme.splitlines() if "[belief_propagation]" in line)
    assert told(row) == told(docstring())


@pytest.mark.slow
def test_the_script_prints_the_figures_that_are_told(tmp_path: Path) -> None:
    (figures,) = figures_of(FOLDER, tmp_path, 1)
    assert figures == pytest.approx(told(docstring()), abs=NEAR, rel=NEAR)
