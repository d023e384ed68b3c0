"""What snapshots cost: how long training pauses for one, and how much slower a run with them is.

Two ranks, one thread each; every model with and without snapshots, in turns::

    python benchmarks/snapshots/run.py --quick --json snapshots.json
    python benchmarks/snapshots/run.py --json snapshots.json
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, torchrun
from benchmarks.common import Target
from pipelocal.config import TrainConfig

RANKS = 2
LOG_EVERY = 8
NOT_COUNTED = 2
"""Records at the start that are left out of a run's rate."""
MOST_SHARE = 0.05
"""Goal: of the time of training."""

Row = dict[str, Any]
Metrics = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A training, and how often it is saved."""

    name: str
    config: TrainConfig
    every: int
    """Batches between two snapshots."""


def works(text: str) -> list[Work]:
    """What is trained; ``text`` is the file for the language model."""
    base = TrainConfig(
        epochs=1000,
        evaluate_every=1000,
        log_every=LOG_EVERY,
        lr=0.001,
        drop_last=True,
        stages=RANKS,
        head="linear",
    )
    image = replace(base, model="resnet20", data="synthetic", batch_size=64, max_steps=160)
    words = replace(base, model="gpt", data="text64", data_root=text, optimizer="adamw")
    return [
        Work(name="ResNet-20", config=image, every=20),
        Work(name="GPT, AdamW", config=replace(words, batch_size=32, max_steps=160), every=20),
        Work(
            name="MLP, wide",
            config=replace(base, model=WIDE_MLP, data="synthetic", batch_size=64, max_steps=320),
            every=40,
        ),
    ]


WIDE_MLP = f"{Path(__file__).with_name('wide.py')}:wide"
"""Many parameters and little computing: the hardest case."""


def main() -> None:
    """Measure, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--rounds", type=int, default=3, help="all runs in turns, so many times")
    options = parser.parse_args()
    common.check_writable(options.json)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        text = Path(scratch, "text")
        text.write_bytes(random.Random(0).randbytes(400_000))
        chosen = works(str(text))
        if options.quick:
            options.rounds, chosen = 1, chosen[:1]
        for work in chosen:
            rows.append(measure(work, options.rounds))
    targets = make_targets(rows)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "ranks": RANKS},
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def measure(work: Work, rounds: int) -> Row:
    """A row of figures; times as shares of a batch's time, as the machine's speed is not constant."""
    ratios, pauses, waits = [], [], []
    for round_ in range(rounds):
        without = seconds_of_a_batch(
            torchrun.metrics_over_ranks(RANKS, replace(work.config, keep_snapshots=0))
        )
        metrics = torchrun.metrics_over_ranks(
            RANKS, replace(work.config, snapshot_every=work.every)
        )
        with_them = seconds_of_a_batch(metrics)
        ratios.append(with_them / without)
        own = [record for record in metrics if record["event"] == "snapshot"]
        pauses.append(statistics.fmean(record["pause_s"] for record in own) / without)
        waits.append(max(record["pause_s"] for record in own) / without)
        print(f"{work.name}: round {round_ + 1} of {rounds}", flush=True)
    batches = statistics.median(pauses)
    return {
        "model": work.name,
        "batch_size": work.config.batch_size,
        "every": work.every,
        "pause_over_batch": batches,
        "pause_over_batch_each_round": pauses,
        "longest_pause_over_batch": statistics.median(waits),
        "share_of_time": batches / work.every,
        "time_with_over_without": statistics.median(ratios),
        "time_with_over_without_each_round": ratios,
    }


def seconds_of_a_batch(metrics: Metrics) -> float:
    """The mean of a run in the long run, pauses included."""
    records = [r for r in metrics if r["event"] == "train" and r["stage"] == RANKS]
    first, last = records[NOT_COUNTED], records[-1]
    return float((last["time_s"] - first["time_s"]) / (last["step"] - first["step"]))


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Less than a twentieth of the time."""
    return [
        common.at_most(
            f"{row['model']}: share of the time that a stage pauses, every {row['every']} batches",
            [pause / row["every"] for pause in row["pause_over_batch_each_round"]],
            MOST_SHARE,
        )
        for row in rows
    ]


def show(rows: Sequence[Row]) -> None:
    """A line for each model."""
    common.print_table(
        "snapshots",
        ("model", "every", "pause, batches", "longest", "share of time", "time over without"),
        [
            (
                row["model"],
                str(row["every"]),
                f"{row['pause_over_batch']:.3f}",
                f"{row['longest_pause_over_batch']:.3f}",
                f"{row['share_of_time']:.4f}",
                f"{row['time_with_over_without']:.3f}",
            )
            for row in rows
        ],
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """The share of time that pauses take, by the interval, from the pause measured at one interval."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4))
    intervals = [1, 2, 5, 10, 20, 50, 100, 200]
    for row in rows:
        shares = [row["pause_over_batch"] / every for every in intervals]
        axes.plot(intervals, shares, "-", label=row["model"])
        axes.plot([row["every"]], [row["share_of_time"]], "o", color=axes.lines[-1].get_color())
    axes.axhline(MOST_SHARE, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="batches between snapshots", ylabel="share of time")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
