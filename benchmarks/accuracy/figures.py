"""What comes of the runs: a row for each arm of a set-up, targets, curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy.costs import Cost, name_of
from benchmarks.accuracy.rates import Tried
from benchmarks.accuracy.setups import BP, LINEAR, SetUp
from benchmarks.accuracy.tables import by_setup
from benchmarks.common import Target
from benchmarks.training import Run
from pipelocal.config.resolve import recipe_of

Row = dict[str, Any]
TRAINING_WINDOW = 100
"""Training figures are means over this many batches at the end of a run, or a few more."""
GOALS = {
    "resnet20-4": (1.0, 0.5),
    "resnet20-9": (2.0, 1.0),
    "fashion-1": (1.0, 0.5),
    "fashion-5": (1.0, 0.5),
    "vit": (2.0, 1.0),
}
"""Points behind back-propagation that the default head ought to keep to, and a goal beyond."""
PERPLEXITY_GOALS = {"gpt-bytes": (3.0, 1.5), "gpt-2048": (3.0, 1.5)}
"""The same in percent of perplexity."""
DEFAULT = "auto"


def rows(
    name: str,
    setup: SetUp,
    runs: Mapping[tuple[str, str, int], Run],
    costs: Mapping[str, Cost],
    tried: Tried,
) -> list[Row]:
    """A row for each arm of which a run is finished, in order."""
    made = []
    for arm in setup.arms:
        own = {seed: run for (of, what, seed), run in runs.items() if (of, what) == (name, arm)}
        if own:
            row = row_of(name, setup, arm, own)
            if (name, arm) in tried:
                row["held_out_accuracy_by_rate"] = tried[name, arm]
            if (cost := costs.get(name_of(name, arm))) is not None:
                row["cost"] = asdict(cost)
            made.append(row)
    return compared(made)


def joined(earlier: Iterable[Row], made: Iterable[Row], setups: Mapping[str, SetUp]) -> list[Row]:
    """Rows of an earlier result file, and those made now in place of the same arms, in the set-ups' order.

    Args:
        earlier: rows of the file.
        made: rows made now.
        setups: by name; rows of what is no longer there are dropped.
    """
    found = {(row["setup"], row["arm"]): _with_seeds_as_numbers(row) for row in earlier}
    found |= {(row["setup"], row["arm"]): row for row in made}
    order = [(name, arm) for name, setup in setups.items() for arm in setup.arms]
    rows = [found[key] for key in order if key in found]
    return [row for own in by_setup(rows) for row in compared(own)]


def _with_seeds_as_numbers(row: Row) -> Row:
    """A row as it was before JSON made text of its seeds."""
    by_seed = ("test_accuracy", "test_loss")
    return row | {name: {int(seed): v for seed, v in row[name].items()} for name in by_seed}


def compared(rows_of_setup: Sequence[Row]) -> list[Row]:
    """The rows of a set-up, with how far each is behind back-propagation."""
    by_arm = {row["arm"]: row for row in rows_of_setup}
    for row in rows_of_setup:
        compare(row, by_arm.get(BP), by_arm.get(LINEAR))
    return [*rows_of_setup]


def row_of(name: str, setup: SetUp, arm: str, runs: Mapping[int, Run]) -> Row:
    """Figures of an arm, by seed and as means."""
    first = next(iter(runs.values()))
    last = len(first.summary["stages"])
    train_loss = [run.last_training(last, "loss", batches=TRAINING_WINDOW) for run in runs.values()]
    train_accuracy = [
        run.last_training(last, "accuracy", batches=TRAINING_WINDOW) for run in runs.values()
    ]
    stages = [run.summary["stages"] for run in runs.values()]
    sent = next((found for run in runs.values() if (found := edge_bytes(run))), (None, None))
    return {
        "setup": name,
        "title": setup.title,
        "arm": arm,
        "learning_rate": first.config.lr,
        "command": first.command(),
        "steps": first.summary["steps"],
        "epochs": first.config.epochs,
        "seeds": [*runs],
        "test_accuracy": {seed: run.summary["eval_accuracy"] for seed, run in runs.items()},
        "test_loss": {seed: run.summary["stages"][-1]["eval_loss"] for seed, run in runs.items()},
        "perplexity": perplexities(runs.values()),
        "train_accuracy": statistics.fmean(v for v in train_accuracy if v is not None),
        "train_loss": statistics.fmean(v for v in train_loss if v is not None),
        "stage_test_accuracy": _mean_of_stages(stages, "eval_accuracy"),
        "stage_test_loss": _mean_of_stages(stages, "eval_loss"),
        "bytes_forward": sent[0],
        "bytes_back": sent[1],
        "forward_only": not recipe_of(first.config).sends_back,
        "curve": curve(first, last),
    }


def perplexities(runs: Iterable[Run]) -> list[float] | None:
    """Of the last head on the test data, run by run; None unless tokens are predicted."""
    found = [run.summary["eval"].get("perplexity") for run in runs]
    known = [value for value in found if value is not None]
    return known or None


def edge_bytes(run: Run) -> tuple[float, float] | None:
    """Bytes over all edges together: forward of a sample, evaluations included; back of a training sample.

    None of a run without edges, or that went on, as it counted only what came then.
    """
    stages = run.summary["stages"]
    if len(stages) == 1 or run.went_on:
        return None
    evaluations = sum(r["event"] == "evaluate" and r["stage"] == 1 for r in run.metrics)
    trained = run.config.epochs * run.data["train_samples"]
    passed = trained + evaluations * run.data["test_samples"]
    forward = sum(stage["sent_bytes"] for stage in stages)
    back = sum(stage.get("backward_bytes", 0) for stage in stages)
    return forward / passed, back / trained


def _mean_of_stages(stages: Sequence[Sequence[Row]], key: str) -> list[float]:
    return [statistics.fmean(own[k][key] for own in stages) for k in range(len(stages[0]))]


def curve(run: Run, stage: int) -> list[tuple[int, float]]:
    """Batches and test accuracy of the last head, whenever it was evaluated."""
    found = [r for r in run.metrics if r["event"] == "evaluate" and r["stage"] == stage]
    return [(record["step"], record["accuracy"]) for record in found]


def compare(row: Row, bp: Row | None, linear: Row | None) -> None:
    """Add how far the arm is behind back-propagation, and which share of the linear head's gap it closes."""
    gaps = paired(row, bp)
    if gaps is None:
        return
    row["points_behind_bp"] = common.spread(gaps)
    assert bp is not None
    losses = [
        row["test_loss"][s] - bp["test_loss"][s] for s in row["seeds"] if s in bp["test_loss"]
    ]
    row["perplexity_behind_bp_percent"] = 100 * (math.exp(statistics.fmean(losses)) - 1)
    common_seeds = [s for s in row["seeds"] if linear is not None and s in linear["seeds"]]
    if linear is None or not common_seeds or row["arm"] == BP:
        return
    whole = statistics.fmean(
        100 * (bp["test_accuracy"][s] - linear["test_accuracy"][s]) for s in common_seeds
    )
    rest = statistics.fmean(
        100 * (bp["test_accuracy"][s] - row["test_accuracy"][s]) for s in common_seeds
    )
    row["gap_closed"] = 1 - rest / whole if whole > 0 else None


def paired(row: Row, other: Row | None) -> list[float] | None:
    """Points that an arm is behind another, seed by seed; None without a seed of both."""
    if other is None:
        return None
    seeds = [seed for seed in row["seeds"] if seed in other["test_accuracy"]]
    return [100 * (other["test_accuracy"][s] - row["test_accuracy"][s]) for s in seeds] or None


def targets(all_rows: Sequence[Row]) -> list[Target]:
    """What the default head is to keep, and that nothing flows back where nothing may."""
    made = []
    back = [row["bytes_back"] for row in all_rows if row["forward_only"]]
    if counted := [each for each in back if each is not None]:
        what = "bytes back of a sample, forward-only arms, most"
        made.append(common.at_most(what, max(counted), 0))
    for row in all_rows:
        if row["arm"] != DEFAULT or "points_behind_bp" not in row:
            continue
        title = f"{row['title']}, {row['epochs']} epoch(s)"
        if row["setup"] in GOALS:
            for goal in GOALS[row["setup"]]:
                value = row["points_behind_bp"]["mean"]
                made.append(common.at_most(f"{title}: points behind bp", value, goal))
        for goal in PERPLEXITY_GOALS.get(row["setup"], ()):
            value = row["perplexity_behind_bp_percent"]
            made.append(common.at_most(f"{title}: percent of perplexity behind bp", value, goal))
    return made


def claims(setups: Mapping[str, SetUp], all_rows: Sequence[Row]) -> list[Target]:
    """What arms are to keep beside each other, over the seeds that both have."""
    by_arm = {(row["setup"], row["arm"]): row for row in all_rows}
    made = []
    for name in dict.fromkeys(row["setup"] for row in all_rows):
        for claim in setups[name].claims:
            row, beside = (by_arm.get((name, arm)) for arm in (claim.arm, claim.beside))
            behind = None if row is None else paired(row, beside)
            if behind is not None:
                what = f"{setups[name].title}: points of {claim.arm} over {claim.beside}"
                made.append(common.at_least(what, -statistics.fmean(behind), claim.least))
    return made


def plot(all_rows: Sequence[Row], path: Path) -> None:
    """Test accuracy of the last head over the batches, and of each stage's head, for each set-up."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    setups = [*by_setup(all_rows)]
    figure, panels = pyplot.subplots(
        len(setups), 2, figsize=(11, 4 * len(setups)), squeeze=False, layout="constrained"
    )
    for (left, right), rows in zip(panels, setups, strict=True):
        for row in rows:
            style = {"label": row["arm"], "color": "black" if row["arm"] == BP else None}
            steps, accuracy = zip(*row["curve"], strict=True)
            left.plot(steps, [100 * value for value in accuracy], marker=".", **style)
            heads = [100 * value for value in row["stage_test_accuracy"]]
            if row["arm"] == BP:
                right.axhline(heads[0], color="black", linestyle="--", label=BP)
            else:
                right.plot(range(1, len(heads) + 1), heads, marker=".", label=row["arm"])
        left.set(
            xlabel="batches",
            ylabel="test accuracy of the last head, %",
            title=rows[0]["title"],
        )
        right.set(xlabel="stage", ylabel="test accuracy of its head at the end, %")
        left.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")
