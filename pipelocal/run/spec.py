"""All that a run is told: what is trained, on what data, where it is cut, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelocal.checkpoint.description import ModelDescription
from pipelocal.data.batches import Batches
from pipelocal.data.dataset import DataInfo
from pipelocal.models import Chain
from pipelocal.pipeline.callbacks import Callback
from pipelocal.pipeline.timetable import Timetable
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import CutRequest
from pipelocal.run.options import RunOptions
from pipelocal.stage.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What :class:`~pipelocal.run.run.Run` is made of; whoever makes it has resolved all names."""

    recipe: Recipe
    options: RunOptions
    cut: CutRequest
    chain: Callable[[DataInfo], Chain]
    """The model, for samples like these."""
    info: Callable[[], DataInfo] | DataInfo
    """What the data is like; a function is called by rank 0 alone, which tells the others."""
    batches: Callable[[], Batches]
    """Opens the data; called where a replica of the first stage is."""
    describe_model: Callable[[Chain], ModelDescription]
    text: Mapping[str, Any]
    """What was asked for, as plain values by the options' names; becomes ``config.toml``."""
    defaults: Mapping[str, Any]
    """The same where nothing is asked for: what an older run's folder does not say."""
    references: Mapping[str, str]
    """Of ``text`` what names code of the user's own."""
    named: frozenset[str]
    """Names of ``text`` that may do so."""
    anywhere: frozenset[str]
    """Names of ``text`` on which the result does not depend."""
    own: frozenset[str]
    """Names of ``text`` in which ranks may differ."""
    out: str | None = None
    """The folder; None for one that is chosen."""
    keeps: bool = True
    """Whether there is a folder at all."""
    callbacks: tuple[Callback, ...] = field(default=())

    @property
    def title(self) -> str:
        """Model, data and objective in a line."""
        closed = ", bp-free" if self.recipe.compute.bp_free else ""
        return f"{self.text['model']} on {self.text['data']}, {self.text['objective']}{closed}"

    @property
    def takes_snapshots(self) -> bool:
        """Whether markers may come on the stream."""
        return self.keeps and self.options.takes_snapshots

    def timetable(
        self, steps_per_epoch: int, *, epochs_before: int = 0, steps_before: int = 0
    ) -> Timetable:
        """How long is trained.

        Raises:
            UserError: replicas that must keep step would have no batch.
        """
        return Timetable.of(
            self.options,
            steps_per_epoch,
            reconcile_every=self.recipe.objective.reconcile_every,
            together=self.options.together,
            whole_rounds=self.options.sync_batchnorm,
            epochs_before=epochs_before,
            steps_before=steps_before,
        )

    def draw(self, info: DataInfo) -> Blueprint:
        """The model, cut as far as is known before anything is measured.

        Raises:
            UserError: it cannot be made for this data, or not be cut like that.
        """
        chain = self.chain(info)
        cuts = self.cut.first(chain, uncut=self.recipe.uncut)
        return Blueprint.of(chain, self.recipe, target_shape=info.target_shape).cut_into(cuts)

    def resolved(self, **values: Any) -> Spec:
        """With what rank 0 chose in place of what was left to it, such as the number of replicas."""
        known = {name: value for name, value in values.items() if name in asdict(self.options)}
        return replace(
            self,
            options=replace(self.options, **known),
            text={**self.text, **values},
        )
