"""The specification of a run: model, data, cut and options."""

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
    """What a :class:`~pipelocal.run.run.Run` executes, with all names already resolved to objects."""

    recipe: Recipe
    options: RunOptions
    cut: CutRequest
    chain: Callable[[DataInfo], Chain]
    """Builds the model for samples like these."""
    info: Callable[[], DataInfo] | DataInfo
    """The description of the data; a function is called on rank 0 only, which tells the other ranks."""
    batches: Callable[[], Batches]
    """Opens the data; called on replicas of the first stage."""
    describe_model: Callable[[Chain], ModelDescription]
    text: Mapping[str, Any]
    """The requested options, as plain values by name; written to ``config.toml``."""
    defaults: Mapping[str, Any]
    """Default values by option name, used for options that an older run's folder lacks."""
    references: Mapping[str, str]
    """Entries of ``text`` that refer to user code."""
    named: frozenset[str]
    """Keys of ``text`` whose values may refer to user code."""
    anywhere: frozenset[str]
    """Keys of ``text`` that do not affect the result."""
    own: frozenset[str]
    """Keys of ``text`` in which ranks may differ."""
    init: str | None = None
    """File or run whose weights the model starts from; None for those that it is built with."""
    out: str | None = None
    """The run's folder; None to choose one."""
    keeps: bool = True
    """Whether the run has a folder at all."""
    callbacks: tuple[Callback, ...] = field(default=())
    log: tuple[Any, ...] = ()
    """Loggers, and names of some; only rank 0 opens them."""

    @property
    def title(self) -> str:
        """Model, data and objective in one line."""
        closed = ", bp-free" if self.recipe.compute.bp_free else ""
        return f"{self.text['model']} on {self.text['data']}, {self.text['objective']}{closed}"

    @property
    def takes_snapshots(self) -> bool:
        """Whether markers may come on the stream."""
        return self.keeps and self.options.takes_snapshots

    def timetable(
        self, steps_per_epoch: int, *, epochs_before: int = 0, steps_before: int = 0
    ) -> Timetable:
        """Return how long the run trains.

        Raises:
            UserError: there are too few batches for replicas that must stay in step.
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
        """Build the model's blueprint, cut as far as is known before anything is measured.

        Raises:
            UserError: the model cannot be built for this data, or not be cut that way.
        """
        return self.cut.drawn(Blueprint.of(self.chain(info), self.recipe, info)).checked()

    def resolved(self, **values: Any) -> Spec:
        """Return a copy with the values that rank 0 chose, such as the number of replicas."""
        known = {name: value for name, value in values.items() if name in asdict(self.options)}
        return replace(
            self,
            options=replace(self.options, **known),
            text={**self.text, **values},
        )
