"""The mechanisms, one a row: the options with it and without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A run of pipelocal."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Beside those that all runs share."""
    switched_off: str | None = None
    """A mechanism that ``without.py`` takes away."""

    @property
    def name(self) -> str:
        """The same for the same run."""
        words = [f"{key}={value}" for key, value in self.options.items()]
        return ", ".join([*words, *(["without " + self.switched_off] if self.switched_off else [])])


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What is looked at, and the two runs that show it."""

    name: str
    own: Variant
    without: Variant
    link: bool = False
    """Whether it is looked at over the slow link too."""
    quick: bool = False
    """Whether the short form has it."""


DEFAULT = Variant()


def _option(name: str, *, link: bool = False, quick: bool = False, **options: Any) -> Mechanism:
    own = Variant(options=options)
    return Mechanism(name=name, own=own, without=DEFAULT, link=link, quick=quick)


def mechanisms() -> list[Mechanism]:
    """All that this machine can run."""
    rows = [
        Mechanism(
            name="prefetch: a ring of 2 slots, not 1",
            own=DEFAULT,
            without=Variant(switched_off="prefetch"),
            link=True,
        ),
        Mechanism(
            name="early send: x after the forward, not after the update",
            own=DEFAULT,
            without=Variant(switched_off="early-send"),
            link=True,
            quick=True,
        ),
        Mechanism(
            name="window of 2, not 1",
            own=Variant(options={"window": 2}),
            without=Variant(options={"window": 1}),
            link=True,
            quick=True,
        ),
        Mechanism(
            name="window of 4, not 2",
            own=Variant(options={"window": 4}),
            without=Variant(options={"window": 2}),
            link=True,
        ),
        Mechanism(
            name="window auto, not 2",
            own=DEFAULT,
            without=Variant(options={"window": 2}),
            link=True,
        ),
        _option("wire bf16, not float32", link=True, wire="bf16"),
        _option("wire int8, not float32", link=True, quick=True, wire="int8"),
        _option("channels last", channels_last=True),
        _option("fused optimizer", quick=True, fused=True),
        _option("autocast bf16", autocast="bf16"),
        _option("checkpointed activations", checkpoint_activations=1),
        _option("early optimizer step", step_early=True),
    ]
    if shutil.which("c++"):
        rows.append(_option("torch.compile, inductor", compile="inductor"))
    return rows
