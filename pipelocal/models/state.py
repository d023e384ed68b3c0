"""State dicts with what torch keeps beside the tensors: the versions of the modules.

``Module.state_dict()`` notes them in an attribute, ``_metadata``, by the path of each module; a class that
has changed since, such as torchvision's MNASNet, wants to know how to read what it is given. A plain dict
loses them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

Versions = dict[str, dict[str, Any]]
"""By the path of each module, ``""`` for the whole."""


def versions_of(state: Mapping[str, Any]) -> Versions:
    """What a state dict notes; nothing where it notes nothing."""
    return dict(getattr(state, "_metadata", {}))


def with_versions(values: Mapping[str, Any], versions: Versions) -> OrderedDict[str, Any]:
    """A state dict that notes these versions."""
    state = OrderedDict(values)
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state
