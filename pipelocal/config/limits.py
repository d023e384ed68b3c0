"""The bounds of the options that only plan and doctor have, and what holds of all commands' numbers."""

from __future__ import annotations

MOST_RANKS = 4096
"""That can be simulated in some seconds."""

MOST_TASKS = 2**16
"""Ranks times micro-batches, likewise."""
