"""Detects from the environment what started this process: torchrun, another launcher, or the user."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipelocal.errors import Terminated, UserError
from pipelocal.system.files import write_atomically
from pipelocal.system.patience import Patience
from pipelocal.system.streams import say
from pipelocal.system.strict_json import to_json

SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "FLUX_JOB_SIZE",
)
"""Variables with the number of processes, set only by Open MPI, MPICH and its kin, jsrun and Flux."""
RANKS = ("PMIX_RANK", "PALS_RANKID")
"""Variables with a process's rank, of launchers that do not set the number of processes."""
SPECIAL_STEPS = 0xFFFFFFF0
"""First of SLURM's step numbers for batch scripts, interactive shells and the like."""
TOLD_S = 2.0
"""Seconds within which ranks on other nodes notice that one has failed."""
AGENT_S = 30.0
"""Seconds that a rank waits for torchrun to end it."""
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """Return the number of ranks in the environment; 1 if that is invalid."""
    return _number("WORLD_SIZE") or 1


def speaks_for_node() -> bool:
    """Return whether this process is the one that prints messages for its node."""
    return not under_torchrun() or os.environ.get("LOCAL_RANK", "0") == "0"


def has_other_nodes() -> bool:
    """Return whether there are ranks on other nodes."""
    return world_size() > (_number("LOCAL_WORLD_SIZE") or 1 if under_torchrun() else 1)


def tell_launcher(line: str, *, first: bool) -> None:
    """Leave the reason for this process's end where torchrun looks for it, to show it below all else.

    Args:
        line: the reason.
        first: whether the trouble began here; torchrun calls the earliest one the root cause.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or not under_torchrun():
        return
    seconds = int(time.time()) + (not first)
    more = {"py_callstack": line, "timestamp": str(seconds)}
    content = to_json({"message": {"message": line, "extraInfo": more}})
    with suppress(UserError):  # torchrun then says that it knows no reason
        write_atomically(Path(file), content.encode())


def end_job() -> None:
    """Keep torchrun from restarting this process, which would only fail again.

    The first rank of each node tells its agent to end, and the others wait for that: an agent that sees a
    rank end before that restarts all ranks.
    """
    if not under_torchrun() or not _number("TORCHELASTIC_MAX_RESTARTS"):
        return
    agent = _agent()
    if agent is None:
        return
    try:
        if os.environ.get("LOCAL_RANK") == "0":
            if has_other_nodes():
                time.sleep(TOLD_S)  # the agent may host the store that tells them why
            os.kill(agent, signal.SIGTERM)
        patience = Patience(AGENT_S)
        while not patience.over():
            time.sleep(0.05)
    except Terminated:
        return  # by the agent


def _agent() -> int | None:
    """Return the process id of torchrun, if it is a kind that can be signalled."""
    parent = psutil.Process().parent()
    words = {Path(word).name for word in parent.cmdline()} if parent is not None else set()
    known = not words.isdisjoint(("torchrun", "torch.distributed.run", "torch.distributed.launch"))
    return parent.pid if parent is not None and known else None


def left_over() -> str:
    """Describe the rank variables that are set, and the remedy if a shell has them by mistake."""
    there = [name for name in RENDEZVOUS if name in os.environ]
    given = ", ".join(f"{name}={os.environ[name]}" for name in there)
    return f"{given}: if these are left over in this shell, 'unset {' '.join(there)}'"


def check_alone() -> None:
    """Check that a process without a rank is not one of several that were started alike.

    Raises:
        UserError: it is, and each would train the whole network by itself.
    """
    if "WORLD_SIZE" in os.environ:
        return  # somebody has thought of it
    step = _number("SLURM_STEP_ID")
    in_step = step is not None and step < SPECIAL_STEPS
    names = list(SIZES)
    if in_step:
        names.insert(
            0, "SLURM_STEP_NUM_TASKS" if _number("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
        )
    several = [name for name in names if (_number(name) or 1) > 1]
    several += [name for name in RANKS if (_number(name) or 0) > 0]
    if several:
        name = several[0]
        raise UserError(
            f"{name}={os.environ[name]} says that several of these processes were started, but RANK is not "
            f"set, so that each would train the whole alone: start torchrun once on each node (for SLURM "
            f"launch/slurm.sh does), or set WORLD_SIZE=1 if each is to train for itself"
        )
    if not in_step and (_number("SLURM_NTASKS") or 1) > 1:
        say(
            f"pipelocal: SLURM_NTASKS={os.environ['SLURM_NTASKS']}, but this is one process outside srun, "
            f"which works alone: to use all tasks start torchrun on each node, as launch/slurm.sh does "
            f"(WORLD_SIZE=1 silences this)"
        )


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
