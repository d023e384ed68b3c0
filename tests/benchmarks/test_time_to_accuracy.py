"""Time to accuracy: parts of a pass, what learns alike, and steps and curves put together."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.common import BenchmarkError
from benchmarks.throughput import peer
from benchmarks.time_to_accuracy import parts, report, steps
from benchmarks.time_to_accuracy.curves import Curve, best, first_there, searched
from benchmarks.time_to_accuracy.steps import Measured
from benchmarks.time_to_accuracy.work import SLOW, Learner, Method, Setting, Work, methods
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import ArrayDataset
from pipelocal.data.batches import BatchStream
from pipelocal.run.blueprint import Blueprint
from pipelocal.tasks.classification import cross_entropy
from tests.launching import start, world_of

SEED, ROWS = 3, 8
WORK = Work(
    data="digits",
    data_root=None,
    model="resnet8",
    batch_size=64,
    passes=(2,),
    search_passes=1,
    rates=(0.05, 0.1),
    objective="greedy",
    head="linear",
    bf16=False,
    channels_last=False,
    seed=0,
)
HERE, THERE = Setting(ranks=2, link=None), Setting(ranks=4, link=SLOW)
OWN = Method(kind="pipelocal", wire="float32")


def test_four_epochs_are_a_pass_in_an_order_of_its_own() -> None:
    dataset = parts.digits.load(None, SEED)
    assert isinstance(dataset, parts.PartedDataset)
    # Every sample gets its own number as its first pixel.
    numbered = replace(dataset, whole_x=dataset.whole_x.clone())
    numbered.whole_x[:, 0, 0, 0] = torch.arange(len(dataset.whole_x))
    stream = BatchStream(numbered, batch_size=64, seed=SEED, drop_last=True)
    assert stream.smallest_batch == 64

    def ids(epoch: int) -> Tensor:
        scale = float(stream._scale)
        found = [b.x[:, 0, 0, 0] / scale + float(stream._centre) for b in stream.train(epoch)]
        return torch.cat(found).round().long()

    passes = [torch.cat([ids(4 * i + part) for part in range(parts.PARTS)]) for i in (0, 1)]
    for own in passes:
        assert len(set(own.tolist())) == len(own) == parts.PARTS * len(dataset.train_x)
    assert not torch.equal(*passes)
    assert torch.equal(ids(5), ids(5))


def test_without_test_data_the_training_is_the_same() -> None:
    tested, untested = (entry.load(None, SEED) for entry in (parts.digits, parts.digits_untested))
    assert isinstance(untested, ArrayDataset)
    assert len(untested.test_x) == 0 < len(tested.test_x)
    assert parts.reference("fashion-mnist", tested=False).endswith(
        "parts.py:fashion_mnist_untested"
    )
    batches = [next(BatchStream(d, batch_size=8, seed=SEED).train(2)) for d in (tested, untested)]
    assert torch.equal(batches[0].x, batches[1].x)


def blueprint(cut: str) -> Blueprint:
    config = TrainConfig(model="resnet8", data="digits", cut=cut, objective="greedy", head="linear")
    return blueprint_of(config)


def test_schedules_and_ddp_learn_as_the_batch_in_parts(tmp_path: Path) -> None:
    """What one curve stands for: 1F1B, its interleaved form, and DDP over as many ranks as micro-batches."""
    cuts = {"1F1B": "block2", "interleaved 1F1B": "block1,block2,block3", "DDP": "block2"}

    def body(rank: int) -> None:
        world_of(rank)
        for method, cut in cuts.items():
            own = blueprint(cut)
            x, target = peer.random_batch(own, ROWS)
            trained: list[nn.Module] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(peer, "sgd", noting(trained))
                if method == "DDP":
                    step = peer.plain_step(own, x, target, ddp={})
                else:
                    step = peer.pipeline_step(own, method, 2, x, target)
            step()
            (whole,) = trained
            modules = [whole] if method == "DDP" else list(whole.children())
            values = [flat(module) for module in modules]
            torch.save(values, tmp_path / f"{method}-{rank}.pt")
        dist.barrier()
        os._exit(0)  # live DDP objects can deadlock destroy_process_group

    ranks = start(tmp_path / "ranks", body, 2)
    assert ranks.wait() == [0, 0], ranks.output()
    expected = in_two_parts(blueprint("block2"))
    for method in cuts:
        found = [torch.load(tmp_path / f"{method}-{rank}.pt") for rank in range(2)]
        if method == "DDP":
            assert torch.equal(found[0][0], found[1][0])
            values = found[0][0]
        else:  # stage i is on rank i modulo 2
            values = torch.cat([own[i] for i in range(len(found[0])) for own in found])
        torch.testing.assert_close(values, expected, msg=lambda text: f"{method}: {text}")  # noqa: B023


def noting(trained: list[nn.Module]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """The peers' optimizer, which notes what it is for."""

    def sgd(module: nn.Module) -> torch.optim.Optimizer:
        trained.append(module)
        return plain(module)

    plain = peer.sgd
    return sgd


def in_two_parts(own: Blueprint) -> Tensor:
    """The weights of the whole model after a step on a batch of which BatchNorm sees each half by itself."""
    model = own.chain.build_whole(seed=0)
    optimizer = peer.sgd(model)
    x, target = peer.random_batch(own, ROWS)
    for part, wanted in zip(x.chunk(2), target.chunk(2), strict=True):
        (cross_entropy(model(part), wanted) / 2).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return flat(model)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def curve(learner: Learner, *accuracies: float, passes: int = 2) -> Curve:
    points = [(10 * (i + 1), accuracy) for i, accuracy in enumerate(accuracies)]
    tried: dict[float, float | None] = {0.1: accuracies[-1]}
    return Curve(learner=learner, passes=passes, rate=0.1, tried=tried, points=points, command="")


def measured(folder: Path) -> Measured:
    found = Measured(WORK, folder)
    for setting, kinds in PLAN:
        for method, seconds in zip(kinds, (0.5, 2.0), strict=True):
            found.of(setting, method).append(seconds)
    return found


PLAN = [
    (HERE, [OWN, Method(kind="DDP")]),
    (THERE, [OWN, Method(kind="1F1B", micro_batches=4)]),
]


def test_time_is_steps_times_a_step_and_the_fill(tmp_path: Path) -> None:
    curves = {
        Learner(parts=2): curve(Learner(parts=2), 0.5, 0.9),
        Learner(parts=4): curve(Learner(parts=4), 0.5, 0.885),
        OWN.learner(2): curve(OWN.learner(2), 0.895, 0.8, 0.91),
        OWN.learner(4): curve(OWN.learner(4), 0.3, 0.7, 0.89),
    }
    rows = report.time_rows(PLAN, curves, 0.89, measured(tmp_path))
    assert [row["steps"] for row in rows] == [10, 20, 30, None]
    seconds = [row["seconds"] for row in rows]
    assert seconds == [10 * 0.5 + 0.5, 20 * 2.0, pytest.approx(30 * 0.5 + 3 * 0.55), None]
    assert [row["time_over_pipelocal"] for row in rows] == [1, pytest.approx(40 / 5.5), 1, None]
    (target,) = report.make_targets(rows)  # where no other method gets there, there is no ratio
    assert target.value == pytest.approx(5.5 / 40)
    assert target.met
    curves[OWN.learner(2)] = curve(OWN.learner(2), 0.88)
    rows = report.time_rows(PLAN, curves, 0.89, measured(tmp_path))
    assert [row["time_over_pipelocal"] for row in rows] == [None, None, 1, None]
    (missed,) = report.make_targets(rows)
    assert (missed.value, missed.met) == (None, False)


def test_a_learner_takes_the_length_that_gets_there_first() -> None:
    reference, own = Learner(parts=2), OWN.learner(2)
    found = [
        curve(reference, 0.5, 0.9, passes=2),
        curve(own, 0.5, 0.88, passes=2),
        curve(reference, 0.5, 0.85, 0.95, passes=3),
        curve(own, 0.5, 0.8, 0.9, 0.91, passes=4),
        curve(own, 0.5, 0.7, 0.8, 0.9, passes=5),
    ]
    assert report.wanted_accuracy(found) == pytest.approx(0.89)
    assert [c.passes for c in first_there(found, 0.89).values()] == [2, 4]
    assert [c.passes for c in first_there(found, 0.99).values()] == [3, 4], "the nearest"


def test_kept_steps_are_gone_on_with(tmp_path: Path) -> None:
    first = measured(tmp_path)
    first.keep()
    again = Measured(replace(WORK, rates=(0.3,), passes=(9,)), tmp_path)
    assert again.seconds == first.seconds
    assert list(steps.measure(WORK, PLAN, 1, again)) == []
    with pytest.raises(BenchmarkError, match="of other options: give another folder"):
        Measured(replace(WORK, batch_size=32), tmp_path)


def test_each_method_has_its_fastest_form_in_later_rounds(tmp_path: Path) -> None:
    forms = [OWN, *(Method(kind="1F1B", micro_batches=m) for m in (2, 4)), Method(kind="DDP")]
    found = Measured(WORK, tmp_path)
    for method, seconds in zip(forms, (1.0, 3.0, 2.0, 4.0), strict=True):
        found.of(HERE, method).append(seconds)
    assert steps.fastest_forms(HERE, forms, found) == [forms[0], forms[2], forms[3]]


def test_forms_that_are_tried() -> None:
    names = [method.name for method in methods(WORK, HERE, units=4, quick=False)]
    assert [name for name in names if "interleaved" in name] == [
        f"interleaved 1F1B, m = {count}" for count in (2, 4, 8)
    ]
    far = methods(WORK, THERE, units=4, quick=False)
    assert [method.window for method in far if method.kind == "pipelocal"] == [2, 8, 2, 8]
    assert [method.micro_batches for method in far if method.kind == "1F1B"] == [4, 8]
    assert not any(method.kind == "interleaved 1F1B" for method in far), "8 stages of 4 units"


def test_the_best_rate_is_that_of_the_search(tmp_path: Path) -> None:
    learner = Learner(parts=2)
    assert best(learner, {0.2: None, 0.1: 0.7, 0.05: 0.7}) == 0.05
    with pytest.raises(BenchmarkError, match="diverged with every rate: give lower --rates"):
        best(learner, {0.1: None})
    narrow = Learner(stages=2, wire="int8")
    assert searched(WORK, narrow) == Learner(stages=2, wire="float32")
