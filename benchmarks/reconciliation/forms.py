"""What is compared: the forms of training by name, as options of ``pipelocal train``."""

from typing import Any

OFTEN = {"objective": "sgr", "reconcile_every": 1, "reconcile_weight": "0.05"}
"""On every batch, and with more weight than by default."""

FORMS: dict[str, dict[str, Any]] = {
    "greedy": {"objective": "greedy"},
    "exact": {**OFTEN, "reconcile": "exact"},
    "first-order": {**OFTEN, "reconcile_fraction": 1.0},
    "default": {"objective": "sgr"},
}
"""Compared for every number of stages with the first head, and for every head at one number."""

FIRST_ORDER: dict[str, Any] = FORMS["first-order"]
VARIANTS: dict[str, dict[str, Any]] = {
    "weight 0.01": {**FIRST_ORDER, "reconcile_weight": "0.01"},
    "weight 0.2": {**FIRST_ORDER, "reconcile_weight": "0.2"},
    "squared, 0.1": {**FIRST_ORDER, "distance": "squared", "reconcile_weight": "0.1"},
    "relative, 0.01": {**FIRST_ORDER, "distance": "relative", "reconcile_weight": "0.01"},
    "every 4th": {**FIRST_ORDER, "reconcile_every": 4},
    "every 4th, half of the rows": {
        "objective": "sgr",
        "reconcile_every": 4,
        "reconcile_weight": "0.05",
    },
    "default, weight 0.05": {"objective": "sgr", "reconcile_weight": "0.05"},
    "default, weight 0.05 falling": {
        "objective": "sgr",
        "reconcile_weight": "0.05",
        "reconcile_schedule": "decay",
    },
    "half of the rows": {**FIRST_ORDER, "reconcile_fraction": 0.5},
    "a quarter of the rows": {**FIRST_ORDER, "reconcile_fraction": 0.25},
    "weight rising": {**FIRST_ORDER, "reconcile_schedule": "warmup"},
    "weight falling": {**FIRST_ORDER, "reconcile_schedule": "decay"},
    "delta int8": {**FIRST_ORDER, "delta": "int8"},
    "delta pooled": {**FIRST_ORDER, "delta": "pooled"},
    "delta sketch 64": {**FIRST_ORDER, "delta": "sketch=64"},
}
"""Compared at one number of stages, with the first head."""
