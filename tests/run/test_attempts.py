"""What torchrun --max-restarts tries again, and what it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelocal import cli
from pipelocal.errors import Interrupted, NotMet, Refused, StageError, UserError
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.system.files import unwritable
from tests.launching import PATIENCE_S, free_port, launch, torchrun

TRAIN = [
    "-m",
    "pipelocal",
    "train",
    "--model",
    "mlp",
    "--stages",
    "2",
    "--max-steps",
    "2",
    "--plain",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "3"]


def two_ranks(*options: str) -> subprocess.CompletedProcess[str]:
    """Run a training under torchrun, which may try it four times."""
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *TRAIN, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lr", "-1"), r"pipelocal \(rank \d\): error: --lr -1.0: give a number above 0"),
        pytest.param(("--no-such-option",), "no-such-option", marks=pytest.mark.slow),
        pytest.param(
            ("--data", "cifar10", "--data-root", "/nowhere"), "/nowhere", marks=pytest.mark.slow
        ),
    ],
)
def test_options_that_cannot_be_used_were_tried_four_times(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    """Torchrun starts all anew whatever the reason, unless it is itself told to end."""
    done = two_ranks(*options, "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if re.search(said, line)]
    # Of each rank at most once: torchrun ends the other as soon as one has spoken.
    assert 1 <= len(lines) <= 2, done.stderr
    assert "pipelocal/cli.py" not in done.stderr, "a traceback of ours"
    assert not (tmp_path / "run").exists()


def test_the_end_of_the_screen_says_why(tmp_path: Path) -> None:
    """Torchrun's own traceback and summary come last, and said only that the exit code was 2."""
    done = torchrun(2, [*TRAIN[2:], "--lr", "-1", "--out", str(tmp_path / "run")])
    assert done.returncode != 0
    _, _, cause = done.stderr.rpartition("Root Cause")
    assert re.search(r"traceback : pipelocal \(rank \d\): error: --lr -1.0: give a", cause), cause
    assert "To enable traceback" not in cause


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("option", [["--no-such-option"], ["--lr", "-1"]], ids=str)
def test_a_node_with_options_that_cannot_be_used_ends_the_others(
    tmp_path: Path, wrong: int, option: list[str]
) -> None:
    """They waited for it until --start-timeout, and then once more in each attempt."""
    port = free_port()
    agents = []
    for node in range(2):
        where = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        where += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        options = ["--out", str(tmp_path / "run"), *(option if node == wrong else [])]
        agents.append(
            subprocess.Popen(
                [*TORCHRUN, *where, *TRAIN, *options], stderr=subprocess.PIPE, text=True
            )
        )
    for node, agent in enumerate(agents):
        _, said = agent.communicate(timeout=PATIENCE_S)
        assert agent.returncode != 0
        reason = "stopped: rank" if "--lr" in option else "options cannot be read"
        assert node == wrong or reason in said, said


def test_a_rank_that_cannot_read_its_options_ends_the_others(tmp_path: Path) -> None:
    good = ["train", "--model", "mlp", "--stages", "2", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "log", [good, [*good, "--no-such-option"]], 2)
    assert ranks.wait() == [cli.FAILURE, cli.USER_ERROR], ranks.output()
    assert "stopped: rank 1, its options cannot be read: its own output" in ranks.output(0)
    assert "no-such-option" in ranks.output(1)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (UserError("--lr -1"), True),
        (NotMet("nobody came"), False),
        (unwritable(Path("file"), OSError(28, "No space left on device")), False),
        (StageError("it broke", stage=1), False),
        (OSError("the disk is full"), False),
    ],
    ids=str,
)
def test_what_no_other_attempt_can_mend(tmp_path: Path, error: Exception, refused: bool) -> None:
    planes = []
    for rank in range(2):
        store = dist.FileStore(str(tmp_path / "store"), 2)
        world = World(rank=rank, size=2, local_rank=rank, store=store, lasting=store)
        planes.append(ControlPlane(world))
    zero, one = planes
    try:
        one.fail(error, grace_s=0.1)
        with pytest.raises(Interrupted) as raised:
            zero.wait_for("what nobody publishes", timeout_s=60)
        assert isinstance(raised.value, Refused) == refused
    finally:
        for plane in planes:
            plane.stop_watching()
