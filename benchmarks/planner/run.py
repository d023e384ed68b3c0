"""Does the planner predict what stages cost, and does its cut beat equal numbers of units?

First part: for each model the predicted time of every stage beside the measured one, each stage
running alone on one thread. Second part: throughput of real runs over two ranks, with equal numbers
of units and with ``--balance time``, taken in turns::

    python benchmarks/planner/run.py --quick --json planner.json
    python benchmarks/planner/run.py --json planner.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks import common, torchrun
from benchmarks.common import Target
from benchmarks.cuts import seconds_of_stage
from pipelocal.config import PlanConfig
from pipelocal.config.resolve import blueprint_of, cut_of
from pipelocal.partition.measured import Stopwatch
from pipelocal.plan.plan import planned_input, predict
from pipelocal.ranks.host import set_up_host
from pipelocal.run.costs import cost_model, partitioned

HEAVY = f"{Path(__file__).with_name('models.py')}:one_heavy_unit"
PREDICTED = ("resnet50", "resnet20", "vit_small", "vit_b_16", "gpt")
PREDICTED_QUICK = ("resnet20", "gpt")
BALANCED = {"resnet20": "resnet20", "one heavy unit": HEAVY}
LARGEST_ERROR = 0.15
"""Of the predicted time of the bottleneck."""
LARGEST_SHARE = 1.1
"""Of the slowest stage, over that of equal ones."""

Row = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    parser = common.Parser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--objectives", nargs="+", default=["greedy", "sgr"])
    parser.add_argument("--heads", nargs="+", default=["auto", "linear"])
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of every stage")
    parser.add_argument("--models", nargs="+", choices=PREDICTED, help="of the first part")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs over ranks of each kind; 0 for none"
    )
    options = parser.parse_args()
    common.check_writable(options.json)
    models = options.models or (PREDICTED_QUICK if options.quick else PREDICTED)
    rounds, steps = (1, 40) if options.quick else (options.rounds, 120)
    set_up_host(1)
    predictions = [
        predict_and_measure(model, objective, head, options.repeats)
        for model in models
        for head in (options.heads[:1] if options.quick else options.heads)
        for objective in options.objectives
        if not (
            objective == "sgr" and model in ("vit_b_16", "gpt")
        )  # what it adds is alike elsewhere
    ]
    throughputs = [
        compare_cuts(name, model, rounds, steps) for name, model in BALANCED.items() if rounds
    ]
    targets = targets_of(predictions, throughputs)
    show(predictions, throughputs)
    common.print_targets(targets)
    environment = common.describe_environment(threads=1)
    results = [*predictions, *throughputs]
    common.write_result(options.json, environment=environment, results=results, targets=targets)
    plot(predictions, options.json.with_suffix(".png"))


def predict_and_measure(model: str, objective: str, head: str, repeats: int) -> Row:
    """Predicted and measured seconds of every stage of the planner's own cut."""
    config = PlanConfig(model=model, objective=objective, head=head, batch_size=4, device="cpu")
    train_config = config.train_config()
    blueprint = blueprint_of(train_config, info=planned_input(config))
    stopwatch = Stopwatch(device=torch.device("cpu"), repeats=config.repeats)
    costs = cost_model(blueprint, train_config, stopwatch, batch_size=config.batch_size)
    blueprint = partitioned(blueprint, cut_of(train_config), train_config, lambda: costs)
    plan = predict(blueprint, costs, config, [1.0] * blueprint.stages)
    measured = [
        seconds_of_stage(blueprint, train_config, number + 1, repeats)
        for number in range(blueprint.stages)
    ]
    predicted = [stage.seconds for stage in plan.stages]
    slowest = plan.bottleneck - 1
    return {
        "kind": "prediction",
        "model": model,
        "objective": objective,
        "head": head,
        "heads": [stage.head for stage in plan.stages[:-1]],
        "batch_size": config.batch_size,
        "cut": plan.cut,
        "bottleneck": plan.bottleneck,
        "predicted_over_measured": [p / m for p, m in zip(predicted, measured, strict=True)],
        "predicted_share": [p / sum(predicted) for p in predicted],
        "measured_share": [m / sum(measured) for m in measured],
        "bottleneck_error": abs(predicted[slowest] - measured[slowest]) / measured[slowest],
    }


def compare_cuts(name: str, model: str, rounds: int, steps: int) -> Row:
    """Samples a second over two ranks with the planner's cut, over those with equal counts."""
    rates: dict[str, list[float]] = {"count": [], "time": []}
    for _ in range(rounds):
        for balance, seen in rates.items():
            seen.append(train_over_ranks(model, balance, steps))
    ratios = [t / c for t, c in zip(rates["time"], rates["count"], strict=True)]
    return {
        "kind": "throughput",
        "model": name,
        "ranks": 2,
        "stages": 2,
        "ratio_of_each_round": ratios,
        "ratio": statistics.median(ratios),
    }


def train_over_ranks(model: str, balance: str, steps: int) -> float:
    """Samples a second of one run."""
    options = ["--model", model, "--data", "synthetic", "--objective", "greedy", "--stages", "2"]
    options += ["--balance", balance, "--max-steps", str(steps)]
    summary = torchrun.train_over_ranks(2, options, what=f"{model}, {balance}")
    return float(summary["samples_per_second"])


def targets_of(predictions: list[Row], throughputs: list[Row]) -> list[Target]:
    """Of all rows."""
    stages = [target(row) for row in predictions for target in (error_target, balance_target)]
    return [*stages, *map(gain_target, throughputs)]


def error_target(row: Row) -> Target:
    """Of one prediction."""
    name = f"{row['model']}, {row['objective']}, {row['head']}: error of the predicted bottleneck"
    return common.at_most(name, row["bottleneck_error"], LARGEST_ERROR)


def balance_target(row: Row) -> Target:
    """Of the measured stages of one cut."""
    name = f"{row['model']}, {row['objective']}, {row['head']}: slowest stage over an equal share"
    shares = row["measured_share"]
    return common.at_most(name, max(shares) * len(shares), LARGEST_SHARE)


def gain_target(row: Row) -> Target:
    """Of one comparison of cuts."""
    return common.at_least(
        f"{row['model']}: rate of --balance time over count", row["ratio_of_each_round"], 1.0
    )


def show(predictions: list[Row], throughputs: list[Row]) -> None:
    """Print both parts."""

    def figures(values: list[float]) -> str:
        return " ".join(f"{value:.2f}" for value in values)

    common.print_table(
        "time of each stage, predicted over measured; * is the bottleneck",
        (
            "model",
            "objective",
            "head",
            "predicted / measured",
            "share of the time, measured",
            "bottleneck",
        ),
        [
            (
                row["model"],
                row["objective"],
                row["head"],
                figures(row["predicted_over_measured"]),
                figures(row["measured_share"]),
                f"stage {row['bottleneck']}: {row['bottleneck_error']:.1%} off",
            )
            for row in predictions
        ],
    )
    common.print_table(
        "samples a second over 2 ranks, --balance time over --balance count",
        ("model", "each round", "median"),
        [(r["model"], figures(r["ratio_of_each_round"]), f"{r['ratio']:.2f}") for r in throughputs],
    )


def plot(predictions: list[Row], path: Path) -> None:
    """Predicted over measured, stage by stage."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for row in predictions:
        ratios = row["predicted_over_measured"]
        label = f"{row['model']}, {row['objective']}, {row['head']}"
        axes.plot(range(1, len(ratios) + 1), ratios, marker="o", label=label)
    axes.axhspan(1 - LARGEST_ERROR, 1 + LARGEST_ERROR, alpha=0.15)
    axes.set(xlabel="stage", ylabel="predicted / measured time", xticks=range(1, 5))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
