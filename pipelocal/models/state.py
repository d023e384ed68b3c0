"""State dicts with the module versions that torch stores besides the tensors.

``Module.state_dict()`` stores them in an attribute, ``_metadata``, by the path of each module; a class that
has changed since, such as torchvision's MNASNet, needs them to interpret older state dicts. A plain dict
loses them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

Versions = dict[str, dict[str, Any]]
"""Module metadata by path, with ``""`` for the whole model."""


def versions_of(state: Mapping[str, Any]) -> Versions:
    """Return the versions in a state dict; empty if it has none."""
    return dict(getattr(state, "_metadata", {}))


def with_versions(values: Mapping[str, Any], versions: Versions) -> OrderedDict[str, Any]:
    """Return a state dict with these versions."""
    state = OrderedDict(values)
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state
