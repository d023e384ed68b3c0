"""Kill ranks of runs at random moments, and see whether all come to the end that they would have had.

Two ranks under ``torchrun --max-restarts``, a snapshot every few batches. Every trial ends with the run's
weights held against those of a run that nobody disturbed, bit for bit::

    python benchmarks/faults/run.py --quick --json faults.json
    python benchmarks/faults/run.py --json faults.json
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch

from benchmarks import common
from benchmarks.common import BenchmarkError, Target
from pipelocal.checkpoint.snapshot import SnapshotFolder

RANKS = 2
WORK = ["--model", "mlp", "--stages", "4", "--epochs", "60", "--log-every", "8", "--plain"]
SNAPSHOTS = ["--snapshot-every", "20"]
TIMEOUT_S = 5.0
"""Without a sign from a neighbour, in trials with a rank that hangs."""
PATIENCE_S = 180.0
"""After which a trial has failed: a hang."""
POLL_S = 0.01

Row = dict[str, Any]


def main() -> None:
    """Try, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--kills", type=int, default=50, help="runs of which a rank is killed")
    parser.add_argument("--hangs", type=int, default=3, help="runs of which a rank is stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and ranks")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.hangs = 4, 0
    common.check_writable(options.json)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        reference = Path(scratch, "reference")
        seconds = run_reference(reference)
        trials: list[tuple[str, int, Callable[[Path], Row]]] = [
            ("SIGKILL", options.kills, lambda out: killed(out, chance, seconds)),
            ("SIGSTOP", options.hangs, lambda out: stopped(out, chance)),
        ]
        rows = []
        for what, count, trial in trials:
            for number in range(count):
                out = Path(scratch, f"{what}-{number}")
                row = {"fault": what, **trial(out), "same_bits": same_bits(reference, out)}
                rows.append(row)
                print(f"{what} {number + 1} of {count}: {describe(row)}", flush=True)
                shutil.rmtree(out, ignore_errors=True)
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


def run_reference(out: Path) -> float:
    """A run that nobody disturbs; its seconds, start-up included."""
    started = time.monotonic()
    with Launched(out, ()) as launched:
        if launched.wait() != 0:
            raise BenchmarkError(f"the undisturbed run failed: {launched.said().splitlines()[-1]}")
    return time.monotonic() - started


class Launched:
    """A run under torchrun.

    Args:
        out: its folder.
        more: options beside those of all runs.
    """

    def __init__(self, out: Path, more: Sequence[str]) -> None:
        self.out = out
        self._log = out.with_suffix(".log")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(RANKS), "--max-restarts", "3", "-m", "pipelocal"]
        command += ["train", *WORK, *SNAPSHOTS, *more, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._process, *self.ranks().values()):
            process.kill()
        self._process.wait()

    def wait(self) -> int | None:
        """The exit code; None if the run does not end."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return None

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that are alive."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(self.out) in words and "torch.distributed.run" not in words:
                try:
                    found[int(process.environ()["RANK"])] = process
                except (psutil.Error, KeyError):
                    continue
        return found


def killed(out: Path, chance: random.Random, seconds: float) -> Row:
    """A random rank, at a random moment between the launch and the end of an undisturbed run."""
    moment, rank = chance.uniform(0.0, seconds), chance.randrange(RANKS)
    with Launched(out, ()) as launched:
        time.sleep(moment)
        while rank not in (before := launched.ranks()) and not launched.ended():
            time.sleep(POLL_S)
        row = {"rank": rank, "share_of_run": moment / seconds}
        return {**row, **disturb(launched, before, rank, signal.SIGKILL)}


def stopped(out: Path, chance: random.Random) -> Row:
    """A random rank stops for ever, as one that hangs, once the first snapshot is there."""
    rank = chance.randrange(RANKS)
    with Launched(out, ["--timeout", str(TIMEOUT_S)]) as launched:
        while not SnapshotFolder(out).steps() and not launched.ended():
            time.sleep(POLL_S)
        return {"rank": rank, **disturb(launched, launched.ranks(), rank, signal.SIGSTOP)}


def disturb(
    launched: Launched, before: dict[int, psutil.Process], rank: int, number: signal.Signals
) -> Row:
    """Send a signal to a rank, and watch what becomes of the run."""
    if rank not in before:
        return {"sent": False, "ended": launched.wait() == 0, "left_behind": 0}
    started = time.monotonic()
    before[rank].send_signal(number)
    others = [process for other, process in before.items() if other != rank]
    noticed = back = None
    while not launched.ended() and time.monotonic() - started < PATIENCE_S:
        if noticed is None and not any(process.is_running() for process in others):
            noticed = time.monotonic() - started
        said = launched.said()
        if "going on after" in said or "beginning anew" in said:
            back = time.monotonic() - started
            break
        time.sleep(POLL_S)
    code = launched.wait()
    return {
        "sent": True,
        "ended": code == 0,
        "seconds_to_notice": noticed,
        "seconds_to_go_on": back,
        "left_behind": len(launched.ranks()),
    }


def same_bits(reference: Path, out: Path) -> bool:
    """Whether two runs ended with the same weights and optimizer states."""
    names = sorted(path.name for path in (reference / "stages").iterdir())
    if not (out / "stages").is_dir():
        return False
    states = [
        [torch.load(run / "stages" / name, weights_only=True) for name in names]
        for run in (reference, out)
    ]
    return equal(*states)


def equal(a: Any, b: Any) -> bool:
    """Whether two structures hold the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def describe(row: Row) -> str:
    """One line."""
    seconds = row.get("seconds_to_go_on")
    when = "" if seconds is None else f", going on after {seconds:.1f} s"
    return f"rank {row['rank']}, ended {row['ended']}, same bits {row['same_bits']}{when}"


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Every run ended, with the same bits, and nothing left behind."""
    targets = []
    for fault in dict.fromkeys(row["fault"] for row in rows):
        own = [row for row in rows if row["fault"] == fault]
        share = sum(row["ended"] and row["same_bits"] for row in own) / len(own)
        left = sum(row["left_behind"] for row in own)
        targets += [
            common.at_least(
                f"{fault}: share of {len(own)} runs that ended with equal bits", share, 1
            ),
            common.at_most(f"{fault}: processes left behind", left, 0),
        ]
        for key in ("seconds_to_notice", "seconds_to_go_on"):
            values = [row[key] for row in own if row.get(key) is not None]
            if values:
                name = f"{fault}: {key.replace('_', ' ')}, median"
                targets.append(common.reported(name, statistics.median(values)))
    return targets


def show(rows: Sequence[Row]) -> None:
    """A line for each fault."""
    common.print_table(
        "faults",
        ("fault", "runs", "ended", "equal bits", "left behind", "s to go on: median", "most"),
        [
            (
                fault,
                str(len(own)),
                str(sum(row["ended"] for row in own)),
                str(sum(row["same_bits"] for row in own)),
                str(sum(row["left_behind"] for row in own)),
                *_seconds([row["seconds_to_go_on"] for row in own if row.get("seconds_to_go_on")]),
            )
            for fault in dict.fromkeys(row["fault"] for row in rows)
            for own in [[row for row in rows if row["fault"] == fault]]
        ],
    )


def _seconds(values: list[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    return f"{statistics.median(values):.1f}", f"{max(values):.1f}"


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
