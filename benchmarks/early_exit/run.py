"""Early answers: accuracy against mean computation per sample, as the wanted confidence varies.

Every stage has a head, so a sample can be answered by the first one that is confident enough. Held
against what one could do without that: stop all samples behind the same stage. For several kinds of heads::

    python benchmarks/early_exit/run.py --quick --json early_exit.json
    python benchmarks/early_exit/run.py --data-root DIR --keep RUNS --json early_exit.json
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pipelocal
from benchmarks import common, training
from benchmarks.accuracy.setups import BP, SETUPS
from benchmarks.common import BenchmarkError, Target
from benchmarks.training import Failure, Run
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.ranks.host import set_up_host
from pipelocal.results.early_exit import HeadedNetwork

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.01)
"""The last one is never reached: every sample goes to the last head."""
NEARLY = 0.002
"""Accuracy that may be lost."""
TIMED = 3
"""Measurements of a time, of which the least counts."""

Row = dict[str, Any]


def main() -> None:
    """Train, measure, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    add = parser.add_argument
    images = [name for name, setup in SETUPS.items() if setup.options["data"] != "text"]
    add("--setup", choices=images, default="resnet20-4", help="of benchmarks/accuracy")
    add("--arms", nargs="+", default=["linear", "auto"], help="its heads")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--epochs", type=int, help="in place of the set-up's own")
    add("--data-root", metavar="DIR", help="folder of the data set's files")
    add("--keep", type=Path, metavar="DIR", help="keep runs, and take those of benchmarks/accuracy")
    add("--time", action="store_true", help="measure predict's time too; on an idle machine")
    add("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    add("--into", type=Path, metavar="FILE", help="a README, for the table")
    options = parser.parse_args()
    if options.quick:
        options.setup, options.arms, options.seeds = "quick", ["linear", "downstream"], [0]
    setup = SETUPS[options.setup]
    heads = [arm for arm in setup.arms if arm != BP]
    for arm in options.arms:
        if arm not in heads:
            raise BenchmarkError(f"--arms {arm}: {options.setup} has {', '.join(heads)}")
    common.check_writable(options.json)
    set_up_host(1)
    which = [(arm, seed) for arm in options.arms for seed in options.seeds]
    configs = [setup.config(arm, options, seed=seed) for arm, seed in which]
    rows: list[Row] = []
    for index, run in training.train_each(configs, jobs=options.jobs, keep=options.keep):
        arm, seed = which[index]
        if isinstance(run, Failure):
            raise BenchmarkError(f"{arm}, seed {seed}: {run.reason}")
        rows += measure(run, arm, timed=TIMED if options.time else 0)
        print(f"{arm}, seed {seed}: done", flush=True)
    rows.sort(key=lambda row: (options.arms.index(row["head"]), row["seed"]))
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
    if options.into is not None:
        common.put_into(options.into, markdown(rows))


def measure(run: Run, arm: str, *, timed: int) -> list[Row]:
    """Return a row for every confidence, and for every stage behind which all samples stop.

    Args:
        run: the training.
        arm: name of its heads.
        timed: how often each time is measured.
    """
    config = run.config
    network = pipelocal.load_with_heads(str(run.folder))
    dataset = load_dataset(config.data, root=config.data_root, seed=config.seed)
    batches = list(BatchStream(dataset, batch_size=config.batch_size, seed=config.seed).test())
    x, target = (
        torch.cat(parts) for parts in zip(*((b.x, b.target) for b in batches), strict=True)
    )
    costs = cumulative_operations(network, x[:1])
    names = ("model", "data", "objective", "epochs", "seed")
    base: Row = {"head": arm, **{name: getattr(config, name) for name in names}}
    rows = [
        {**base, "rule": f"all behind stage {number}", "accuracy": accuracy, "computation": share}
        for number, (accuracy, share) in enumerate(
            zip(accuracies(network, x, target), _shares_of_bodies(costs), strict=True), start=1
        )
    ]
    full = None
    for until in reversed(CONFIDENCES):
        answer = network.predict(x, until=until)
        seconds = seconds_of(network, x, until, timed)
        full = seconds if full is None else full
        used = torch.tensor([costs["with heads"][k - 1] for k in answer.stage.tolist()])
        rows.append(
            {
                **base,
                "rule": "all heads, the last answers" if until > 1 else f"until {until:g}",
                "until": until,
                "accuracy": float((answer.label == target).double().mean()),
                "computation": float(used.double().mean() / costs["bodies"][-1]),
                **({} if seconds is None or full is None else {"time": seconds / full}),
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


def seconds_of(network: HeadedNetwork, x: Tensor, until: float, timed: int) -> float | None:
    """Seconds until all samples are answered, the least of a few; None if it is not measured."""
    seconds = []
    for _ in range(timed):
        started = time.perf_counter()
        network.predict(x, until=until)
        seconds.append(time.perf_counter() - started)
    return min(seconds, default=None)


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """The least computation at (nearly) the last head's accuracy; medians over seeds."""
    return [
        common.reported(
            f"{head}, {what}: computation at the last head's accuracy less {NEARLY:g}",
            least_of(rows, head, early),
        )
        for head in dict.fromkeys(row["head"] for row in rows)
        for what, early in (("early answers", True), ("all behind one stage", False))
    ]


def least_of(rows: Sequence[Row], head: str, early: bool) -> float:
    """The least computation of one kind of head, the median over seeds."""
    own = [row for row in rows if row["head"] == head]
    seeds = dict.fromkeys(row["seed"] for row in own)
    of_seed = [[row for row in own if row["seed"] == seed] for seed in seeds]
    return statistics.median(_least(rows_of, early) for rows_of in of_seed)


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
    """A line for each kind of head and rule: medians over seeds."""
    lines = [
        (head, rule, *medians(rows, head, rule))
        for head, rule in dict.fromkeys((row["head"], row["rule"]) for row in rows)
    ]
    common.print_table("early answers", ("head", "rule", "accuracy", "computation", "time"), lines)


def medians(rows: Sequence[Row], head: str, rule: str) -> tuple[str, str, str]:
    """Accuracy, computation and time over the seeds, as text."""
    own = [row for row in rows if (row["head"], row["rule"]) == (head, rule)]
    times = [row["time"] for row in own if "time" in row]
    accuracy, computation = (
        statistics.median(row[key] for row in own) for key in ("accuracy", "computation")
    )
    time_text = f"{statistics.median(times):.2f}" if times else "-"
    return f"{accuracy:.4f}", f"{computation:.3f}", time_text


def markdown(rows: Sequence[Row]) -> str:
    """A table for the README: a line for each rule, three columns for each kind of head."""
    heads = list(dict.fromkeys(row["head"] for row in rows))
    whats = ("accuracy", "computation", "time")[: 3 if any("time" in row for row in rows) else 2]
    columns = [f"{head}: {what}" for head in heads for what in whats]
    lines = [f"| answered | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        figures = [each for head in heads for each in medians(rows, head, rule)[: len(whats)]]
        lines.append(f"| {rule} | {' | '.join(figures)} |")
    lines += ["", f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for what, early in (("early answers", True), ("all behind one stage", False)):
        least = [f"{least_of(rows, head, early):.3f}" for head in heads]
        name = f"least computation at the last head's accuracy less {NEARLY:g}: {what}"
        lines.append(f"| {name} | {' | '.join(least)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over computation; a point for each rule and seed."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for head in dict.fromkeys(row["head"] for row in rows):
        for early, mark, what in ((True, "o", "early answers"), (False, "x", "behind one stage")):
            own = [r for r in rows if r["head"] == head and ("until" in r) == early]
            axes.plot(
                [row["computation"] for row in own],
                [row["accuracy"] for row in own],
                mark,
                label=f"{head}, {what}",
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
