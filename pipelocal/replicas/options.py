"""Ranks that share the batches of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.options import SHARE, Limits, Number, numbers_of, option

NUMBERS = {"sparse-sign": Number(0.1, SHARE), "powersgd": Number(2, Limits(1, 10**6))}
"""What ``--compress`` takes behind a name."""


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
    with 2 or 3 replicas only), powersgd (of rank 2; powersgd=4 for another), sign or sparse-sign (a tenth
    of the signs; sparse-sign=0.05 for another share); all but bf16 lose much and save much."""
    sync_batchnorm: bool = False
    """Let BatchNorm take its statistics of all replicas' batches. They then keep step in every batch, and
    the rest of an epoch that they cannot share out evenly is left out."""

    @property
    def compress_numbers(self) -> dict[str, float]:
        """Rank of ``powersgd`` and share of ``sparse-sign``, by these names.

        Raises:
            UserError: ``--compress`` has a number that it does not take.
        """
        return numbers_of("compress", self.compress, NUMBERS)
