"""Whether a state can be kept in a file that is read without trusting it."""

from __future__ import annotations

import io
from typing import Any

import torch


def why_not_plain(state: Any) -> Exception | None:
    """Return the error of saving a state and loading it with ``weights_only=True``; None if there is none."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        return error
    return None
