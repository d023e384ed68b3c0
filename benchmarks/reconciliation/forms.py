"""The forms of reconciliation whose costs are measured, as options of ``pipelocal train``."""

from typing import Any

OFTEN = {"objective": "sgr", "reconcile_every": 1, "reconcile_weight": "0.05"}
"""On every batch."""

FORMS: dict[str, dict[str, Any]] = {
    "greedy": {"objective": "greedy"},
    "exact": {**OFTEN, "reconcile": "exact"},
    "first-order": {**OFTEN, "reconcile_fraction": 1.0},
    "default": {"objective": "sgr"},
}
