"""What is measured and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.options import BATCHES, option


@dataclass(frozen=True, kw_only=True)
class SeeingOptions:
    """What is measured and shown."""

    votes: Literal["auto", "on", "off"] = option("auto", of_the_bits=False, seldom=True)
    """Whether the heads' votes for every class travel along in evaluations, by which the ensemble's accuracy
    is known: on, off, or auto (if they are on no edge more bytes than the activations)."""
    log_every: int = option(20, limits=BATCHES, of_the_bits=False, seldom=True)
    """Batches between two lines of metrics.jsonl, per stage."""
    log: str | None = option(None, of_the_bits=False, alike=False)
    """Where metrics.jsonl is also shown while the run goes on: tensorboard, wandb or csv, several with commas
    between them (csv writes metrics.csv, the others need their packages). Under torchrun write --loggers:
    torchrun may take --log for an option of its own."""
    plain: bool = option(False, of_the_bits=False, alike=False)
    """Print lines instead of the live table; always so when the output is no terminal."""
    trace: bool = option(False, of_the_bits=False)
    """Write trace.json to the run folder: what every rank did when, for ui.perfetto.dev and for
    pipelocal timeline."""
    debug_transfers: bool = option(False, of_the_bits=False, alike=False, seldom=True)
    """Print a line for every tensor that is sent to or received from another rank."""
    measure_bp_gap: int | None = option(None, limits=BATCHES, seldom=True)
    """Every so many batches, compare each stage's gradients with those of back-propagation (one process
    only; costs one more step and memory for the whole model)."""
