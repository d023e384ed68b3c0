"""How tensors move from rank to rank, and how long one waits for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.options import PATIENCE, Limits, option


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """How tensors move from rank to rank, and how long one waits for another."""

    edge: Literal["auto", "device", "host"] = option("auto", of_the_bits=False)
    """What carries tensors between CUDA ranks: device (NCCL), host (gloo through pinned memory), or
    auto (NCCL unless ranks share a GPU). CPU ranks always use gloo."""
    wire: str = "float32"
    """How a stage's output travels to the next one, in training and evaluation: float32, bf16 (half the
    bytes), or int8 (a quarter; one scale a sample)."""
    window: int | Literal["auto"] = option(
        "auto",
        limits=Limits(1, 1024, why="the next stage keeps room for so many batches"),
        of_the_bits=False,
    )
    """Most batches that a stage may have sent and the next one not yet taken, for which the next one keeps
    room. More of them hide a long link: auto begins with 2, and adds what the link is seen to need."""
    timeout: float = option(300.0, limits=PATIENCE, of_the_bits=False)
    """Seconds within which a rank that waits for a neighbour in vain gives up and says which rank hangs."""
    start_timeout: float = option(300.0, limits=PATIENCE, of_the_bits=False, seldom=True)
    """Seconds that ranks wait for each other before the first batch."""
    interface: str | None = option(None, of_the_bits=False, alike=False, seldom=True)
    """Network interface of every host, such as eth1, for gloo and NCCL; by default that which the host's
    name leads to."""
