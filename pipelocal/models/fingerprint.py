"""What a model holds, as far as its state dict tells: unit names, parameter names, shapes and dtypes."""

from __future__ import annotations

import hashlib
import json

from pipelocal.models.chain import Chain


def fingerprint(chain: Chain) -> str:
    """Equal for two chains if their units and state dicts have the same names, shapes and dtypes.

    Args:
        chain: as :meth:`Chain.tried` gives it.
    """
    units = []
    for unit in (*chain.units, chain.classifier):
        assert unit.layout is not None, "the chain was not tried"
        tensors = [(unit.whole_name(name), *others) for name, *others in unit.layout]
        units.append([unit.name, tensors])
    return hashlib.sha256(json.dumps(units).encode()).hexdigest()
