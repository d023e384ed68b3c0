"""Fingerprint of a model's structure: unit names, parameter names, shapes and dtypes."""

from __future__ import annotations

import hashlib
import json

from pipelocal.models.chain import Chain


def fingerprint(chain: Chain) -> str:
    """Return a digest that is equal for chains whose units and state dicts match in structure.

    Args:
        chain: a chain returned by :meth:`Chain.tried`.
    """
    units = []
    for unit in (*chain.units, chain.classifier):
        assert unit.layout is not None, "the chain was not tried"
        tensors = [(unit.whole_name(name), *others) for name, *others in unit.layout]
        units.append([unit.name, tensors])
    return hashlib.sha256(json.dumps(units).encode()).hexdigest()
