"""How this process uses its host: CPU threads, network interface, and what malloc does with freed memory."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from contextlib import suppress

import psutil
import torch

from pipelocal.errors import UserError
from pipelocal.ranks.address import loopback_interface, one_host

MOST_OPEN_FILES = 65_536

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_NEVER = 2**31 - 1
_LARGEST_KEPT = (2**30, 32 * 2**20)
"""Bytes of a block; older versions of glibc take no more than the second."""


def set_up_host(threads: int) -> None:
    """Set the CPU threads of this process, and let it keep the memory that its tensors free.

    Args:
        threads: of each operation.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()


def allow_open_files() -> int:
    """Let this process open as many files and connections as the system lets it.

    Gloo keeps every connection that anybody ever made to its ports, and ends the process when it cannot
    open one more. The usual limit, which a process may raise, is 1024.

    Returns:
        How many it may open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def use_interface(name: str | None) -> None:
    """Have gloo and NCCL use one network interface of this host.

    Args:
        name: of the interface; None to leave the choice to them, and to the environment. Where all ranks
            are on this host, gloo then uses the one that no other host reaches.

    Raises:
        UserError: there is none of this name here.
    """
    if name is None:
        own = loopback_interface() if one_host() else None
        if own is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", own)
        return
    known = sorted(psutil.net_if_addrs())
    if name not in known:
        raise UserError(
            f"--interface {name}: {socket.gethostname()} has no such network interface, but "
            f"{', '.join(known)}: give one of them, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where "
            f"hosts name theirs differently"
        )
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to give freed memory back to the system; elsewhere nothing is done.

    Every batch frees what the next one allocates again. glibc hands large blocks, and the end of its
    heap, back at once, and the system then clears each page anew when it is first touched. That is
    slow, and how slow depends on the order in which tensors happen to be freed, so a unit measured
    alone would not cost what it costs within a stage. The process stays at its peak, which the next
    batch needs anyway.

    A user who tunes malloc through the environment keeps his own settings.

    Returns:
        Whether it was done.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # The other alone would stop glibc from raising this one by itself, so both or none.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
