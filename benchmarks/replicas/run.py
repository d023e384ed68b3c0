"""What replicas of the slow stage gain: samples a second of a model of which one stage is slow.

The slow stage computes (then two cores bound what can be gained), or waits (then they do not). All methods
take turns, round by round, and ratios are formed within a round::

    python benchmarks/replicas/run.py --quick --json replicas.json
    python benchmarks/replicas/run.py --json benchmarks/replicas/replicas.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, torchrun
from benchmarks.common import Target
from benchmarks.replicas.models import WAIT_S
from pipelocal.config import TrainConfig

MODELS = Path(__file__).with_name("models.py")
PEER = Path(__file__).parents[1] / "throughput" / "peer.py"
KINDS = ("computes", "waits")
DATA, BATCH, CUT = "digits", 64, "1,1,1"
LOG_EVERY = 12
NOT_COUNTED = 2
"""First records of a run, in which the pipeline fills."""

PLAIN = "one rank a stage"
Row = dict[str, Any]
Measure = Callable[[], float]


def main() -> None:
    """Measure, print, write."""
    options = parse()
    common.check_writable(options.json)
    rows: list[Row] = []
    for kind in KINDS:
        rows += compare(kind, options)
    targets = make_targets(rows)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1),
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="one short round, under 3 minutes")
    parser.add_argument("--rounds", type=int, default=5, help="all methods in turns, so many times")
    parser.add_argument("--steps", type=int, default=144, help="batches of a run (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 1, 48
    return options


def compare(kind: str, options: argparse.Namespace) -> list[Row]:
    """A row for every method, with its samples a second over those without replicas, in each round."""
    methods = methods_for(kind, options)
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(options.rounds):
        for name, (_, measure) in methods.items():
            rates[name].append(measure())
        print(f"{kind}: round {round_ + 1} of {options.rounds}", flush=True)
    rows = []
    for name, (ranks, _) in methods.items():
        ratios = [own / plain for own, plain in zip(rates[name], rates[PLAIN], strict=True)]
        rows.append(
            {
                "model": kind,
                "method": name,
                "ranks": ranks,
                "rate_over_plain": statistics.median(ratios),
                "rate_over_plain_each_round": ratios,
            }
        )
    return rows


def methods_for(kind: str, options: argparse.Namespace) -> dict[str, tuple[int, Measure]]:
    """By name, the ranks and what measures samples a second."""
    counts = ["1", "1,2,1"] if kind == "computes" else ["1", "1,2,1", "1,4,1"]
    methods: dict[str, tuple[int, Measure]] = {}
    for text in counts:
        ranks = 3 if text == "1" else sum(map(int, text.split(",")))
        name = PLAIN if text == "1" else f"--replicas {text}"
        methods[name] = (ranks, partial(own, kind, text, ranks, options.steps))
    methods["--replicas 4, all stages on every rank"] = (
        4,
        partial(own, kind, "4", 4, options.steps),
    )
    if kind == "computes":
        # Micro-batches would wait as often as they are many, so these are for this model alone.
        for schedule in ("GPipe", "1F1B"):
            measure = partial(peer, kind, schedule, 3, BATCH, options.steps, micro_batches=8)
            methods[f"{schedule}, m = 8, back-propagation"] = (3, measure)
    methods["DDP, back-propagation"] = (4, partial(peer, kind, "DDP", 4, 4 * BATCH, options.steps))
    return methods


def own(kind: str, replicas: str, ranks: int, steps: int) -> float:
    """Samples a second of pipelocal in the long run."""
    config = TrainConfig(
        model=f"{MODELS}:{kind}",
        data=f"{MODELS}:many_digits",
        cut=CUT,
        head="linear",
        objective="greedy",
        replicas=replicas,
        batch_size=BATCH,
        lr=0.01,
        max_steps=steps,
        epochs=1000,
        evaluate_every=1000,
        log_every=LOG_EVERY,
    )
    rates = [
        record["samples_per_second"]
        for record in torchrun.metrics_over_ranks(ranks, config)
        if record["event"] == "train" and record["stage"] == 3
    ]
    return float(statistics.median(rates[NOT_COUNTED:]))


def peer(
    kind: str, method: str, ranks: int, rows: int, steps: int, *, micro_batches: int = 1
) -> float:
    """Samples a second of another method."""
    arguments = [str(PEER), "--model", f"{MODELS}:{kind}", "--data", DATA, "--cut", CUT]
    arguments += ["--method", method, "--batch-size", str(rows), "--steps", str(steps // 3)]
    arguments += ["--micro-batches", str(micro_batches)]
    seconds = torchrun.launch(ranks, arguments, what=f"{kind}, {method}").splitlines()[-1]
    return rows / float(seconds)


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Uneven replication pays for either kind of slow stage."""
    found = {(row["model"], row["method"]): row["rate_over_plain_each_round"] for row in rows}
    return [
        common.at_least(f"{kind}: --replicas 1,2,1", found[kind, "--replicas 1,2,1"], goal)
        for kind, goal in (("computes", 1.2), ("waits", 1.7))
    ] + [common.at_least("waits: --replicas 1,4,1", found["waits", "--replicas 1,4,1"], 3.0)]


def show(rows: Sequence[Row]) -> None:
    """A line for each method."""
    common.print_table(
        f"samples a second over {PLAIN}, medians of the rounds (the slow stage of the second model waits "
        f"{1000 * WAIT_S:.0f} ms a batch)",
        ("slow stage, method", "ranks", "rate", "each round"),
        [
            (
                f"{row['model']}: {row['method']}",
                str(row["ranks"]),
                f"{row['rate_over_plain']:.2f}",
                " ".join(f"{ratio:.2f}" for ratio in row["rate_over_plain_each_round"]),
            )
            for row in rows
        ],
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of every method."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, panels = pyplot.subplots(1, len(KINDS), figsize=(13, 3.5))
    for axes, kind in zip(panels, KINDS, strict=True):
        of_kind = [row for row in rows if row["model"] == kind]
        names = [f"{row['method']} ({row['ranks']} ranks)" for row in of_kind]
        axes.barh(names, [row["rate_over_plain"] for row in of_kind])
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set(title=f"the slow stage {kind}", xlabel=f"samples a second over {PLAIN}")
        axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
