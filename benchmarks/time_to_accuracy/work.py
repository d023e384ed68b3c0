"""What is trained, by which methods, over which links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.communication.network import Shape
from benchmarks.time_to_accuracy import parts
from pipelocal.config import TrainConfig

SLOW = Shape(bits_per_s=1e8, one_way_s=0.05)

Kind = Literal["pipelocal", "1F1B", "interleaved 1F1B", "DDP"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all methods do."""

    data: str
    data_root: str | None
    model: str
    batch_size: int
    passes: tuple[int, ...]
    """Over the training data, of each learner's trainings: the one that gets there first counts."""
    search_passes: int
    """The same of the shorter trainings that learning rates are compared by."""
    rates: tuple[float, ...]
    """Learning rates that are tried for each method."""
    objective: str
    head: str
    bf16: bool
    channels_last: bool
    seed: int

    @property
    def plain_wire(self) -> str:
        """What stages send each other without being asked to send less."""
        return "bf16" if self.bf16 else "float32"

    def config(self, *, tested: bool = True, **options: object) -> TrainConfig:
        """Options of a training of pipelocal, and some more."""
        return TrainConfig(
            model=self.model,
            data=parts.reference(self.data, tested=tested),
            data_root=self.data_root,
            drop_last=True,
            device="cpu",
            seed=self.seed,
            autocast="bf16" if self.bf16 else None,
            channels_last=self.channels_last,
            **options,  # type: ignore[arg-type]
        )

    def own(self, cut: str, wire: str, *, tested: bool = True, **options: object) -> TrainConfig:
        """The same in stages with local losses."""
        return self.config(
            tested=tested,
            batch_size=self.batch_size,
            objective=self.objective,
            head=self.head,
            cut=cut,
            wire=wire,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Ranks, and what joins them."""

    ranks: int
    link: Shape | None
    """None for one machine."""

    @property
    def name(self) -> str:
        """Such as ``2 ranks, one machine``."""
        if self.link is None:
            return f"{self.ranks} ranks, one machine"
        assert self.link.bits_per_s is not None
        bandwidth, latency = self.link.bits_per_s / 1e6, 1000 * self.link.one_way_s
        return f"{self.ranks} ranks, {bandwidth:g} Mbit/s and {latency:g} ms"

    @property
    def one_way_s(self) -> float:
        """Latency."""
        return 0.0 if self.link is None else self.link.one_way_s


QUICK = (Setting(ranks=2, link=None), Setting(ranks=2, link=SLOW))
FULL = (*QUICK, Setting(ranks=4, link=SLOW))
"""With more ranks than cores only where steps wait for the link and not for a core."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns in the same way, batch by batch, however long a batch takes.

    1F1B and its interleaved form compute the mean gradient of micro-batches, each of which BatchNorm
    normalises by itself; DDP over R ranks that of R of them. All are back-propagation of a batch in parts.
    """

    parts: int | None = None
    """Of a batch, of back-propagation; None for pipelocal."""
    stages: int = 1
    wire: str = ""

    @property
    def name(self) -> str:
        """Such as ``pipelocal, 2 stages``."""
        if self.parts is not None:
            return f"back-propagation, batch in {self.parts} parts"
        return f"pipelocal, {self.stages} stages, {self.wire} wire"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train over ranks."""

    kind: Kind
    micro_batches: int = 1
    wire: str = ""
    """Of pipelocal."""
    window: int = 2
    """Of pipelocal, which by default is 2."""
    few_messages: bool = False
    """Of DDP: all gradients in one message, and every rank keeps BatchNorm's statistics to itself."""

    @property
    def name(self) -> str:
        """Such as ``1F1B, m = 4``."""
        if self.kind == "pipelocal":
            return f"pipelocal, {self.wire} wire, window {self.window}"
        if self.kind == "DDP":
            return "DDP, few messages" if self.few_messages else "DDP"
        return f"{self.kind}, m = {self.micro_batches}"

    def learner(self, ranks: int) -> Learner:
        """What its training is, step by step."""
        if self.kind == "pipelocal":
            return Learner(stages=ranks, wire=self.wire)
        return Learner(parts=ranks if self.kind == "DDP" else self.micro_batches)


def methods(work: Work, setting: Setting, *, units: int, quick: bool) -> list[Method]:
    """All that are measured in a setting, each with what may be tuned without a change of what is learnt.

    Args:
        work: what is trained.
        setting: where.
        units: of the model; the interleaved schedule has two stages a rank.
        quick: the least of each, and no interleaved schedule.
    """
    ranks, linked = setting.ranks, setting.link is not None and not quick
    found = [
        Method(kind="pipelocal", wire=wire, window=window)
        for wire in ((work.plain_wire, "int8") if linked else (work.plain_wire,))
        for window in ((2, 8) if linked else (2,))
    ]
    # On a slow link every micro-batch waits for its way, so that more of them only take longer.
    factors = (1,) if quick else (1, 2) if linked else (1, 2, 4)
    counts = [ranks * factor for factor in factors]
    kinds: tuple[Kind, ...] = ("1F1B", "interleaved 1F1B")
    for kind in kinds:
        if kind == "1F1B" or (units >= 2 * ranks and not quick):
            found += [
                Method(kind=kind, micro_batches=count)
                for count in counts
                if work.batch_size % count == 0
            ]
    for few in (False,) if quick else (False, True):
        found.append(Method(kind="DDP", few_messages=few))
    return found
