"""Accuracy of local learning against back-propagation: bp, greedy and sgr, side by side.

The same model, data, seeds, steps and data order; each training is a ``pipelocal train`` of its
own::

    python benchmarks/accuracy/run.py --quick --json accuracy.json
    python benchmarks/accuracy/run.py --data-root DIR --json accuracy.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError, Run, Target
from pipelocal.config import TrainConfig

OBJECTIVES = ("bp", "greedy", "sgr")
TRAINING_WINDOW = 100
"""Training figures are means over this many batches at the end of a run."""

FULL: dict[str, Any] = {"data": "fashion-mnist", "epochs": 3, "seeds": [0, 1, 2], "batch_size": 128}
QUICK: dict[str, Any] = {"data": "digits", "epochs": 6, "seeds": [0, 1], "batch_size": 64}

Row = dict[str, Any]


def main() -> None:
    """Train, print, write."""
    options = parse(sys.argv[1:])
    device = common.resolve_device(options.device)
    environment = common.describe_environment(threads=options.threads, device=device)
    common.check_writable(options.json)
    configs = [
        TrainConfig(
            objective=objective,
            seed=seed,
            data=options.data,
            data_root=options.data_root,
            model=options.model,
            stages=options.stages,
            epochs=options.epochs,
            max_steps=options.max_steps,
            batch_size=options.batch_size,
            lr=options.lr,
            head=options.head,
            distance=options.distance,
            reconcile_weight=options.reconcile_weight,
            reconcile=options.reconcile,
            reconcile_every=options.reconcile_every,
            evaluate_every=options.epochs,  # the end is all that is looked at
            device=device,
            threads=options.threads,
        )
        # The objectives of a seed run close together, so that their times can be compared.
        for seed in options.seeds
        for objective in OBJECTIVES
    ]

    def tell(run: Run, finished: int) -> None:
        accuracy = run.summary["eval_accuracy"]
        name = f"{run.config.objective}, seed {run.config.seed}"
        print(f"{finished}/{len(configs)}  {name}: test accuracy {accuracy:.4f}", flush=True)

    runs = common.train_all(configs, jobs=options.jobs, on_finish=tell)
    steps = {run.summary["steps"] for run in runs}
    if len(steps) > 1:
        raise BenchmarkError(f"the runs took different numbers of steps ({steps}): not comparable")

    entries = [describe_run(run, time_ratio(run, runs), device) for run in runs]
    rows = [aggregate(objective, entries) for objective in OBJECTIVES]
    targets = make_targets(entries, rows)
    print_rows(rows, runs)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=environment,
        results=[*entries, *rows],
        targets=targets,
    )
    plot(entries, rows, options.json.with_suffix(".png"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of a quick or a full run."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="digits, few epochs, 2 seeds: below 3 minutes")
    add("--data", help="data set (fashion-mnist; quick: digits)")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--model", default="resnet8", help="model (%(default)s)")
    add("--stages", type=int, default=4, help="stages of greedy and sgr (%(default)s)")
    add("--epochs", type=int, help="passes over the training data (3; quick: 6)")
    add("--max-steps", type=int, help="stop after this many batches")
    add("--seeds", type=int, nargs="+", help="one run of each objective per seed (0 1 2)")
    add("--batch-size", type=int, help="samples in a batch (128; quick: 64)")
    add("--lr", type=float, default=0.1, help="learning rate at its peak (%(default)s)")
    add("--head", default="linear", help="auxiliary heads (%(default)s)")
    add("--distance", default="cosine", help="distance of sgr (%(default)s)")
    add("--reconcile-weight", default="0.05", help="weight of sgr (%(default)s)")
    add("--reconcile", default=TrainConfig.reconcile, help="form of sgr (%(default)s)")
    every = TrainConfig.reconcile_every
    add("--reconcile-every", type=int, default=every, help="batches between (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of each run (%(default)s)")
    add("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: must be at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds: give each seed once")
    if options.json.suffix == ".png":
        parser.error(f"--json {options.json}: that is where the plot goes; choose another suffix")
    return options


# What a run comes to


def describe_run(run: Run, ratio: float, device: str) -> Row:
    """A run's options and figures. Absolute times only of a GPU: a CPU's are no news."""
    summary, stages = run.summary, run.summary["stages"]
    last = len(stages)
    row = {
        "kind": "run",
        "objective": run.config.objective,
        "seed": run.config.seed,
        "command": run.command(),
        "options": run.options(),
        "steps": summary["steps"],
        "test_accuracy": summary["eval_accuracy"],
        "ensemble_accuracy": summary["ensemble_accuracy"],
        "stage_test_accuracy": [stage["eval_accuracy"] for stage in stages],
        "train_loss": run.last_training(last, "loss", batches=TRAINING_WINDOW),
        "train_accuracy": run.last_training(last, "accuracy", batches=TRAINING_WINDOW),
        "stage_reconciliation": [
            run.last_training(stage["stage"], "reconciliation", batches=TRAINING_WINDOW)
            for stage in stages
        ],
        "time_ratio_to_bp": ratio,
    }
    if device == "cuda":
        row["seconds"] = summary["seconds"]
        row["samples_per_second"] = summary["samples_per_second"]
    return row


def time_ratio(run: Run, runs: Sequence[Run]) -> float:
    """Training time (evaluation left out) relative to back-propagation with the same seed."""
    (bp,) = [r for r in runs if r.config.objective == "bp" and r.config.seed == run.config.seed]
    ratio: float = bp.summary["samples_per_second"] / run.summary["samples_per_second"]
    return ratio


def aggregate(objective: str, entries: Sequence[Row]) -> Row:
    """One objective over all seeds."""
    own = [entry for entry in entries if entry["objective"] == objective]
    spreads = {
        key: common.spread([entry[key] for entry in own])
        for key in ("test_accuracy", "ensemble_accuracy", "train_loss", "train_accuracy")
    }
    ratios = [entry["time_ratio_to_bp"] for entry in own]
    by_stage = zip(*(entry["stage_test_accuracy"] for entry in own), strict=True)
    return {
        "kind": "aggregate",
        "objective": objective,
        "seeds": [entry["seed"] for entry in own],
        **spreads,
        "stage_test_accuracy": [common.spread(values) for values in by_stage],
        "time_ratio_to_bp": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
    }


def differences(entries: Sequence[Row], first: str, second: str) -> list[float]:
    """``first`` minus ``second`` in points of test accuracy, a value per seed."""
    accuracy = {(e["objective"], e["seed"]): e["test_accuracy"] for e in entries}
    seeds = dict.fromkeys(entry["seed"] for entry in entries)
    return [100 * (accuracy[first, seed] - accuracy[second, seed]) for seed in seeds]


def make_targets(entries: Sequence[Row], rows: Sequence[Row]) -> list[Target]:
    """What reconciliation is meant to give has a goal; what is only worth knowing has none."""
    gain = differences(entries, "sgr", "greedy")
    ratio = {row["objective"]: row["time_ratio_to_bp"]["median"] for row in rows}
    seeds = len(gain)
    return [
        common.at_least(
            "sgr minus greedy, test accuracy points, mean over seeds", statistics.fmean(gain), 0
        ),
        common.at_least(
            f"seeds of {seeds} on which sgr is better than greedy, not only as good",
            sum(value > 0 for value in gain),
            seeds,
        ),
        common.reported(
            "sgr minus greedy, standard error of the mean over seeds",
            statistics.stdev(gain) / seeds**0.5 if seeds > 1 else None,
        ),
        common.reported(
            "bp minus greedy, test accuracy points, mean over seeds",
            statistics.fmean(differences(entries, "bp", "greedy")),
        ),
        common.reported(
            "bp minus sgr, test accuracy points, mean over seeds",
            statistics.fmean(differences(entries, "bp", "sgr")),
        ),
        common.reported(
            "greedy, training time relative to bp, one process, median", ratio["greedy"]
        ),
        common.reported("sgr, training time relative to bp, one process, median", ratio["sgr"]),
    ]


# Table and plot


def print_rows(rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """One row per objective; accuracies in percent."""
    config = runs[0].config
    title = (
        f"{config.model} on {config.data}, {config.stages} stages, {runs[0].summary['steps']} "
        f"batches of {config.batch_size}, {len(rows[0]['seeds'])} seed(s); test accuracy in "
        f"percent: mean (least to greatest); time: median (least to greatest)"
    )
    columns = (
        "objective",
        "last head",
        "sd",
        "ensemble",
        "head of each stage",
        "training accuracy",
        "training loss",
        "time / bp",
    )
    table = [
        (
            row["objective"],
            percent(row["test_accuracy"]),
            "-"
            if row["test_accuracy"]["sd"] is None
            else f"{100 * row['test_accuracy']['sd']:.2f}",
            percent(row["ensemble_accuracy"]) if len(row["stage_test_accuracy"]) > 1 else "-",
            "  ".join(f"{100 * stage['mean']:.1f}" for stage in row["stage_test_accuracy"]),
            f"{100 * row['train_accuracy']['mean']:.2f}",
            f"{row['train_loss']['mean']:.4f}",
            "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["time_ratio_to_bp"]),
        )
        for row in rows
    ]
    common.print_table(title, columns, table)


def percent(values: dict[str, float]) -> str:
    """A spread as ``mean (least to greatest)``."""
    mean, least, greatest = (100 * values[key] for key in ("mean", "min", "max"))
    return f"{mean:.2f} ({least:.2f} to {greatest:.2f})"


def plot(entries: Sequence[Row], rows: Sequence[Row], path: Path) -> None:
    """Every stage's head with its range over the seeds; beside it the last head, seed by seed."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for row, colour in zip(rows, ("black", "tab:blue", "tab:orange"), strict=True):
        stages = row["stage_test_accuracy"]
        mean, least, greatest = ([100 * s[key] for s in stages] for key in ("mean", "min", "max"))
        if len(stages) == 1:
            left.axhline(mean[0], color=colour, linestyle="--", label=row["objective"])
            left.axhspan(least[0], greatest[0], color=colour, alpha=0.15, linewidth=0)
            continue
        numbers = list(range(1, len(stages) + 1))
        below = [m - low for m, low in zip(mean, least, strict=True)]
        above = [high - m for m, high in zip(mean, greatest, strict=True)]
        left.errorbar(
            numbers, mean, yerr=(below, above), color=colour, marker="o", capsize=4,
            label=row["objective"],
        )  # fmt: skip
        left.set_xticks(numbers)
    left.set(xlabel="stage", ylabel="test accuracy of the stage's head, %")
    left.set_title("mean, least and greatest over the seeds", fontsize=10)
    left.legend()
    for seed in rows[0]["seeds"]:
        own = [entry for entry in entries if entry["seed"] == seed]
        names = [entry["objective"] for entry in own]
        accuracy = [100 * entry["test_accuracy"] for entry in own]
        right.plot(names, accuracy, marker="o", label=f"seed {seed}")
    right.set(ylabel="test accuracy of the last head, %")
    right.set_title("the same seed: same first weights, same data order", fontsize=10)
    right.margins(x=0.15)
    right.legend()
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


if __name__ == "__main__":
    common.run_main(main)
