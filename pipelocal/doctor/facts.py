"""Gathers facts about a rank, without judging them."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from pipelocal.config.doctor import DoctorConfig
from pipelocal.data import DataOptions
from pipelocal.data.opening import NamedData
from pipelocal.errors import PipelocalError
from pipelocal.models import build_chain
from pipelocal.ranks.address import own_address
from pipelocal.ranks.device import describe_device
from pipelocal.ranks.host import allow_open_files
from pipelocal.ranks.world import World

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about one rank, all JSON-compatible."""

    rank: int
    host: str
    address: str | None
    """Address at which other ranks reach it; None if unknown."""
    address_error: str | None
    interfaces: list[str]
    gloo_interface: str | None
    """Value of ``GLOO_SOCKET_IFNAME``."""
    python: str
    torch: str
    pipelocal: str
    nccl: str | None
    """Version of NCCL; None without it."""
    device: str | None
    """As :func:`~pipelocal.ranks.world.describe_device` says; None if the device asked for is not there."""
    device_error: str | None
    device_free_bytes: int | None
    cores: int
    """Number of CPU cores that this process may use."""
    ranks_on_host: int
    memory_free_bytes: int
    open_files: int
    """Most files and connections that the process may have open."""
    out: str
    out_error: str | None
    """Why the output folder is not writable; None if it is."""
    out_free_bytes: int | None
    model_error: str | None
    data_error: str | None
    """Why the data cannot be read; only on rank 0, which alone reads data."""
    command: str
    """The options, which must be the same on all ranks."""

    @property
    def interface_missing(self) -> bool:
        """Whether gloo was told to use an interface that does not exist."""
        return self.gloo_interface is not None and self.gloo_interface not in self.interfaces


def gather(config: DoctorConfig, world: World) -> Facts:
    """Gather this rank's facts."""
    device, device_error = _tried(lambda: world.device(config.device))
    address, address_error = _tried(own_address)
    out = Path(config.out).absolute()
    free, out_error = _tried(lambda: free_bytes_where_written(out))
    gpu = device is not None and device.type == "cuda"
    return Facts(
        rank=world.rank,
        host=socket.gethostname(),
        address=address,
        address_error=address_error,
        interfaces=sorted(psutil.net_if_addrs()),
        gloo_interface=os.environ.get("GLOO_SOCKET_IFNAME"),
        python=platform.python_version(),
        torch=torch.__version__,
        pipelocal=version("pipelocal"),
        nccl=".".join(map(str, torch.cuda.nccl.version())) if gpu else None,  # type: ignore[no-untyped-call]
        device=None if device is None else describe_device(device),
        device_error=device_error,
        device_free_bytes=torch.cuda.mem_get_info(device)[0] if gpu else None,
        cores=len(os.sched_getaffinity(0)),
        ranks_on_host=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        memory_free_bytes=psutil.virtual_memory().available,
        open_files=allow_open_files(),
        out=str(out),
        out_error=out_error,
        out_free_bytes=free,
        model_error=_tried(lambda: _make_model(config))[1],
        data_error=_tried(lambda: _read_data(config))[1] if world.rank == 0 else None,
        command=repr(config),
    )


def free_bytes_where_written(folder: Path) -> int:
    """Return the free bytes in a folder's file system, after a test that it is writable."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".pipelocal-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_bytes(b"1234")
    finally:
        probe.unlink(missing_ok=True)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _make_model(config: DoctorConfig) -> None:
    info = _data(config).info()
    classes = info.classes or (info.target_shape or (1,))[-1]
    build_chain(config.model, input_shape=info.sample_shape, classes=classes, seed=0)


def _data(config: DoctorConfig) -> NamedData:
    return NamedData(DataOptions(data=config.data, data_root=config.data_root, batch_size=1), 0)


def _read_data(config: DoctorConfig) -> None:
    _data(config).batches()


def _tried(call: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return the result of a call, or one line on why it failed."""
    try:
        return call(), None
    except (PipelocalError, OSError, RuntimeError) as error:
        return None, " ".join(str(error).split()) or type(error).__name__
