"""The options of the doctor command."""

from __future__ import annotations

from dataclasses import dataclass

from pipelocal.options import SCALE, Limits, option


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check all ranks before training: start it by torchrun as the training would be."""

    out: str = "runs"
    """Folder that runs will be written to; must be one and the same on all ranks."""
    model: str = "mlp"
    """Model that will be trained, which every rank must find."""
    data: str = "digits"
    """Data set that rank 0 will read."""
    data_root: str | None = None
    """Folder of the data set's files."""
    interface: str | None = None
    """As for train."""
    device: str = "auto"
    """auto (CUDA where there is any), cpu or cuda."""
    threads: int = option(1, limits=Limits(1, 1024, why="the system may refuse more"))
    """CPU threads of each rank."""
    least_free: str = "1GiB"
    """Room that the file system of --out must have."""
    link_size: str = "4MiB"
    """Message by which each link's bandwidth is measured."""
    slow_link: float = option(100.0, limits=Limits(0, SCALE, "a number of at least 0"))
    """Bandwidth, in Mbit/s, below which a link is said to be slow."""
    json: bool = False
    """Print JSON instead of a table."""
