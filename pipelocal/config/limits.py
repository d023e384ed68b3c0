"""Between which bounds each numeric option must lie: such that a machine could meet them.

Options of the same name mean the same in every command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from pipelocal.config.option_name import option_name
from pipelocal.errors import UserError

MOST_RANKS = 4096
"""That can be simulated in some seconds."""

MOST_TASKS = 2**16
"""Ranks times micro-batches, likewise."""

MOST_BATCHES = 10**12
"""A thousand batches a second for thirty years; products of a few still fit in the stream's 64 bits."""

POSITIVE, BELOW_ONE = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class Limits:
    """The least and the most that an option may be."""

    least: float
    most: float
    wanted: str = ""
    """What to ask for in place of the two; of options that are no whole numbers."""
    why: str = ""
    """Where the most comes from, if it is not plain."""

    def check(self, name: str, value: float) -> None:
        """Refuse a value, NaN included.

        Raises:
            UserError: names option, value and bound.
        """
        if self.least <= value <= self.most:
            return
        if self.wanted:
            most = f", at most {self.most:g}" if value > self.most >= 1 else ""
            text = f"give {self.wanted}{most}"
        elif value < self.least:
            text = f"must be at least {self.least}"
        else:
            text = f"must be at most {self.most}"
        raise UserError(f"{option_name(name)} {value}: {text}{self.why and f' ({self.why})'}")


def _positive(most: float, why: str = "") -> Limits:
    return Limits(POSITIVE, most, "a number above 0", why)


BATCHES = Limits(1, MOST_BATCHES)
SHARE = Limits(POSITIVE, 1, "a number above 0, to 1")
PATIENCE = _positive(1e6, "seconds: eleven days")
SCALE = 1e30
"""Of weights and rates: beyond it float32 ends."""

LIMITS = {
    # What is trained, and how long.
    "stages": Limits(1, 10_000),
    "epochs": Limits(1, 10**9),
    "max_steps": BATCHES,
    "batch_size": Limits(1, 10**7),
    "train_samples": BATCHES,
    "accumulate": BATCHES,
    "warmup_steps": Limits(0, MOST_BATCHES),
    "evaluate_every": BATCHES,
    "seed": Limits(-(2**63), 2**63 - 1, why="64 bits"),
    "lr": _positive(SCALE),
    "weight_decay": Limits(0, SCALE, "a number of at least 0"),
    "momentum": Limits(0, BELOW_ONE, "a number from 0 to below 1"),
    "ema": Limits(POSITIVE, BELOW_ONE, "a number between 0 and 1, such as 0.99"),
    "freeze_patience": BATCHES,
    # How stages reconcile, and what travels.
    "reconcile_every": BATCHES,
    "reconcile_fraction": SHARE,
    "delta_size": Limits(1, 10**9),
    "compress_share": SHARE,
    "compress_rank": Limits(1, 10**6),
    "window": Limits(1, 1024, why="the next stage keeps room for so many batches"),
    # The host, patience, and what is written.
    "threads": Limits(1, 1024, why="the system may refuse more"),
    "timeout": PATIENCE,
    "start_timeout": PATIENCE,
    "checkpoint_activations": BATCHES,
    "snapshot_every": BATCHES,
    "snapshot_minutes": _positive(1e6),
    "keep_snapshots": Limits(0, MOST_BATCHES),
    "measure_bp_gap": BATCHES,
    "log_every": BATCHES,
    # Of plan and doctor.
    "classes": Limits(2, 10**7),
    "micro_batches": Limits(1, MOST_TASKS),
    "nodes": Limits(1, MOST_RANKS),
    "ranks": Limits(1, MOST_RANKS, f"a number from 1 to {MOST_RANKS}"),
    "repeats": Limits(1, 10**6),
    "slow_link": Limits(0, SCALE, "a number of at least 0"),
}
"""By the name of the option's field."""


def check_limits(config: Any) -> None:
    """Refuse numbers that no machine could meet; options that are not given are passed over.

    Args:
        config: the options of a command, a dataclass.

    Raises:
        UserError: names option, value and bound.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name in LIMITS:
            LIMITS[field.name].check(field.name, value)
