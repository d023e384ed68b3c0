"""What each mechanism of the runtime gains: one row a mechanism, pipelocal with it and without it.

Two ranks, greedy with the default heads. A ResNet on one machine for all of them; a GPT over a slow link
between two network namespaces (100 Mbit/s, 10 ms one way; needs root) for those that concern the edge::

    python benchmarks/ablation/run.py --quick --json ablation.json
    python benchmarks/ablation/run.py --json ablation.json
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.ablation.mechanisms import Mechanism, Variant, mechanisms
from benchmarks.common import BenchmarkError
from benchmarks.communication import network, over_link
from benchmarks.communication.network import NetworkError, Shape, two_hosts
from benchmarks.intervals import interval_of_median
from pipelocal.config import TrainConfig
from pipelocal.ranks.host import set_up_host

HERE = Path(__file__).parent
RANKS = 2
LOG_EVERY = 8
"""Batches in a record of metrics.jsonl: whole cycles of ``--reconcile-every``."""
NOT_COUNTED = 2
"""First records of a run, in which the pipeline fills and what is compiled is compiled."""
SLOW = Shape(bits_per_s=1e8, one_way_s=0.01)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is trained, and where."""

    name: str
    config: TrainConfig
    link: Shape | None
    """Between the two ranks; None for two ranks of this machine."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one run."""

    seconds: float
    """A batch, in the long run."""
    peak_bytes: int
    """Of the stage that needs most, as the stage counts it."""


def main() -> None:
    """Measure, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    lacking = network.missing()
    if lacking is not None:
        print(f"no link between namespaces: this machine lacks {lacking}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        text = Path(scratch, "text")
        text.write_bytes(random.Random(0).randbytes(60_000))
        for place in places(str(text)):
            if place.link is None or lacking is None:
                rows += compare(place, options)
    show(rows)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "ranks": RANKS},
        results=rows,
        targets=[
            common.reported(
                f"{row['place']}: {row['mechanism']}", row["time_without_over_with_each_round"]
            )
            for row in rows
        ],
    )
    plot(rows, options.json.with_suffix(".png"))


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--rounds", type=int, default=2, help="all runs in turns, so many times")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    if options.quick:
        options.rounds = 1
    return options


def places(text: str) -> list[Place]:
    """Both, with the options that all runs there share."""
    shared = TrainConfig(
        lr=0.01,
        epochs=1000,
        evaluate_every=1000,
        log_every=LOG_EVERY,
    )
    shared = replace(shared, max_steps=48, drop_last=True)
    images = replace(shared, model="resnet20", data="synthetic", batch_size=32, cut="block4")
    letters = replace(
        shared, model="gpt", data="text64", data_root=text, batch_size=16, cut="block4"
    )
    return [
        Place(name="resnet20, one machine", config=images, link=None),
        Place(name="gpt, 100 Mbit/s, 10 ms", config=letters, link=SLOW),
    ]


def compare(place: Place, options: argparse.Namespace) -> list[Row]:
    """A row for each mechanism; the runs take turns, round by round."""
    chosen = [
        mechanism
        for mechanism in mechanisms()
        if (place.link is None or mechanism.link) and (mechanism.quick or not options.quick)
    ]
    variants = list(dict.fromkeys(v.name for m in chosen for v in (m.without, m.own)))
    runs = {v.name: v for m in chosen for v in (m.without, m.own)}
    measured: dict[str, list[Measured]] = {name: [] for name in variants}
    for round_ in range(options.rounds):
        for name in variants:
            measured[name].append(measure(place, runs[name]))
        print(f"{place.name}: round {round_ + 1} of {options.rounds}", flush=True)
    return [row_of(place, mechanism, measured) for mechanism in chosen]


def measure(place: Place, variant: Variant) -> Measured:
    """One run."""
    config = replace(place.config, **variant.options)
    entry = ["-m", "pipelocal"]
    if variant.switched_off is not None:
        entry = [str(HERE / "without.py"), variant.switched_off]
    try:
        if place.link is None:
            _, metrics = over_link.train(None, config, entry=entry)
        else:
            with two_hosts(place.link) as hosts:
                _, metrics = over_link.train(hosts, config, entry=entry)
    except NetworkError as error:
        raise BenchmarkError(str(error)) from error
    records = [record for record in metrics if record["event"] == "train"]
    rates = [r["samples_per_second"] for r in records if r["stage"] == RANKS][NOT_COUNTED:]
    return Measured(
        seconds=config.batch_size / statistics.median(rates),
        peak_bytes=max(record["peak_memory_bytes"] for record in records),
    )


def row_of(place: Place, mechanism: Mechanism, measured: dict[str, list[Measured]]) -> Row:
    """Ratios within a round, and their median."""
    pairs = list(zip(measured[mechanism.without.name], measured[mechanism.own.name], strict=True))
    times = [without.seconds / own.seconds for without, own in pairs]
    memory = [without.peak_bytes / own.peak_bytes for without, own in pairs]
    return {
        "place": place.name,
        "mechanism": mechanism.name,
        "time_without_over_with": statistics.median(times),
        "time_without_over_with_each_round": times,
        "interval": interval_of_median(times),
        "memory_without_over_with": statistics.median(memory),
    }


def show(rows: Sequence[Row]) -> None:
    """A line for each mechanism at each place."""
    common.print_table(
        "a batch without the mechanism over a batch with it: above 1 it gains",
        ("mechanism", "where", "time", "each round", "a stage's memory"),
        [
            (
                row["mechanism"],
                row["place"],
                f"{row['time_without_over_with']:.2f}",
                ", ".join(f"{ratio:.2f}" for ratio in row["time_without_over_with_each_round"]),
                f"{row['memory_without_over_with']:.2f}",
            )
            for row in rows
        ],
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar for each mechanism, a panel for each place."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    names = list(dict.fromkeys(row["place"] for row in rows))
    figure, panels = pyplot.subplots(len(names), 1, figsize=(8, 3 * len(names)), squeeze=False)
    for axes, name in zip(panels[:, 0], names, strict=True):
        own = [row for row in rows if row["place"] == name]
        ratios = [row["time_without_over_with"] for row in own]
        axes.barh([row["mechanism"] for row in own], ratios)
        for i, row in enumerate(own):
            each = row["time_without_over_with_each_round"]
            axes.plot(each, [i] * len(each), "k.", markersize=4)
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.set(title=name, xlabel="time of a batch without it over with it")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
