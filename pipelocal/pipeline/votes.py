"""Whether the heads' votes travel in evaluations, by which alone the last stage knows the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.telemetry.formats import format_bytes
from pipelocal.transport.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What holds for every edge of a run; shapes alone decide it, so that all ranks find the same."""

    travel: bool
    why_not: str | None = None
    """One line where they do not."""

    @classmethod
    def of(cls, option: str, contracts: Sequence[Contract]) -> Votes:
        """What ``--votes`` comes to.

        Args:
            option: ``auto``, ``on`` or ``off``.
            contracts: of all edges, first to last, with votes.
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
