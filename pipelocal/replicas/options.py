"""Ranks that share the batches of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.options import SHARE, Limits, option


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """Ranks that share the batches of a stage."""

    replicas: str = option("1", of_the_bits=False)
    """Ranks that share each stage's batches among them: one number for all stages, or one for each, such as
    1,2,1 (batches are dealt in turn, and an update is made of as many as all counts divide); or auto (by
    the measured time of each stage, for the ranks there are)."""
    replicate: Literal["ddp", "fsdp"] = option("ddp", of_the_bits=False)
    """How replicas average their gradients: ddp (DistributedDataParallel), or fsdp (fully_shard, which
    shares the optimizer's state out over them)."""
    compress: str | None = None
    """What replicas send each other of their gradients, with ddp: bf16 (over gloo gathered, which saves
    with 2 or 3 replicas only), powersgd, sign or sparse-sign; all but bf16 lose much and save much."""
    compress_share: float = option(0.1, limits=SHARE, seldom=True)
    """Of sparse-sign: share of the coordinates whose sign is sent; at a byte each below 0.24, else at two
    bits for every coordinate."""
    compress_rank: int = option(2, limits=Limits(1, 10**6), seldom=True)
    """Of powersgd: rank of what stands for each gradient."""
    sync_batchnorm: bool = False
    """Let BatchNorm take its statistics of all replicas' batches. They then keep step in every batch, and
    the rest of an epoch that they cannot share out evenly is left out."""
