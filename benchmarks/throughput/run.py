"""How fast is a training step over ranks: pipelocal, pipelines of back-propagation, DDP, one process.

Same model, ranks, threads, global batch and optimizer for all; pipelocal and the schedules with one
stage a rank also share the cut. All methods take turns, round by round, and ratios are formed within
a round::

    python benchmarks/throughput/run.py --quick --json throughput.json
    python benchmarks/throughput/run.py --json throughput.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import Target
from benchmarks.cuts import balanced_cut
from benchmarks.intervals import interval_of_median
from benchmarks.throughput.peer import MULTI, SINGLE
from pipelocal.config import TrainConfig
from pipelocal.ranks.host import set_up_host

HERE = Path(__file__).parent
LOG_EVERY = 8
"""Batches in a record of metrics.jsonl: whole cycles of ``--reconcile-every``."""

ALONE, AT_ONCE = "slowest stage alone", "slowest of all stages at once"
"""Stages without edges: with the machine for itself, and with the other ranks computing too."""

Row = dict[str, Any]
Measure = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all methods do."""

    model: str
    data: str
    batch_size: int
    steps: int
    """Training steps of a run of pipelocal; the others take a third of them."""


WORKS = (
    Work(model="resnet20", data="synthetic", batch_size=64, steps=64),
    Work(model="vit_small", data="synthetic", batch_size=64, steps=24),
    Work(model="gpt", data="text64", batch_size=32, steps=64),
    Work(model="mlp", data="digits", batch_size=16, steps=1600),
)
OVERHEAD = "mlp"
"""Next to no computing, so that a batch's time shows what the runtime itself costs: no peers."""


def main() -> None:
    """Measure, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        text = Path(scratch, "text")
        text.write_bytes(random.Random(0).randbytes(400_000))
        for work in WORKS:
            if work.model in options.models:
                rows += compare(work, options, str(text))
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
        "--rounds", type=int, default=6, help="all methods in turns; 6 or more give intervals"
    )
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    if options.ranks < 2:
        parser.error(f"--ranks {options.ranks}: a pipeline has at least 2")
    if options.quick:
        options.rounds, options.models = 1, [names[0], OVERHEAD]
    return options


def compare(work: Work, options: argparse.Namespace, text: str) -> list[Row]:
    """A row for every method, with the seconds of a step in each round."""
    ranks, rounds = options.ranks, options.rounds
    cut = cut_for(work, ranks)
    print(f"{work.model}: cut {cut} over {ranks} ranks", flush=True)
    measures: dict[str, Measure] = {}
    for objective in ("greedy", "sgr"):
        own = partial(measure_own, work, cut, objective, ranks, text)
        measures[f"pipelocal {objective}"] = own
        for name, at_once in ((ALONE, 1),) if options.quick else ((ALONE, 1), (AT_ONCE, ranks)):
            measures[f"{name}, {objective}"] = partial(alone, work, cut, objective, at_once)
    if work.model != OVERHEAD:
        measures |= peer_measures(work, cut, ranks, quick=options.quick)
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for round_ in range(rounds):
        for name, measure in measures.items():
            seconds[name].append(measure())
        print(f"{work.model}: round {round_ + 1} of {rounds}", flush=True)
    return [_row(work, name, seconds) for name in measures]


def peer_measures(work: Work, cut: str, ranks: int, *, quick: bool) -> dict[str, Measure]:
    """What pipelocal is held against; the short form leaves the weaker schedules out."""
    measures: dict[str, Measure] = {}
    counts: tuple[int, ...]
    methods: tuple[str, ...]
    if quick:
        counts, methods, finer_cut = (ranks, 4 * ranks), ("1F1B",), cut
    else:
        counts, methods = (ranks, 2 * ranks, 4 * ranks), (*SINGLE, *MULTI)
        finer_cut = cut_for(work, 2 * ranks)
        print(f"{work.model}: cut {finer_cut} where two stages share a rank", flush=True)
    for micro_batches in counts:
        for method in methods:
            own_cut = finer_cut if method in MULTI else cut
            name = f"{method}, m = {micro_batches}"
            measures[name] = partial(peer, work, own_cut, method, ranks, micro_batches)
    measures["DDP"] = partial(peer, work, cut, "DDP", ranks)
    # In place of one process a rank: one process with as many threads.
    measures["BP, one process"] = partial(peer, work, cut, "BP", 1, threads=ranks)
    return measures


def _row(work: Work, name: str, seconds: dict[str, list[float]]) -> Row:
    own = seconds[name]
    row: Row = {"model": work.model, "batch_size": work.batch_size, "method": name}
    for objective in ("greedy", "sgr"):
        ours = seconds[f"pipelocal {objective}"]
        ratios = [theirs / mine for theirs, mine in zip(own, ours, strict=True)]
        row[f"time_over_{objective}"] = statistics.median(ratios)
        row[f"time_over_{objective}_interval"] = interval_of_median(ratios)
        row[f"time_over_{objective}_each_round"] = ratios
    without_edges, _, objective = name.partition(", ")
    if without_edges in (ALONE, AT_ONCE):
        measured = seconds[f"pipelocal {objective}"]
        beyond = [1000 * (a - b) for a, b in zip(measured, own, strict=True)]
        row["pipelocal_ms_beyond"] = statistics.median(beyond)
        row["pipelocal_ms_beyond_each_round"] = beyond
    return row


def cut_for(work: Work, stages: int) -> str:
    """As ``--balance time`` cuts for local losses, measured on this machine."""
    return balanced_cut(
        TrainConfig(
            model=work.model,
            data=work.data,
            stages=stages,
            objective="greedy",
            head="linear",
            batch_size=work.batch_size,
        )
    )


def measure_own(work: Work, cut: str, objective: str, ranks: int, text: str) -> float:
    """Seconds of a batch of pipelocal in the long run."""
    config = TrainConfig(
        model=work.model, data=work.data, objective=objective, cut=cut, head="linear"
    )
    config = replace(config, batch_size=work.batch_size, lr=0.01, max_steps=work.steps)
    config = replace(config, epochs=1000, evaluate_every=1000, log_every=LOG_EVERY, data_root=text)
    metrics = common.metrics_over_ranks(ranks, replace(config, drop_last=True))
    return common.seconds_of_a_batch(metrics, ranks, work.batch_size)


def alone(work: Work, cut: str, objective: str, ranks: int) -> float:
    """Seconds of a step of the slowest stage, without edges: on one rank in turns, or all at once."""
    arguments = [str(HERE / "alone.py"), *_work_arguments(work, cut), "--objective", objective]
    arguments += ["--steps", str(work.steps // 3)]
    output = common.launch(ranks, arguments, what="stages without edges")
    lines = [line for line in output.splitlines() if line.startswith("[")]
    return float(max(seconds for line in lines for seconds in json.loads(line)))


def peer(
    work: Work, cut: str, method: str, ranks: int, micro_batches: int = 1, threads: int = 1
) -> float:
    """Median seconds of a step of another method."""
    arguments = [str(HERE / "peer.py"), *_work_arguments(work, cut), "--method", method]
    arguments += ["--micro-batches", str(micro_batches), "--threads", str(threads)]
    arguments += ["--steps", str(work.steps // 3)]
    return float(common.launch(ranks, arguments, what=f"{work.model}, {method}").splitlines()[-1])


def _work_arguments(work: Work, cut: str) -> list[str]:
    size = str(work.batch_size)
    return ["--model", work.model, "--data", work.data, "--cut", cut, "--batch-size", size]


def make_targets(rows: Sequence[Row], ranks: int) -> list[Target]:
    """Efficiency, overhead, and the ratio to the best schedule."""
    targets = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["method"]: row for row in rows if row["model"] == model}
        for objective in ("greedy", "sgr"):
            row, at_once = own[f"{ALONE}, {objective}"], own.get(f"{AT_ONCE}, {objective}")
            name = f"{model}, {objective}"
            if model == OVERHEAD:
                what = f"{name}: ms a batch beyond the slowest stage"
                key, target = "pipelocal_ms_beyond", partial(common.at_most, threshold=1.0)
            else:
                what = f"{name}: efficiency"
                key, target = f"time_over_{objective}", partial(common.at_least, threshold=0.95)
            each = f"{key}_each_round"
            targets.append(target(what, row[each]))
            if at_once is not None:
                targets.append(common.reported(f"{what}, all stages at once", at_once[each]))
        if model == OVERHEAD:
            continue
        for micro_batches, goal in ((ranks, 1.3), (4 * ranks, 1.05)):
            ending = f", m = {micro_batches}"
            schedules = [row for method, row in own.items() if method.endswith(ending)]
            for objective in ("sgr", "greedy"):
                best = min(schedules, key=itemgetter(f"time_over_{objective}"))
                name = f"{model}, {objective}: over the best pipeline{ending}"
                each = best[f"time_over_{objective}_each_round"]
                targets.append(common.at_least(name, each, goal))
    return targets


def show(rows: Sequence[Row]) -> None:
    """A line for each method, a column for each model and objective."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["model"], row["method"]): row for row in rows}
    common.print_table(
        "time of a step over pipelocal's, median of the rounds (greedy / sgr)",
        ("method", *models),
        [
            (
                method,
                *(
                    "{time_over_greedy:.2f} / {time_over_sgr:.2f}".format(**found[model, method])
                    if (model, method) in found
                    else "-"
                    for model in models
                ),
            )
            for method in dict.fromkeys(row["method"] for row in rows)
        ],
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of every method's time over that of sgr."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 5), squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        axes.barh([row["method"] for row in own], [row["time_over_sgr"] for row in own])
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set(title=model, xlabel="time of a step over pipelocal sgr's")
        axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
