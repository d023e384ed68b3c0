"""Who takes part in a run: ranks, devices, and the store through which they find each other."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelocal.errors import UserError

START_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    store: dist.Store
    """Shared by all ranks; of this process alone when there is only one."""

    @classmethod
    def alone(cls) -> World:
        """A world of this one process; needs no torchrun and opens no socket."""
        return cls(rank=0, size=1, local_rank=0, store=dist.HashStore())

    @classmethod
    def from_environment(cls) -> World:
        """The world that torchrun describes in the environment, or this process alone.

        Where there is no torchrun, RANK and WORLD_SIZE must be set, and either MASTER_ADDR and
        MASTER_PORT, or PIPELOCAL_INIT_METHOD (such as ``file:///shared/folder/new-file``).
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls.alone()
        method = os.environ.get("PIPELOCAL_INIT_METHOD", "env://")
        rank = int(os.environ["RANK"])
        store, _, _ = next(
            iter(dist.rendezvous(method, rank=rank, world_size=size, timeout=START_TIMEOUT))
        )
        # torchrun keeps one store over restarts: an attempt must not read what the last one wrote.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(
            rank=rank,
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", rank)),
            store=dist.PrefixStore(f"pipelocal/{attempt}", store),
        )

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


def describe_device(device: torch.device) -> str:
    """A name that is equal on two ranks only if they share the physical device."""
    host = socket.gethostname()
    if device.type == "cuda":
        return f"{host}/cuda/{torch.cuda.get_device_properties(device).uuid}"
    return f"{host}/{device.type}"
