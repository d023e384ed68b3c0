"""Configures how this process uses its host: CPU threads, network interface, and malloc."""

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
"""Sizes in bytes up to which freed blocks are kept; older versions of glibc accept only the second."""


def set_up_host(threads: int) -> None:
    """Set the number of CPU threads of this process, and let it keep the memory that its tensors free.

    Args:
        threads: number of threads per operation.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()


def allow_open_files() -> int:
    """Raise the number of open files and connections of this process to the system's limit.

    Gloo keeps every connection ever made to its ports, and ends the process when it cannot open another.
    The usual limit, which a process may raise, is 1024.

    Returns:
        How many the process may open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has an undisclosed limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def use_interface(name: str | None) -> None:
    """Make gloo and NCCL use one network interface of this host.

    Args:
        name: name of the interface; None to leave the choice to them and to the environment. If all
            ranks are on this host, gloo then uses the loopback interface.

    Raises:
        UserError: this host has no such interface.
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
    """Tell glibc's malloc not to return freed memory to the system; do nothing elsewhere.

    Every batch frees memory that the next one allocates again. glibc returns large blocks, and the end of
    its heap, immediately, and the system then clears each page when it is next touched. That is slow, and
    how slow depends on the order in which tensors happen to be freed, so a unit measured alone would
    have another cost than within a stage. The process stays at its peak, which the next batch needs anyway.

    Malloc settings in the environment take precedence.

    Returns:
        Whether the setting was made.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Setting only one would stop glibc from adjusting the other, so set both or none.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
