"""Bounds of the options of plan and doctor, and checks of all commands' numbers."""

from __future__ import annotations

MOST_RANKS = 4096
"""Most ranks that can be simulated within seconds."""

MOST_TASKS = 2**16
"""Most ranks times micro-batches that can be simulated within seconds."""
