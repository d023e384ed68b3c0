"""What can happen to a run, one function each: it happens once, and nobody helps but where it says so."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.communication.network import Shape, two_hosts
from benchmarks.faults.launched import POLL_S, RANKS, Launched
from pipelocal.checkpoint.snapshot import SnapshotFolder

TIMEOUT_S = 5.0
"""``--timeout`` where a rank hangs or is cut off."""
SHORT_CUT_S, LONG_CUT_S = 2.0, 15.0
"""How long a link is cut: less, and more, than the timeout."""

Row = dict[str, Any]
Fault = Callable[[Path, random.Random, float], Row]
"""Takes a folder of its own, chance, and the seconds of an undisturbed run."""


def killed(folder: Path, chance: random.Random, seconds: float) -> Row:
    """SIGKILL to a random rank, at a random moment between the launch and the end."""
    moment, rank = chance.uniform(0.0, seconds), chance.randrange(RANKS)
    with _launched(folder) as run:
        time.sleep(moment)
        while rank not in (ranks := run.ranks()) and not run.ended():
            time.sleep(POLL_S)
        if rank not in ranks:
            return {"happened": False, "rank": rank, **_outcome(run, None)}
        ranks[rank].kill()
        return {"rank": rank, "share_of_run": moment / seconds, **_outcome(run, time.monotonic())}


def hung(folder: Path, chance: random.Random, _seconds: float) -> Row:
    """SIGSTOP to a random rank once there is a snapshot: it hangs for ever."""
    rank = chance.randrange(RANKS)
    with _launched(folder, "--timeout", str(TIMEOUT_S)) as run:
        _wait_for_snapshots(run, 1)
        run.ranks()[rank].send_signal(signal.SIGSTOP)
        row = _outcome(run, time.monotonic())
        return {"rank": rank, "named": f"; rank {rank} does not answer" in run.said(), **row}


def corrupted(folder: Path, chance: random.Random, _seconds: float) -> Row:
    """A rank is killed, and a bit of the newest snapshot flipped before the run is back."""
    rank = chance.randrange(RANKS)
    with _launched(folder) as run:
        _wait_for_snapshots(run, 2)
        started = time.monotonic()
        run.ranks()[rank].kill()
        run.seconds_until(run.gave_up, since=started)
        step = SnapshotFolder(run.out).steps()[0]
        victim = run.out / "snapshots" / f"step-{step:08d}" / f"stage-{chance.randint(1, 4)}.pt"
        content = bytearray(victim.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        victim.write_bytes(content)
        row = _outcome(run, started)
        named = f"{victim.name} was changed after it was written" in run.said()
        return {"rank": rank, "named": named, **row}


def full_disk(folder: Path, _chance: random.Random, _seconds: float) -> Row:
    """The disk fills up, and has room again when the run has given up. Takes root, to mount one."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        with Launched(disk / "run", log=folder / "log") as run:
            _wait_for_snapshots(run, 1)
            started = time.monotonic()
            with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(2**16))
            noticed = run.seconds_until(run.gave_up, since=started)
            (disk / "ballast").unlink()
            row = _outcome(run, started) | {"seconds_to_notice": noticed}
            row["named"] = "No space left on device" in run.said()
        _keep(disk / "run", folder / "run")
        return row
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def cut_shortly(folder: Path, _chance: random.Random, _seconds: float) -> Row:
    """The link between two hosts is cut for less than the timeout."""
    return _cut(folder, SHORT_CUT_S)


def cut_for_long(folder: Path, _chance: random.Random, _seconds: float) -> Row:
    """The link between two hosts is cut for longer than the timeout, and comes back."""
    return _cut(folder, LONG_CUT_S)


def _cut(folder: Path, seconds: float) -> Row:
    folder.mkdir(parents=True)
    with two_hosts(Shape()) as hosts:
        options = ["--timeout", str(TIMEOUT_S)]
        with Launched(folder / "run", log=folder / "log", more=options, hosts=hosts) as run:
            _wait_for_snapshots(run, 1)
            started = time.monotonic()
            hosts[1].cut_off()
            noticed = run.seconds_until(
                lambda: run.gave_up() or time.monotonic() - started > seconds, since=started
            )
            time.sleep(max(0.0, started + seconds - time.monotonic()))
            hosts[1].reconnect()
            row = _outcome(run, started)
            if noticed is not None and noticed < seconds:
                row["seconds_to_notice"] = noticed
                row["named"] = "; rank 1 does not answer" in run.said()
            return row


def _launched(folder: Path, *more: str) -> Launched:
    folder.mkdir(parents=True)
    return Launched(folder / "run", log=folder / "log", more=more)


def _keep(run: Path, to: Path) -> None:
    subprocess.run(["cp", "-r", str(run), str(to)], check=True)


def _wait_for_snapshots(run: Launched, count: int) -> None:
    folder = SnapshotFolder(run.out)
    while len(folder.steps()) < count and not run.ended():
        time.sleep(POLL_S)


def _outcome(run: Launched, since: float | None) -> Row:
    """Watch what becomes of a run to which something happened at a moment."""
    row: Row = {"happened": since is not None}
    if since is not None:
        row["seconds_to_notice"] = run.seconds_until(
            lambda: run.gave_up() or run.goes_on(), since=since
        )
        row["seconds_to_go_on"] = run.seconds_until(run.goes_on, since=since)
    row["ended"] = run.well()
    row["left_behind"] = len(run.ranks())
    return row
