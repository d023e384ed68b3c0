"""What reconciliation buys, and what it costs: the study that the defaults come from.

Back-propagation, greedy, and sgr in many forms, behind several heads, on the same data, steps and first
weights: screened on one seed, then repeated on further seeds where it looks best (see :mod:`grid`).
From the repository's root::

    python benchmarks/reconciliation/run.py --quick --json reconciliation.json
    python benchmarks/reconciliation/run.py --data-root DIR --keep runs/study --json study.json
    python benchmarks/reconciliation/run.py --data-root DIR --keep runs/study --json study.json --only-kept
    python benchmarks/reconciliation/tables.py study.json

With ``--keep`` a study that was stopped goes on where it was, and ``--only-kept`` makes a result of what
there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError, Target
from benchmarks.reconciliation import grid
from benchmarks.reconciliation.cost import cost
from benchmarks.reconciliation.forms import FORMS
from benchmarks.reconciliation.study import Study
from benchmarks.reconciliation.summaries import compare_summaries

PARTS = ("study", "cost", "summaries")
WORTH = 0.3
"""Points over greedy, beyond the standard error, at which a form would pay."""
Row = dict[str, Any]


def main() -> None:
    """Train, measure, print, write."""
    options = parse(sys.argv[1:])
    device = common.resolve_device(options.device)
    common.check_writable(options.json)
    if not Path(grid.HERE, "models.py").is_file():
        raise BenchmarkError("run this from the root of the repository, where the models are found")
    rows, costs, summaries = [], [], []
    if "cost" in options.parts:
        model, rounds = ("resnet20", 3) if options.quick else ("resnet32", 9)
        costs = [cost(name, model=model, rounds=rounds) for name in FORMS if name != "greedy"]
        show_costs(costs)
    if "summaries" in options.parts:
        summaries = compare_summaries(steps=20 if options.quick else 200)
        show_summaries(summaries)
    if "study" in options.parts:
        rows = Study(options, device).run()
        show_study(rows)
    targets = make_targets(rows, costs)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1, device=device),
        results=[*rows, *costs, *summaries],
        targets=targets,
    )
    if any(row["cosine"] is not None for row in rows):
        plot(rows, options.json.with_suffix(".png"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="a short form of under 3 minutes, on digits")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure (all)")
    add("--rounds", nargs="+", default=grid.ROUNDS, choices=grid.ROUNDS, help="to train (all)")
    add("--heads", nargs="+", default=list(grid.HEADS), choices=grid.HEADS, help="which (all)")
    add("--forms", nargs="+", default=[], help="screen and carry these forms only, by name")
    add("--seed", type=int, default=0, help="of the screening rounds (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3, 4], help="of the round repeat")
    add("--repeat", type=int, default=8, help="how many cells it repeats (%(default)s)")
    add("--data", default="cifar10", help="data set (%(default)s)")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--train-samples", type=int, default=20_000, help="train on so many (%(default)s)")
    add("--epochs", type=int, default=2, help="passes over them (%(default)s)")
    add("--batch-size", type=int, default=100, help="samples in a batch (%(default)s)")
    add("--warmup-steps", type=int, default=20, help="batches of rising rate (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--keep", type=Path, metavar="DIR", help="keep finished runs, and go on from those there")
    add("--only-kept", action="store_true", help="train nothing: report on what is kept")
    add("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    if options.only_kept and options.keep is None:
        parser.error("--only-kept: give --keep, the folder of the runs")
    if options.seed in options.seeds:
        parser.error(
            f"--seeds: {options.seed} is the screening's; a gain that chose a cell is biased"
        )
    if options.quick:
        options.data, options.train_samples, options.epochs = "digits", None, 2
        options.heads, options.forms = ["linear", "downstream"], ["cosine 0.1, every batch"]
        options.rounds, options.repeat, options.seeds = ["screen", "repeat"], 1, [1]
        options.warmup_steps = 5
    return options


def make_targets(rows: list[Row], costs: list[Row]) -> list[Target]:
    """What the defaults must keep, and whether any form pays."""
    targets = []
    for row in costs:
        if row["form"] == "default":
            time_ratio, memory = row["step_time_over_greedy"], row["memory_over_greedy"]
            targets += [
                common.at_most("default sgr: mean step time over greedy", time_ratio, 1.25),
                common.at_most("default sgr: peak stage memory over greedy", memory, 1.10),
            ]
    gains = [row["gain"] for row in rows if row["gain"] is not None and row["weight"] > 0]
    sure = [g["mean"] - g["standard_error"] for g in gains if g["standard_error"] is not None]
    if sure:
        name = "points over greedy of the best repeated cell, less its standard error"
        targets.append(common.at_least(name, max(sure), WORTH))
    return targets


def show_study(rows: list[Row]) -> None:
    """Print the cells."""

    def number(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    def gain(found: dict[str, Any] | None) -> str:
        if found is None:
            return "-"
        error = found["standard_error"]
        return (
            f"{found['mean']:+.2f}{'' if error is None else f' ± {error:.2f}'} ({found['seeds']})"
        )

    common.print_table(
        "test accuracy in percent; points over greedy, when screened and on further seeds",
        (
            *("setting", "head", "form", "test", "screened", "repeated ± error (seeds)"),
            *("train loss", "cosine", "cap"),
        ),
        [
            (
                f"{row['model']} {row['stages']} {row['optimizer']}",
                *(row["head"], row["form"]),
                number(row["test_accuracy"] and row["test_accuracy"]["mean"], ".2f"),
                number(row["gain_when_screened"], "+.2f"),
                gain(row["gain"]),
                *(number(row[key]) for key in ("train_loss", "cosine", "cap")),
            )
            for row in rows
        ],
    )


def show_costs(costs: list[Row]) -> None:
    """Print what a step costs."""
    keys = ("step_time_over_greedy", "memory_over_greedy", "process_memory_over_greedy")
    common.print_table(
        "a step of a middle stage over greedy's, mean over a cycle",
        ("form", "time", "memory", "peak of a process"),
        [(row["form"], *(f"{row[key]:.2f}" for key in keys)) for row in costs],
    )


def show_summaries(rows: list[Row]) -> None:
    """Print what the forms of delta keep."""
    common.print_table(
        "forms of delta",
        ("form", "head", "bytes a sample", "cosine to delta", "error of the compared cosine"),
        [
            (
                *(row["form"], row["head"], f"{row['bytes_per_sample']:.0f}"),
                *(f"{row[key]:.4f}" for key in ("cosine_to_delta", "cosine_error")),
            )
            for row in rows
        ],
    )


def plot(rows: list[Row], path: Path) -> None:
    """Points over greedy against the cosine of eta and delta, and that against its cap."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for head in dict.fromkeys(row["head"] for row in rows if row["cosine"] is not None):
        own = [row for row in rows if row["head"] == head and row["cosine"] is not None]
        gained = [row for row in own if row["gain_when_screened"] is not None]
        cosines = [row["cosine"] for row in gained]
        left.plot(cosines, [row["gain_when_screened"] for row in gained], "o", label=head)
        right.plot([row["cap"] for row in own], [row["cosine"] for row in own], "o", label=head)
    left.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="cosine of eta and delta", ylabel="points over greedy, one seed")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.set(xlabel="cap of the cosine behind a pooled linear head", ylabel="cosine")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
