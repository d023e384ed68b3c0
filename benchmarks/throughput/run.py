"""How fast is a training step over ranks: pipelocal, pipelines of back-propagation, DDP, one process.

Same model, ranks, threads, global batch and optimizer for all. All take turns in short blocks within the same
processes (``blocks.py``), and ratios are formed between the blocks of a round::

    python benchmarks/throughput/run.py --quick --json throughput.json
    python benchmarks/throughput/run.py --json throughput.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, torchrun
from benchmarks.common import Target
from benchmarks.cuts import balanced_cut
from benchmarks.intervals import interval_of_median
from benchmarks.throughput.blocks import ALONE, AT_ONCE, BP, LINEAR, OWN
from pipelocal.config import TrainConfig
from pipelocal.ranks.host import set_up_host

BLOCKS = Path(__file__).with_name("blocks.py")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all methods do."""

    model: str
    data: str
    batch_size: int


WORKS = (
    Work(model="resnet20", data="synthetic", batch_size=64),
    Work(model="vit_small", data="synthetic", batch_size=64),
    Work(model="gpt", data="text64", batch_size=32),
    Work(model="mlp", data="digits", batch_size=16),
)
OVERHEAD = "mlp"
"""Next to no computing, so that a batch's time shows what the runtime itself costs: no peers."""
EFFICIENCY, OVERHEAD_MS = 0.97, 0.5
OVER_BP = ("resnet20", "gpt")
"""Models that ought to be no slower than one process with all cores."""
OVER_PIPELINES = {OWN: (1.3, 1.0), LINEAR: (1.3, 1.05)}
"""Goals with as many micro-batches as ranks, and four times as many."""


def main() -> None:
    """Measure, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    rows: list[Row] = []
    for work in WORKS:
        if work.model in options.models:
            rows += compare(work, options)
    targets = make_targets(rows, options.ranks)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "ranks": options.ranks},
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    names = [work.model for work in WORKS]
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--ranks", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=25, help="of blocks; 6 or more give intervals"
    )
    parser.add_argument("--block", type=float, default=1.0, help="seconds of a block (%(default)s)")
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    if options.ranks < 2:
        parser.error(f"--ranks {options.ranks}: a pipeline has at least 2")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    if options.quick:
        options.rounds, options.block, options.models = 6, 0.2, [names[0], OVERHEAD]
    return options


def compare(work: Work, options: argparse.Namespace) -> list[Row]:
    """A row for every method, with the seconds of a step in each round."""
    ranks = options.ranks
    peers = "none" if work.model == OVERHEAD else "few" if options.quick else "all"
    cuts = {"--cut": cut_for(work, ranks, "auto"), "--linear-cut": cut_for(work, ranks, "linear")}
    if peers == "all":
        cuts["--finer-cut"] = cut_for(work, 2 * ranks, "linear")
    print(
        f"{work.model} over {ranks} ranks:", *(f"{n} {cut}" for n, cut in cuts.items()), flush=True
    )
    arguments = [str(BLOCKS), "--model", work.model, "--data", work.data, "--peers", peers]
    arguments += ["--batch-size", str(work.batch_size), "--rounds", str(options.rounds)]
    arguments += ["--block-s", str(options.block)]
    arguments += [word for pair in cuts.items() for word in pair]
    output = torchrun.launch(ranks, arguments, what=work.model)
    found = json.loads(output.splitlines()[-1])
    return [_row(work, name, found["steps"][name], found["seconds"]) for name in found["seconds"]]


def _row(work: Work, name: str, steps: int, seconds: dict[str, list[float]]) -> Row:
    own = seconds[name]
    row: Row = {"model": work.model, "batch_size": work.batch_size, "method": name}
    row |= {"steps_of_a_block": steps, "seconds_each_round": own}
    for ours in (OWN, LINEAR):
        ratios = [theirs / mine for theirs, mine in zip(own, seconds[ours], strict=True)]
        row[f"time_over_{ours}"] = statistics.median(ratios)
        row[f"time_over_{ours}_interval"] = interval_of_median(ratios)
        row[f"time_over_{ours}_each_round"] = ratios
        if name.startswith((ALONE, AT_ONCE)):
            beyond = [1000 * (a - b) for a, b in zip(seconds[ours], own, strict=True)]
            row[f"{ours}_ms_beyond_each_round"] = beyond
    return row


def cut_for(work: Work, stages: int, head: str) -> str:
    """As ``--balance time`` cuts for local losses, measured on this machine."""
    return balanced_cut(
        TrainConfig(
            model=work.model,
            data=work.data,
            stages=stages,
            objective="greedy",
            head=head,
            batch_size=work.batch_size,
        )
    )


def make_targets(rows: Sequence[Row], ranks: int) -> list[Target]:
    """Efficiency, overhead, and the ratios to the best schedule and to one process."""
    targets = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["method"]: row for row in rows if row["model"] == model}
        for ours in (OWN, LINEAR):
            suffix = ours.removeprefix(OWN)
            what, key = f"{model}, {ours}: efficiency", f"time_over_{ours}_each_round"
            if model == OVERHEAD:
                what, key = (
                    f"{model}, {ours}: ms a batch beyond the slowest stage",
                    f"{ours}_ms_beyond",
                )
                key = f"{key}_each_round"
                targets.append(common.at_most(what, own[f"{ALONE}{suffix}"][key], OVERHEAD_MS))
            else:
                targets.append(common.at_least(what, own[f"{ALONE}{suffix}"][key], EFFICIENCY))
            at_once = own[f"{AT_ONCE}{suffix}"][key]
            targets.append(common.reported(f"{what}, all stages at once", at_once))
        if model == OVERHEAD:
            continue
        for ours, goals in OVER_PIPELINES.items():
            for micro_batches, goal in zip((ranks, 4 * ranks), goals, strict=True):
                ending = f", m = {micro_batches}"
                schedules = [row for method, row in own.items() if method.endswith(ending)]
                best = min(schedules, key=itemgetter(f"time_over_{ours}"))
                name = f"{model}, {ours}: over the best pipeline{ending}"
                targets.append(common.at_least(name, best[f"time_over_{ours}_each_round"], goal))
        name, key = f"{model}, {OWN}: over {BP}", f"time_over_{OWN}_each_round"
        if model in OVER_BP:
            targets.append(common.at_least(name, own[BP][key], 1.0))
        else:
            targets.append(common.reported(name, own[BP][key]))
    return targets


def show(rows: Sequence[Row]) -> None:
    """A line for each method, a column for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["model"], row["method"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    common.print_table(
        "time of a step over pipelocal's, default heads / linear heads: median, and its 95 % interval",
        ("method", *models),
        [
            (
                method,
                *(
                    " / ".join(_figure(found[model, method], ours) for ours in (OWN, LINEAR))
                    if (model, method) in found
                    else "-"
                    for model in models
                ),
            )
            for method in methods
        ],
    )


def _figure(row: Row, ours: str) -> str:
    interval = row[f"time_over_{ours}_interval"]
    text = f"{row[f'time_over_{ours}']:.2f}"
    return text if interval is None else f"{text} ({interval[0]:.2f}-{interval[1]:.2f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of every method's time over that of pipelocal."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 5), squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        axes.barh([row["method"] for row in own], [row[f"time_over_{OWN}"] for row in own])
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set(title=model, xlabel="time of a step over pipelocal's")
        axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
