"""What reconciliation buys, and what it costs: the study from which the defaults come.

Accuracy: bp, greedy and sgr in several forms, for several numbers of stages and heads, on the same
data, seeds, steps and first weights. Cost: time and memory of a training step of a middle stage,
greedy and sgr in turns::

    python benchmarks/reconciliation/run.py --quick --json reconciliation.json
    python benchmarks/reconciliation/run.py --json reconciliation.json
    python benchmarks/reconciliation/run.py --data cifar10 --data-root DIR --epochs 60 \
        --batch-size 128 --device cuda --json cifar10.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import Target
from benchmarks.reconciliation.cost import cost
from benchmarks.reconciliation.forms import FORMS, VARIANTS
from benchmarks.reconciliation.study import study
from benchmarks.reconciliation.summaries import compare_summaries

PARTS = ("accuracy", "cost", "summaries")
Row = dict[str, Any]


def main() -> None:
    """Train, measure, print, write."""
    options = parse(sys.argv[1:])
    device = common.resolve_device(options.device)
    common.check_writable(options.json)
    rows, costs, summaries = [], [], []
    if "cost" in options.parts:
        model, rounds = ("resnet20", 3) if options.quick else ("resnet32", 9)
        costs = [cost(name, model=model, rounds=rounds) for name in FORMS if name != "greedy"]
        show_costs(costs)
    if "summaries" in options.parts:
        summaries = compare_summaries(steps=60 if options.quick else 200)
        show_summaries(summaries)
    if "accuracy" in options.parts:
        rows = study(options, device)
        show_accuracy(rows)
    targets = make_targets(rows, costs)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1, device=device),
        results=[*rows, *costs, *summaries],
        targets=targets,
    )
    if rows:
        plot(rows, options.json.with_suffix(".png"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="a short form of under 3 minutes")
    add("--data", default="digits", help="data set (%(default)s)")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--model", default="resnet32", help="model (%(default)s)")
    add("--stages", type=int, nargs="+", default=[2, 4, 8, 16])
    add("--variants-at", type=int, default=4, help="stages of the variants (%(default)s)")
    add("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="which (all)")
    add("--variants", nargs="*", default=list(VARIANTS), help="which of them (all)")
    add("--heads", nargs="+", default=["linear", "mlp"])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=12, help="passes over the training data (%(default)s)")
    add("--lr", type=float, default=0.1, help="learning rate at its peak (%(default)s)")
    add("--train-samples", type=int, help="train on the first so many samples only")
    add("--batch-size", type=int, default=64, help="samples in a batch (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure (all)")
    add("--keep", type=Path, metavar="DIR", help="keep finished runs, and go on from those there")
    add("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        parser.error(f"--variants {unknown[0]!r}: choose of {', '.join(VARIANTS)}")
    if options.quick:
        options.model, options.stages, options.heads = "resnet8", [4], ["linear"]
        options.seeds, options.epochs, options.variants = [0, 1], 6, []
    return options


def make_targets(rows: list[Row], costs: list[Row]) -> list[Target]:
    """What the defaults must keep, and where sgr beats greedy."""
    targets = []
    for row in costs:
        if row["form"] == "default":
            time_ratio, memory = row["step_time_over_greedy"], row["memory_over_greedy"]
            targets += [
                common.at_most("default sgr: mean step time over greedy", time_ratio, 1.25),
                common.at_most("default sgr: peak stage memory over greedy", memory, 1.10),
            ]
    for row in rows:
        if row["form"] == "default" and "points_over_greedy" in row:
            name = f"{row['stages']} stages, {row['head']}: points of default sgr over greedy"
            targets.append(common.at_least(name, row["points_over_greedy"]["mean"], 0.0))
    return targets


def show_accuracy(rows: list[Row]) -> None:
    """Print the study."""

    def percent(spread: dict[str, float | None]) -> str:
        sd = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.2f}"
        return f"{100 * (spread['mean'] or 0):.2f}{sd}"

    def points(row: Row) -> str:
        gain = row.get("points_over_greedy")
        return "-" if gain is None else f"{gain['mean']:+.2f} ± {gain['sd'] or 0:.2f}"

    def figures(row: Row) -> list[str]:
        if "test_accuracy" not in row:
            return ["diverged", *["-"] * 6]
        own = percent(row["test_accuracy"])
        if row["diverged"]:
            own += f" ({row['diverged']} diverged)"
        ratios = [row["cosine"], row["residual"]]
        return [
            own,
            points(row),
            percent(row["ensemble_accuracy"]),
            f"{100 * row['train_accuracy']:.2f}",
            f"{row['train_loss']:.4f}",
            *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
        ]

    common.print_table(
        "accuracy in percent, mean ± sd over the seeds",
        (
            *("form", "stages", "head", "test", "over greedy", "ensemble", "train", "train loss"),
            *("cosine", "residual"),
        ),
        [(row["form"], str(row["stages"]), row["head"], *figures(row)) for row in rows],
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
    """Test accuracy against the number of stages, a panel for each head."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    heads = list(dict.fromkeys(row["head"] for row in rows if row["form"] in FORMS))
    figure, panels = pyplot.subplots(
        1, len(heads), figsize=(5 * len(heads), 4), sharey=True, squeeze=False
    )
    bp = next(row for row in rows if row["form"] == "bp")
    for axes, head in zip(panels[0], heads, strict=True):
        for form in dict.fromkeys(row["form"] for row in rows if row["form"] in FORMS):
            own = [
                row
                for row in rows
                if (row["form"], row["head"]) == (form, head) and "test_accuracy" in row
            ]
            axes.errorbar(
                [row["stages"] for row in own],
                [100 * row["test_accuracy"]["mean"] for row in own],
                [100 * (row["test_accuracy"]["sd"] or 0) for row in own],
                marker="o",
                capsize=3,
                label=form,
            )
        if "test_accuracy" in bp:
            axes.axhline(100 * bp["test_accuracy"]["mean"], color="black", label="bp")
        axes.set_xscale("log", base=2)
        axes.set(title=f"head {head}", xlabel="stages", ylabel="test accuracy, %")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
