"""Decides whether evaluations send the heads' votes, which the last stage needs for the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.telemetry.formats import format_bytes
from pipelocal.transport.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Votes:
    """The decision for all edges of a run; it depends only on shapes, so that all ranks agree."""

    travel: bool
    why_not: str | None = None
    """One line that says why no votes are sent; None if they are."""

    @classmethod
    def of(cls, option: str, contracts: Sequence[Contract]) -> Votes:
        """Decide from ``--votes``.

        Args:
            option: ``auto``, ``on`` or ``off``.
            contracts: contracts of all edges, first to last, with votes.
        """
        if option == "off":
            return cls(travel=False, why_not="no ensemble: --votes off leaves its votes out")
        sizes = [(c.bytes_of("votes"), c.bytes_of("x"), c) for c in contracts]
        dear = [(votes, x, edge) for votes, x, edge in sizes if votes > x]
        if option == "on" or not dear:
            return cls(travel=True)
        votes, x, edge = dear[0]
        return cls(
            travel=False,
            why_not=f"no ensemble: its votes are {format_bytes(votes)} a sample, the activations "
            f"from stage {edge.source} to {edge.target} {format_bytes(x)} (--votes on sends them; "
            f"pipelocal evaluate counts them in one process)",
        )
