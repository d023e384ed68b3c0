"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from pipelocal.checkpoint.snapshot import SnapshotFolder
from tests.interrupted import BASE, EVERY, train_until
from tests.test_transparency import train_alone

# One thread: the ranks of a test share two cores, and a forked child must not inherit a thread pool.
torch.set_num_threads(1)

# A shell's background job ignores Ctrl-C, one under nohup SIGHUP, and so would every run of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # programs that are started have the default then

# An example has no time limit: the machine may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: a third of the time, tests wait for a disk, a timeout or a peer."""
    cores = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(cores) + 1


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that those which were interrupted must come out equal to."""
    return train_alone(BASE, tmp_path_factory.mktemp("runs") / "uninterrupted")


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for reading, with snapshots after 10 and 20 batches, and no end."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        train_until(25, [*BASE, *EVERY], out, patch)
    assert SnapshotFolder(out).steps() == [20, 10]
    return out
