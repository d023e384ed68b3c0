"""Chooses the device that a rank computes on."""

from __future__ import annotations

import socket

import torch

from pipelocal.errors import UserError


def choose_device(name: str, local_rank: int) -> torch.device:
    """Choose the device of a rank.

    Args:
        name: ``auto`` (CUDA where there is any), ``cpu`` or ``cuda``.
        local_rank: the rank's number on its node.

    Raises:
        UserError: there is no such device here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this process sees no CUDA device; choose --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def describe_device(device: torch.device) -> str:
    """Return a name that is equal on two ranks only if they share the physical device."""
    host = socket.gethostname()
    if device.type == "cuda":
        return f"{host}/cuda/{torch.cuda.get_device_properties(device).uuid}"
    return f"{host}/{device.type}"
