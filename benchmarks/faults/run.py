"""Let things go wrong in runs, and see whether all come to the end that they would have had.

Two ranks under ``torchrun --max-restarts``, a snapshot every few batches. Every trial ends with the run's
weights held against those of a run that nobody disturbed, bit for bit::

    sudo python benchmarks/faults/run.py --quick --json faults.json
    sudo python benchmarks/faults/run.py --json faults.json
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError, Target
from benchmarks.communication import network
from benchmarks.faults import trials
from benchmarks.faults.launched import RANKS, Launched, same_bits
from benchmarks.faults.trials import Fault, Row

FAULTS: dict[str, tuple[Fault, int, int]] = {
    "SIGKILL": (trials.killed, 50, 3),
    "SIGSTOP": (trials.hung, 4, 0),
    "corrupted snapshot": (trials.corrupted, 4, 1),
    "full disk": (trials.full_disk, 3, 0),
    "link cut, 2 s": (trials.cut_shortly, 2, 0),
    "link cut, 15 s": (trials.cut_for_long, 2, 0),
}
"""What happens, how often, and how often in the quick form."""


def main() -> None:
    """Try, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, help="only these")
    parser.add_argument("--times", type=int, help="how often each, in place of what is usual")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and ranks")
    options = parser.parse_args()
    common.check_writable(options.json)
    chance = random.Random(options.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        reference = Path(scratch, "reference")
        seconds = run_reference(reference)
        for fault, count in _chosen(options).items():
            happen, _, _ = FAULTS[fault]
            for number in range(count):
                folder = Path(scratch, f"{fault}-{number}")
                row = {"fault": fault, **happen(folder, chance, seconds)}
                row["same_bits"] = same_bits(reference, folder / "run")
                rows.append(row)
                print(f"{fault} {number + 1} of {count}: {describe(row)}", flush=True)
                if not (row["ended"] and row["same_bits"]):
                    shutil.copy(folder / "log", options.json.with_suffix(f".{len(rows)}.log"))
                shutil.rmtree(folder, ignore_errors=True)
    targets = make_targets(rows)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "ranks": RANKS},
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def _chosen(options: argparse.Namespace) -> dict[str, int]:
    """How often what is to happen; without what this machine cannot do."""
    counts = {}
    for fault in options.faults or FAULTS:
        _, usual, quick = FAULTS[fault]
        count = options.times or (quick if options.quick else usual)
        lacking = None
        if fault.startswith("link"):
            lacking = network.missing()
        elif fault == "full disk" and os.geteuid() != 0:
            lacking = "root's right to mount"
        if count and lacking is not None:
            print(f"{fault}: left out, this machine lacks {lacking}")
        elif count:
            counts[fault] = count
    return counts


def run_reference(out: Path) -> float:
    """A run that nobody disturbs; its seconds, start-up included."""
    started = time.monotonic()
    with Launched(out, log=out.with_suffix(".log")) as run:
        if not run.well():
            raise BenchmarkError(f"the undisturbed run failed: {run.said().splitlines()[-1]}")
    return time.monotonic() - started


def describe(row: Row) -> str:
    """One line."""
    words = [f"rank {row['rank']}" if "rank" in row else "", f"ended {row['ended']}"]
    words += [f"same bits {row['same_bits']}"]
    for key, what in (("seconds_to_notice", "noticed"), ("seconds_to_go_on", "going on")):
        if row.get(key) is not None:
            words.append(f"{what} after {row[key]:.1f} s")
    return ", ".join(filter(None, words))


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Every run ended, with the same bits, and nothing left behind."""
    targets = []
    for fault, own in _by_fault(rows).items():
        share = sum(row["ended"] and row["same_bits"] for row in own) / len(own)
        left = sum(row["left_behind"] for row in own)
        name = f"{fault}: share of {len(own)} runs that ended with equal bits"
        targets.append(common.at_least(name, share, 1))
        targets.append(common.at_most(f"{fault}: processes left behind", left, 0))
        named = [row["named"] for row in own if "named" in row]
        if named:
            name = f"{fault}: share of which the cause was named"
            targets.append(common.at_least(name, sum(named) / len(named), 1))
        if fault == "SIGSTOP":
            most = max(_values(own, "seconds_to_notice"), default=float("inf"))
            name = "SIGSTOP: seconds to notice, most, with --timeout 5"
            targets.append(common.at_most(name, most, trials.TIMEOUT_S))
        for key in ("seconds_to_notice", "seconds_to_go_on"):
            if values := _values(own, key):
                name = f"{fault}: {key.replace('_', ' ')}, median"
                targets.append(common.reported(name, statistics.median(values)))
    return targets


def show(rows: Sequence[Row]) -> None:
    """A line for each fault."""
    common.print_table(
        "faults",
        ("fault", "runs", "ended", "equal bits", "left behind", "s to notice", "s to go on"),
        [
            (
                fault,
                str(len(own)),
                str(sum(row["ended"] for row in own)),
                str(sum(row["same_bits"] for row in own)),
                str(sum(row["left_behind"] for row in own)),
                _median_and_most(_values(own, "seconds_to_notice")),
                _median_and_most(_values(own, "seconds_to_go_on")),
            )
            for fault, own in _by_fault(rows).items()
        ],
    )


def _by_fault(rows: Sequence[Row]) -> dict[str, list[Row]]:
    faults = dict.fromkeys(row["fault"] for row in rows)
    return {fault: [row for row in rows if row["fault"] == fault] for fault in faults}


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _median_and_most(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}, at most {max(values):.1f}" if values else "-"


def plot(rows: Sequence[Row], path: Path) -> None:
    """When a rank was killed, and how soon the run went on."""
    pyplot = common.load_pyplot()
    own = [row for row in rows if row.get("seconds_to_go_on") and "share_of_run" in row]
    if pyplot is None or not own:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for rank in range(RANKS):
        mine = [row for row in own if row["rank"] == rank]
        x = [row["share_of_run"] for row in mine]
        axes.plot(x, [row["seconds_to_go_on"] for row in mine], "o", label=f"rank {rank}")
    axes.set(xlabel="moment of the kill, share of the run", ylabel="seconds until it goes on")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
