"""The comparison of methods: its arms, the search for their rates, and what its columns count."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import common, held_out, training
from benchmarks.accuracy import rates, tables
from benchmarks.accuracy.figures import edge_bytes
from benchmarks.accuracy.run import study
from benchmarks.accuracy.setups import BASE, Search, SetUp, head
from benchmarks.common import BenchmarkError
from benchmarks.cuts import multiply_adds_of_stage, peak_bytes_of_stage
from benchmarks.methods import bytes_back
from benchmarks.methods.setups import FOUR, SETUPS, arms
from benchmarks.training import Failure, Run
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import load_dataset

OPTIONS = argparse.Namespace(epochs=None, data_root=None, report=False, keep=None)
ROWS = 4


def test_every_arm_is_a_run_of_its_own_that_can_begin() -> None:
    for name in ("fashion", "resnet20-10"):
        setup = SETUPS[name]
        # auto stands by the name of what it is there, which takes a second to find out
        own = [arm for arm in setup.arms if arm != "auto"]
        configs = [setup.config(arm, OPTIONS) for arm in own]
        for config in configs:
            validate(config)
        assert len(set(configs)) == len(own)
        for claim in setup.claims:
            assert {claim.arm, claim.beside} <= setup.arms.keys()


def test_what_is_held_out_is_of_the_training_data() -> None:
    whole = load_dataset("digits", root=None, seed=0)
    parts = load_dataset(held_out.reference("digits"), root=None, seed=3)
    together = torch.cat([parts.train_x, parts.test_x]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(
        map(tuple, whole.train_x.flatten(1).tolist())
    )
    assert len(parts.test_x) == len(whole.train_x) // 10
    assert len(set(parts.test_y.tolist())) == 10
    again = load_dataset(held_out.reference("digits"), root=None, seed=4)
    assert torch.equal(parts.test_x, again.test_x)


def work(arm: str) -> list[float]:
    """Multiply-adds of a step of each stage."""
    config = config_of(arm)
    own = blueprint_of(config)
    return [multiply_adds_of_stage(own, config, k) for k in range(1, own.stages + 1)]


def config_of(arm: str) -> TrainConfig:
    setup = replace(SETUPS["quick"], arms=arms(FOUR, depth=2))
    return replace(setup.config(arm, OPTIONS), batch_size=ROWS)


def test_the_work_of_an_objective_is_in_its_steps() -> None:
    greedy = work("conv")
    # Of 16 channels at 8x8; forward and both gradients.
    decoder = 3 * ROWS * 64 * 9 * (16 * 12 + 12)
    assert work("conv, InfoPro")[0] - greedy[0] == decoder
    context = work("conv, ContSup E")
    assert context[0] == greedy[0]
    # Of the image no gradient is wanted; but one of the body's input, for the encoder.
    first, second, body = (ROWS * 64 * 9 * size for size in (12, 12 * 16, 16 * 16))
    assert context[1] - greedy[1] == 2 * first + 3 * second + body
    strict = work("conv, BWBPF")
    assert strict[:3] == greedy[:3]
    assert strict[3] > greedy[3]
    # Two convolutions: a gradient of both for eta, and one more of the first where both losses go through.
    overlapping, guided = work("conv, LoCo"), work("conv, PGL, every 16")
    assert overlapping[0] == guided[0] == greedy[0]
    assert overlapping[1] - greedy[1] == 3 * body
    assert guided[1] - greedy[1] == body / 16
    assert all(own > plain for own, plain in zip(work("conv, SGR")[1:], greedy[1:], strict=True))


def test_an_uncut_network_holds_more_than_any_stage() -> None:
    whole, cut = map(config_of, ("conv, deep supervision", "conv"))
    stages = blueprint_of(cut)
    most = max(peak_bytes_of_stage(stages, cut, number) for number in range(1, 5))
    uncut = peak_bytes_of_stage(blueprint_of(whole), whole, 1)
    assert most < uncut < 4 * most


def run_of(
    config: TrainConfig, accuracy: float, *, stages: int = 4, went_on: bool = False, **last: int
) -> Run:
    """A finished run of 2 epochs of 100 samples, evaluated twice on 50."""
    figures = {"eval_accuracy": accuracy, "eval_loss": 0.5, "sent_bytes": 0}
    of_stages: list[dict[str, Any]] = [
        {**figures, "sent_bytes": 102_400} for _ in range(stages - 1)
    ]
    metrics = [{"event": "evaluate", "step": s, "stage": 1, "accuracy": 0.5} for s in (1, 2)]
    metrics += [{**record, "stage": stages} for record in metrics if stages > 1]
    train = {"event": "train", "step": 2, "stage": stages, "loss": 0.5, "accuracy": 0.9}
    return Run(
        config=config,
        folder=Path("nowhere"),
        summary={
            "steps": 2,
            "eval_accuracy": accuracy,
            "eval": {"loss": 0.5, "accuracy": accuracy},
            "stages": [*of_stages, {**figures, **last}],
        },
        metrics=[*metrics, train],
        data={"train_samples": 100, "test_samples": 50},
        went_on=went_on,
    )


def test_bytes_are_of_a_sample() -> None:
    config = TrainConfig(epochs=2)
    assert edge_bytes(run_of(config, 0.5)) == (1024, 0)
    assert edge_bytes(run_of(config, 0.5, backward_bytes=400)) == (1024, 2)
    assert edge_bytes(run_of(config, 0.5, stages=1)) is None
    assert edge_bytes(run_of(config, 0.5, went_on=True)) is None


def test_each_arm_trains_at_its_own_best_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """conv is best at 0.3 on what is held out, the others at 0.1; mlp diverges with every rate."""
    setup = SetUp(
        title="digits",
        options={"model": "resnet8", "data": "digits", "epochs": 2, "lr": 0.05},
        cut={"stages": 4},
        arms=BASE | {"conv": head("conv"), "mlp": head("mlp")},
        seeds=(0, 1),
        search=Search(rates=(0.1, 0.3), options={"epochs": 1}),
    )
    trained: list[TrainConfig] = []

    def train_each(configs: list[TrainConfig], **_: object) -> Any:
        for index, config in enumerate(configs):
            trained.append(config)
            if config.head == "mlp":
                yield index, Failure(config=config, code=1, reason="the loss is NaN or infinite")
                continue
            if config.data == "digits":
                accuracy = 0.8 + config.seed / 100
            else:
                assert (config.seed, config.epochs) == (100, 1)
                accuracy = 0.7 if (config.lr == 0.3) == (config.head == "conv") else 0.6
            yield index, run_of(config, accuracy, stages=1 if config.objective == "bp" else 4)

    monkeypatch.setattr(training, "train_each", train_each)
    monkeypatch.setattr(common, "load_pyplot", lambda: None)
    file, readme = tmp_path / "methods.json", tmp_path / "README.md"
    readme.write_text(f"{common.FIGURES}\n{common.END}\n")
    arguments = ["run.py", "--setups", "quick", "--json", str(file), "--into", str(readme)]
    arguments += ["--rates", str(tmp_path / "rates.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    study({"quick": setup}, default="quick", document="Study.", columns=tables.METHODS)

    written = json.loads(file.read_text())
    assert [(t["value"], t["met"]) for t in written["targets"]] == [(0, True)], "nothing flows back"
    found = {row["arm"]: row for row in written["results"]}
    assert {arm: row["learning_rate"] for arm, row in found.items()} == {
        "bp": 0.1,
        "linear": 0.1,
        "conv": 0.3,
    }
    assert found["conv"]["held_out_accuracy_by_rate"] == {"0.1": 0.6, "0.3": 0.7}
    full = [config for config in trained if config.data == "digits"]
    assert {config.seed for config in full} == {0, 1}
    assert all(config.head != "mlp" for config in full)
    titles, line = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in readme.read_text().splitlines()
        if line.startswith(("| method", "| `conv`"))
    )
    assert dict(zip(titles, line, strict=True)) == {  # of what is known of some arm
        "method": "`conv`",
        "rate": "0.3",
        "seeds": "2",
        "test": "80.50 ± 0.71",
        "points behind bp": "0.00 ± 0.00",
        "training": "90.00",
        "training loss": "0.5000",
        "KiB forward": "1.0",
        "KiB back": "0.0",
        "head of each stage": "80.5 80.5 80.5 80.5",
    }

    trained.clear()
    study({"quick": setup}, default="quick", document="Study.", columns=tables.METHODS)
    assert json.loads(file.read_text()) == written
    searched = [config.head for config in trained if config.data != "digits"]
    assert searched == ["mlp", "mlp"], "only an arm that has no rate yet"

    arguments += ["--add", "--arms", "conv", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    both = {"quick": setup, "other": setup}
    earlier = {**found["linear"], "setup": "other", "arm": "mlp"}
    written["results"].append(earlier)
    file.write_text(json.dumps(written))
    study(both, default="quick", document="Study.", columns=tables.METHODS)
    added = {(row["setup"], row["arm"]): row for row in json.loads(file.read_text())["results"]}
    assert [*added] == [("quick", "bp"), ("quick", "linear"), ("quick", "conv"), ("other", "mlp")]
    assert added["quick", "conv"]["seeds"] == [0]
    assert added["other", "mlp"]["test_accuracy"] == earlier["test_accuracy"]


def test_a_report_waits_for_all_rates_of_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ``a`` a rate diverged; of ``b`` one was not tried yet."""
    configs = {("s", arm, rate): TrainConfig(lr=rate) for arm in "ab" for rate in (0.1, 0.3)}
    failed = Failure(config=TrainConfig(), code=1, reason="the loss is NaN or infinite")
    kept = {id(config): failed for config in configs.values()}
    kept[id(configs["s", "b", 0.3])] = None  # type: ignore[assignment]
    monkeypatch.setattr(training, "kept_run", lambda config, _: kept[id(config)])
    runs = {key: run_of(configs[key], 0.5) for key in (("s", "a", 0.1), ("s", "b", 0.1))}
    options = argparse.Namespace(report=True, keep=Path("nowhere"))
    assert rates.tried(configs, runs, options) == {("s", "a"): {0.1: 0.5}}


def test_the_picture_goes_from_greedy_to_back_propagation() -> None:
    """Behind one head, by what flows back; other heads, and methods that send nothing, are no part of it."""

    def row(
        arm: str, back: float | None, accuracy: float, forward_only: bool = True
    ) -> dict[str, Any]:
        return {
            "arm": arm,
            "bytes_back": back,
            "forward_only": forward_only,
            "test_accuracy": {0: accuracy, 1: accuracy},
        }

    rows = [
        row("bp", None, 0.9),
        row("linear", 0, 0.5),
        row("conv", 0, 0.7),
        row("conv, InfoPro", 0, 0.71),
        row("conv, PGL, every 2", 512, 0.85, forward_only=False),
        row("conv, LoCo", 1024, 0.8, forward_only=False),
        row("auto, PGL, every 16", 64, 0.88, forward_only=False),
    ]
    points = bytes_back.series(rows, "conv")
    assert [point[:2] for point in points] == [
        ("greedy", 0),
        ("PGL, every 2", 0.5),
        ("LoCo", 1),
        ("bp", 1),
    ]
    assert [point[2] for point in points] == pytest.approx([70, 85, 80, 90])
    behind_auto = [name for name, _, _ in bytes_back.series(rows, "auto")]
    assert behind_auto == ["PGL, every 16", "bp"]


def test_of_rates_that_cannot_be_told_apart_the_lowest_is_taken() -> None:
    assert rates.best({0.1: 0.7283, 0.3: 0.7332, 1.0: 0.7382}) == 0.3
    assert rates.best({0.1: 0.7712, 0.3: 0.7975, 1.0: 0.7705}) == 0.3
    assert rates.best({0.1: 0.5, 0.3: 0.5}) == 0.1


def test_rates_of_another_grid_are_refused(tmp_path: Path) -> None:
    """A best of 0.03 to 0.3 is not the best of 0.1 to 1: nobody would see it in the table."""
    kept = tmp_path / "rates.json"
    kept.write_text('{"fashion": {"conv": {"0.03": 0.7, "0.1": 0.72}}}')
    with pytest.raises(BenchmarkError, match=r"'conv' was searched at 0\.03, .* 0\.1, 0\.3, 1;"):
        rates.known(kept, SETUPS)
