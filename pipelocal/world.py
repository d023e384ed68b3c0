"""Who takes part in a run: ranks, devices, and the store through which they find each other."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelocal.breakable import breakable
from pipelocal.errors import UserError
from pipelocal.meeting import meet

START_TIMEOUT_S = 300.0
"""How long ranks wait for each other before the first batch, unless it is said otherwise."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    store: dist.Store
    """Shared by all ranks; of this process alone when there is only one."""
    lasting: dist.Store
    """As ``store``, but shared with the attempts before and after this one."""
    node: str = ""
    """Equal on two ranks if they are on the same node."""
    start_timeout_s: float = START_TIMEOUT_S
    restarted: bool = False
    """Whether torchrun has started all ranks anew, for one of them ended before its time."""

    @classmethod
    def alone(cls) -> World:
        """A world of this one process; needs no torchrun and opens no socket."""
        store = dist.HashStore()
        return cls(rank=0, size=1, local_rank=0, store=store, lasting=store)

    @classmethod
    def from_environment(cls, *, start_timeout_s: float = START_TIMEOUT_S) -> World:
        """The world that torchrun describes in the environment, or this process alone.

        Where there is no torchrun, RANK and WORLD_SIZE must be set, and either MASTER_ADDR and
        MASTER_PORT, or PIPELOCAL_INIT_METHOD (such as ``file:///shared/folder/new-file``).

        Args:
            start_timeout_s: how long to wait for the other ranks, here and later before the first batch.

        Raises:
            UserError: the environment makes no sense, or the other ranks do not come.
        """
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls.alone()
        if "RANK" not in os.environ or not 0 <= rank < size:
            raise UserError(
                f"RANK={os.environ.get('RANK', '')} and WORLD_SIZE={size}: RANK must be set, from 0 "
                f"to {size - 1}; torchrun sets both"
            )
        method = os.environ.get("PIPELOCAL_INIT_METHOD", "env://")
        meeting = dist.rendezvous(
            method, rank=rank, world_size=size, timeout=timedelta(seconds=start_timeout_s)
        )
        try:
            store, _, _ = breakable(
                lambda: next(iter(meeting)), check=lambda: None, timeout_s=start_timeout_s
            )
            token = meet(
                dist.PrefixStore("pipelocal/meeting", store), rank, size, timeout_s=start_timeout_s
            )
        except (TimeoutError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or "nobody answered"
            raise UserError(
                f"the other ranks were not met ({reason}): start all {size}, with the same "
                f"MASTER_ADDR and MASTER_PORT"
            ) from error
        return cls(
            rank=rank,
            size=size,
            local_rank=_number("LOCAL_RANK", rank),
            store=dist.PrefixStore(f"pipelocal/{token}", store),
            lasting=dist.PrefixStore("pipelocal/all", store),
            # Torchrun's own number of the node, since hosts may share a name.
            start_timeout_s=start_timeout_s,
            node=os.environ.get("GROUP_RANK", socket.gethostname()),
            restarted=_number("TORCHELASTIC_RESTART_COUNT", 0) > 0,
        )

    @property
    def keeps_store(self) -> bool:
        """Whether the store of several ranks ends with this process."""
        own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return self.rank == 0 and self.size > 1 and own

    def device(self, name: str) -> torch.device:
        """This rank's device.

        Args:
            name: ``auto`` (CUDA where there is any), ``cpu`` or ``cuda``.

        Raises:
            UserError: no such device here.
        """
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {name}: choose auto, cpu or cuda")
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this process sees no CUDA device; choose --device cpu")
        if name == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


def _number(name: str, default: int) -> int:
    """A number from the environment that a launcher sets."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) == 0):
        raise UserError(f"the environment says {name}={text}: torchrun sets a whole number there")
    return int(text)


def describe_device(device: torch.device) -> str:
    """A name that is equal on two ranks only if they share the physical device."""
    host = socket.gethostname()
    if device.type == "cuda":
        return f"{host}/cuda/{torch.cuda.get_device_properties(device).uuid}"
    return f"{host}/{device.type}"
