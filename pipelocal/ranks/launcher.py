"""What started this process, as the environment tells: torchrun, another launcher, or the user alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from pipelocal.errors import Terminated, UserError
from pipelocal.system.patience import Patience
from pipelocal.system.streams import say

SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "FLUX_JOB_SIZE",
)
"""How many processes Open MPI, MPICH and its kin, jsrun and Flux started; set in these alone."""
RANKS = ("PMIX_RANK", "PALS_RANKID")
"""The number of a process of such launchers that do not say how many there are."""
SPECIAL_STEPS = 0xFFFFFFF0
"""From here on SLURM's numbers of steps stand for a batch script, an interactive shell and the like."""
TOLD_S = 2.0
"""Within which ranks on other nodes look whether one has failed."""
AGENT_S = 30.0
"""How long a rank waits for torchrun to end it."""
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """The number of ranks that the environment names; 1 where it makes no sense."""
    return _number("WORLD_SIZE") or 1


def speaks_for_node() -> bool:
    """Whether this process is the one of its node to say what all of the node would say."""
    return not under_torchrun() or os.environ.get("LOCAL_RANK", "0") == "0"


def has_other_nodes() -> bool:
    """Whether there are ranks that nobody on this node ends when this one ends."""
    return world_size() > (_number("LOCAL_WORLD_SIZE") or 1 if under_torchrun() else 1)


def end_job() -> None:
    """Keep torchrun from starting this process again, with the same options and to the same end.

    The first rank of each node asks its agent to end, and the others wait for that: an agent that sees a
    rank end before it is asked starts all anew.
    """
    if not under_torchrun() or not _number("TORCHELASTIC_MAX_RESTARTS"):
        return
    agent = _agent()
    if agent is None:
        return
    try:
        if os.environ.get("LOCAL_RANK") == "0":
            if has_other_nodes():
                time.sleep(TOLD_S)  # the agent may keep the store from which they hear why
            os.kill(agent, signal.SIGTERM)
        patience = Patience(AGENT_S)
        while not patience.over():
            time.sleep(0.05)
    except Terminated:
        return  # by the agent


def _agent() -> int | None:
    """The process number of torchrun, if it is one that we know how to speak to."""
    parent = psutil.Process().parent()
    words = {Path(word).name for word in parent.cmdline()} if parent is not None else set()
    known = not words.isdisjoint(("torchrun", "torch.distributed.run", "torch.distributed.launch"))
    return parent.pid if parent is not None and known else None


def left_over() -> str:
    """What is set of a rank's variables, and what to do where a shell still has them by mistake."""
    there = [name for name in RENDEZVOUS if name in os.environ]
    given = ", ".join(f"{name}={os.environ[name]}" for name in there)
    return f"{given}: if these are left over in this shell, 'unset {' '.join(there)}'"


def check_alone() -> None:
    """Look whether a process that nobody gave a rank is one of several that were started alike.

    Raises:
        UserError: it is, and each would train the whole by itself.
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
