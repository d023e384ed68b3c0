"""What crosses the link between two ranks, and what a slow link costs: pipelocal and 1F1B.

Bytes of every batch, as the tensors have them and as the kernel counts them on the link; and the
time of a step as bandwidth falls and latency (one way) rises. The link joins two network namespaces
of this machine, which needs root; without, only the tensors' bytes are counted::

    python benchmarks/communication/run.py --quick --json communication.json
    python benchmarks/communication/run.py --json communication.json
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError, Target
from benchmarks.communication import counted, network, rates, report
from benchmarks.communication.methods import WORKS, Work
from benchmarks.communication.network import NetworkError, Shape
from pipelocal.ranks.host import set_up_host

TEXT_BYTES = 60_000
"""Enough for an epoch of some dozens of batches, and for few batches of evaluation."""
LARGEST_SHARE = 0.6
"""Of 1F1B's bytes: one tensor an edge for two, labels, and delta in every eighth batch."""
LARGEST_SLOWDOWN = 0.5
"""Of 1F1B's, at 100 Mbit/s and 50 ms."""
TCP = "/proc/sys/net/ipv4"

Row = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    lacking = network.missing()
    if lacking is not None:
        print(f"no link between namespaces, so no rates: this machine lacks {lacking}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        text = Path(scratch, "text")
        text.write_bytes(random.Random(0).randbytes(TEXT_BYTES))
        try:
            for work in WORKS:
                rows += measure(work, options, str(text), link=lacking is None)
        except NetworkError as error:
            raise BenchmarkError(str(error)) from error
    targets = make_targets(rows)
    report.show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=environment(),
        results=rows,
        targets=targets,
    )
    if lacking is None:
        report.plot(rows, options.json.with_suffix(".png"))


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--rounds", type=int, default=2, help="all methods in turns, so many times")
    parser.add_argument("--part", choices=("bytes", "rates"), help="only this (default: both)")
    parser.add_argument("--models", nargs="+", default=[work.model for work in WORKS])
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    return options


def environment() -> Row:
    """What the figures were taken on; TCP's settings are those of the kernel, for all methods."""
    names = ("tcp_congestion_control", "tcp_rmem", "tcp_wmem")
    tcp = {name: Path(TCP, name).read_text().strip() for name in names}
    return {**common.describe_environment(threads=1), "ranks": 2, **tcp}


def measure(work: Work, options: argparse.Namespace, text: str, *, link: bool) -> list[Row]:
    """The rows of one work."""
    first = work is WORKS[0]
    if work.model not in options.models or (options.quick and not first):
        return []
    rows = []
    if options.part != "rates":
        for method in counted.QUICK if options.quick else counted.METHODS:
            rows.append(counted.count(work, method, text=text, link=link))
            print(f"{work.model}, {method.name}: bytes counted", flush=True)
    if options.part != "bytes" and link:
        shapes: Sequence[Shape] = rates.GRID if first else rates.FEW
        chosen = rates.METHODS if first else (rates.OWN[1], rates.PEERS[0])
        rounds = options.rounds
        if options.quick:
            shapes, chosen, rounds = (rates.UNSHAPED, rates.SLOWEST), rates.QUICK, 1
        for item in rates.measure(work, shapes, chosen, rounds, text=text):
            if isinstance(item, str):
                print(item, flush=True)
            else:
                rows.append(item)
    return rows


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Bytes against 1F1B's, and slowdown on the slowest link against 1F1B's."""
    targets = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        counts = {row["method"]: row for row in own if row["part"] == "bytes"}
        peer = counts.get(rates.PEERS[0].name)
        for method in rates.OWN:
            if peer is not None and method.name in counts:
                share = counts[method.name]["tensor_bytes"] / peer["tensor_bytes"]
                name = f"{model}, {method.name}: tensors' bytes over 1F1B's"
                targets.append(common.at_most(name, share, LARGEST_SHARE))
        slowest = [
            row
            for row in own
            if row["part"] == "rates"
            and row["bits_per_s"] == rates.SLOWEST.bits_per_s
            and row["one_way_s"] == rates.SLOWEST.one_way_s
        ]
        for row in slowest:
            if row["method"] in [peer.name for peer in rates.PEERS]:
                continue
            for other in rates.PEERS:
                name = f"{model}, {row['method']}: slowdown over that of {other.name}"
                each = row.get(f"slowdown_over_{other.name}_each_round")
                if each is not None:
                    targets.append(common.at_most(name, each, LARGEST_SLOWDOWN))
    return targets


if __name__ == "__main__":
    common.run_main(main)
