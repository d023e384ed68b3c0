"""Early answers: accuracy against mean computation per sample, as the wanted confidence varies.

Every stage has a head, so a sample can be answered by the first one that is confident enough. Held
against what one could do without that: stop all samples behind the same stage::

    python benchmarks/early_exit/run.py --quick --json early_exit.json
    python benchmarks/early_exit/run.py --json early_exit.json
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pipelocal
from benchmarks import common
from benchmarks.common import Target
from pipelocal.config import TrainConfig
from pipelocal.config.training import train
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.ranks.host import set_up_host
from pipelocal.results.early_exit import HeadedNetwork

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.01)
"""The last one is never reached: every sample goes to the last head."""
NEARLY = 0.002
"""Accuracy that may be lost."""
TIMED = 3

Row = dict[str, Any]


def main() -> None:
    """Train, measure, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", help="folder of the data set's files")
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--objectives", nargs="+", default=["greedy", "sgr"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds, options.objectives = 4, [0], ["sgr"]
    common.check_writable(options.json)
    set_up_host(1)
    rows: list[Row] = []
    for objective in options.objectives:
        for seed in options.seeds:
            config = TrainConfig(
                model=options.model,
                data=options.data,
                data_root=options.data_root,
                train_samples=options.train_samples,
                stages=options.stages,
                epochs=options.epochs,
                objective=objective,
                seed=seed,
                plain=True,
            )
            rows += measure(config)
            print(f"{objective}, seed {seed}: done", flush=True)
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


def measure(config: TrainConfig) -> list[Row]:
    """Train once; a row for every confidence, and for every stage behind which all samples stop."""
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = str(Path(scratch, "run"))
        with Path(scratch, "log").open("w") as log:
            train(replace(config, out=out), stream=log)
        network = pipelocal.load_with_heads(out)
    dataset = load_dataset(config.data, root=config.data_root, seed=config.seed)
    batches = list(BatchStream(dataset, batch_size=config.batch_size, seed=config.seed).test())
    x, target = (
        torch.cat(parts) for parts in zip(*((b.x, b.target) for b in batches), strict=True)
    )
    costs = cumulative_operations(network, x[:1])
    what = {"model": config.model, "data": config.data, "objective": config.objective}
    base: Row = {**what, "seed": config.seed}
    rows = [
        {**base, "rule": f"all behind stage {number}", "accuracy": accuracy, "computation": share}
        for number, (accuracy, share) in enumerate(
            zip(accuracies(network, x, target), _shares_of_bodies(costs), strict=True), start=1
        )
    ]
    full = None
    for until in reversed(CONFIDENCES):
        answer, seconds = answered(network, x, until)
        full = seconds if full is None else full
        used = torch.tensor([costs["with heads"][k - 1] for k in answer.stage.tolist()])
        rows.append(
            {
                **base,
                "rule": "all heads, the last answers" if until > 1 else f"until {until:g}",
                "until": until,
                "accuracy": float((answer.label == target).double().mean()),
                "computation": float(used.double().mean() / costs["bodies"][-1]),
                "time": seconds / full,
                "stages": [
                    float((answer.stage == k).double().mean()) for k in range(1, config.stages + 1)
                ],
            }
        )
    return rows


def _shares_of_bodies(costs: dict[str, list[int]]) -> list[float]:
    return [cost / costs["bodies"][-1] for cost in costs["bodies"]]


@torch.no_grad()
def cumulative_operations(network: HeadedNetwork, x: Tensor) -> dict[str, list[int]]:
    """Operations of one sample up to the answer behind each stage.

    ``bodies``: with that stage's head alone; ``with heads``: with the heads of all stages before, which
    were asked in vain.
    """
    bodies = heads = 0
    found: dict[str, list[int]] = {"bodies": [], "with heads": []}
    for body, head in zip(network.bodies, network.heads, strict=True):
        with FlopCounterMode(display=False) as of_body:
            x = body(x)
        with FlopCounterMode(display=False) as of_head:
            head(x)
        bodies += of_body.get_total_flops()
        heads += of_head.get_total_flops()
        found["bodies"].append(bodies + of_head.get_total_flops())
        found["with heads"].append(bodies + heads)
    return found


@torch.no_grad()
def accuracies(network: HeadedNetwork, x: Tensor, target: Tensor) -> list[float]:
    """Of every stage's head."""
    logits = network.all_logits(x)
    return [float((each.argmax(-1) == target).double().mean()) for each in logits]


def answered(network: HeadedNetwork, x: Tensor, until: float) -> tuple[pipelocal.Prediction, float]:
    """All answers at once, and the seconds that they took (the least of a few)."""
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        answer = network.predict(x, until=until)
        seconds.append(time.perf_counter() - started)
    return answer, min(seconds)


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """The least computation at (nearly) the last head's accuracy; medians over seeds."""
    targets = []
    for objective in dict.fromkeys(row["objective"] for row in rows):
        own = [row for row in rows if row["objective"] == objective]
        seeds = list(dict.fromkeys(row["seed"] for row in own))
        of_seed = [[row for row in own if row["seed"] == seed] for seed in seeds]
        for what, early in (("early answers", True), ("all behind one stage", False)):
            least = statistics.median(_least(rows_of, early) for rows_of in of_seed)
            name = f"{objective}, {what}: computation at the last head's accuracy less {NEARLY:g}"
            targets.append(common.reported(name, least))
    return targets


def _least(rows: Sequence[Row], early: bool) -> float:
    wanted = next(row["accuracy"] for row in rows if row.get("until", 0) > 1) - NEARLY
    return float(
        min(
            row["computation"]
            for row in rows
            if ("until" in row) == early and row["accuracy"] >= wanted
        )
    )


def show(rows: Sequence[Row]) -> None:
    """A line for each objective and rule: medians over seeds."""
    lines = []
    for objective, rule in dict.fromkeys((row["objective"], row["rule"]) for row in rows):
        own = [row for row in rows if (row["objective"], row["rule"]) == (objective, rule)]
        times = [row["time"] for row in own if "time" in row]
        accuracy, computation = (
            statistics.median(row[key] for row in own) for key in ("accuracy", "computation")
        )
        time_text = f"{statistics.median(times):.2f}" if times else "-"
        lines.append((objective, rule, f"{accuracy:.4f}", f"{computation:.3f}", time_text))
    common.print_table(
        "early answers", ("objective", "rule", "accuracy", "computation", "time"), lines
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over computation; a point for each rule and seed."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for objective in dict.fromkeys(row["objective"] for row in rows):
        for early, mark, what in ((True, "o", "early answers"), (False, "x", "behind one stage")):
            own = [r for r in rows if r["objective"] == objective and ("until" in r) == early]
            axes.plot(
                [row["computation"] for row in own],
                [row["accuracy"] for row in own],
                mark,
                label=f"{objective}, {what}",
                alpha=0.7,
            )
    least = min(row["accuracy"] for row in rows if "until" in row)
    axes.set_ylim(bottom=least - 0.05)
    axes.set(xlabel="mean operations of a sample, share of the whole network's", ylabel="accuracy")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
