"""What a model holds, as far as its state dict tells: unit names, parameter names, shapes and dtypes."""

from __future__ import annotations

import hashlib
import json

import torch

from pipelocal.models.chain import Chain


def fingerprint(chain: Chain) -> str:
    """Equal for two chains if their units and state dicts have the same names, shapes and dtypes."""
    units = []
    for unit in (*chain.units, chain.classifier):
        with torch.device("meta"):
            module = unit.build()
        tensors = [
            [unit.whole_name(name), list(tensor.shape), str(tensor.dtype)]
            for name, tensor in module.state_dict().items()
            if isinstance(tensor, torch.Tensor)  # extra state may be anything
        ]
        units.append([unit.name, tensors])
    return hashlib.sha256(json.dumps(units).encode()).hexdigest()
