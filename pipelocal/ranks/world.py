"""The world of a run: its ranks, their devices, and the store through which they meet."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelocal.errors import NotMet, UserError
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.device import choose_device
from pipelocal.ranks.host import allow_open_files
from pipelocal.ranks.launcher import check_alone, left_over, under_torchrun
from pipelocal.ranks.meeting import meet
from pipelocal.system.patience import Patience
from pipelocal.system.streams import say

START_TIMEOUT_S = 300.0
"""Default seconds that ranks wait for each other before the first batch."""
SILENT_S = 10.0
"""Seconds that a rank waits for the others before it prints a message."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    store: dist.Store
    """The store shared by all ranks; local to this process if there is only one."""
    lasting: dist.Store
    """A store like :attr:`store`, but also shared with earlier and later attempts."""
    start_timeout_s: float = START_TIMEOUT_S
    restarted: bool = False
    """Whether torchrun has restarted all ranks because one of them ended early."""

    @classmethod
    def alone(cls) -> World:
        """Make a world of this single process; it needs no torchrun and opens no socket."""
        store = dist.HashStore()
        return cls(rank=0, size=1, local_rank=0, store=store, lasting=store)

    @classmethod
    def from_environment(cls, *, start_timeout_s: float = START_TIMEOUT_S) -> World:
        """Make the world that torchrun describes in the environment, or one of this process alone.

        Without torchrun, RANK and WORLD_SIZE must be set, and either MASTER_ADDR and
        MASTER_PORT, or PIPELOCAL_INIT_METHOD (such as ``file:///shared/folder/new-file``).

        Args:
            start_timeout_s: seconds to wait for the other ranks, here and later before the first batch.

        Raises:
            UserError: the environment is invalid, or the other ranks do not come.
        """
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if size == 1 and not under_torchrun():
            check_alone()
            return cls.alone()
        if "RANK" not in os.environ or not 0 <= rank < size:
            raise UserError(
                f"RANK={os.environ.get('RANK', '')} and WORLD_SIZE={size}: RANK must be set, from 0 "
                f"to {size - 1}; torchrun sets both ({left_over()})"
            )
        allow_open_files()
        try:
            store, token = _meet_all(rank, size, start_timeout_s)
        except UserError:
            raise
        except (TimeoutError, RuntimeError, ValueError) as error:
            raise NotMet(_why_not_met(error, size)) from error
        return cls(
            rank=rank,
            size=size,
            local_rank=_number("LOCAL_RANK", rank),
            store=dist.PrefixStore(f"pipelocal/{token}", store),
            lasting=dist.PrefixStore("pipelocal/all", store),
            start_timeout_s=start_timeout_s,
            restarted=_number("TORCHELASTIC_RESTART_COUNT", 0) > 0,
        )

    def store_of_group(self) -> dist.Store:
        """Return a part of the store for a process group, with its own connection.

        On a shared connection, a group that waits for a lost rank would block the control plane's access to
        the store, and so to the reason of the failure.
        """
        own: dist.Store = self.store.clone()  # type: ignore[attr-defined]
        return dist.PrefixStore("group", own)

    def part(self, name: str) -> World:
        """Return the same ranks with a separate part of the stores, for example for one of several runs."""
        return replace(
            self,
            store=dist.PrefixStore(name, self.store),
            lasting=dist.PrefixStore(name, self.lasting),
        )

    @property
    def keeps_store(self) -> bool:
        """Whether this process hosts the store of several ranks."""
        own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return self.rank == 0 and self.size > 1 and own

    def device(self, name: str) -> torch.device:
        """Choose this rank's device.

        Args:
            name: ``auto`` (CUDA where there is any), ``cpu`` or ``cuda``.

        Raises:
            UserError: there is no such device here.
        """
        return choose_device(name, self.local_rank)


def _number(name: str, default: int) -> int:
    """Return a number that a launcher sets in the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) == 0):
        raise UserError(
            f"the environment says {name}={text}: torchrun sets a whole number there; where it is left "
            f"over, 'unset {name}'"
        )
    return int(text)


def _meet_all(rank: int, size: int, timeout_s: float) -> tuple[dist.Store, str]:
    """Return the store of all ranks, and the token that the ranks of this attempt share.

    Raises:
        UserError: MASTER_PORT is not a port.
        TimeoutError: some ranks did not come.
        RuntimeError, ValueError: the library failed to open the store.
    """
    method = os.environ.get("PIPELOCAL_INIT_METHOD", "env://")
    if method == "env://" and not 0 < _number("MASTER_PORT", 1) < 2**16:
        raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']}: a port is from 1 to 65535")
    # Longer than the timeout, which counts only while this process runs.
    longest = timedelta(seconds=2 * timeout_s)
    said = under_torchrun()  # which ensures that the other ranks come
    until_said = Patience(SILENT_S)

    def say_once() -> None:
        nonlocal said
        if not said and until_said.over():
            said = True
            say(
                f"pipelocal (rank {rank}): waits for the other ranks, {size} in all ({left_over()})"
            )

    def meet_all() -> tuple[dist.Store, str]:
        meeting = dist.rendezvous(method, rank=rank, world_size=size, timeout=longest)
        store, _, _ = next(iter(meeting))
        prefixed = dist.PrefixStore("pipelocal/meeting", store)
        return store, meet(prefixed, rank, size, timeout_s=timeout_s)

    return breakable(meet_all, check=say_once, timeout_s=timeout_s)


def _why_not_met(error: Exception, size: int) -> str:
    reason = str(error).partition("\n")[0]
    port = os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in reason or "address already in use" in reason.lower():
        return f"MASTER_PORT={port} is in use on this host: give all {size} ranks another free port"
    said = (
        f"the other ranks were not met ({reason or 'nobody answered'}): start all {size}, with the same "
        f"MASTER_ADDR and MASTER_PORT"
    )
    return said if under_torchrun() else f"{said} ({left_over()})"
