"""Builds the auxiliary heads of a run's stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.heads import HEADS, HeadBuilder, build_head
from pipelocal.heads.auto import Behind, Choice, budget_of
from pipelocal.heads.contrast import ContrastHead, projection_name
from pipelocal.heads.downstream import Downstream
from pipelocal.heads.names import ends_in_classifier
from pipelocal.models import Chain, Shape
from pipelocal.objective import LGFG
from pipelocal.seeding import seeded
from pipelocal.stage.recipe import Recipe
from pipelocal.tasks import SupCon, Task


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What auxiliary heads are built from; ``stop`` is the number of units before a head.

    Args:
        chain: the model.
        shapes: output shape of each unit, without the batch dimension.
        recipe: says which heads, and by what loss they train.
        info: description of the data.
        output_shape: shape of one row of every head's output.
        stages: number of stages.
    """

    chain: Chain
    shapes: Sequence[Shape]
    recipe: Recipe
    info: DataInfo
    output_shape: Shape
    stages: int

    @property
    def budget(self) -> float | None:
        """Within what ``auto`` chooses; None if heads are others, or follow without it."""
        recipe = self.recipe
        formulas = recipe.compute.bp_free or isinstance(recipe.objective, LGFG)
        named = formulas or isinstance(recipe.head_task, SupCon)
        return None if named else budget_of(recipe.head)

    @property
    def task(self) -> Task | None:
        """The task by whose loss heads train, if it is another than the model's."""
        task = self.recipe.head_task
        return replace(task, classes=self._classes) if isinstance(task, SupCon) else task

    def name(self, stop: int) -> str:
        """Return the head behind a unit, as ``--head`` takes it."""
        return HEADS.name_of(self.chosen(stop))

    def chosen(self, stop: int) -> HeadBuilder:
        """Return what builds the head behind a unit: the one that was given, or what ``auto`` means there.

        Behind the last unit, where the model has its classifier, that is a head of another kind: a twin would
        be the classifier again, and teach its stage nothing else.
        """
        recipe, shape = self.recipe, self.shapes[stop - 1]
        budget = budget_of(recipe.head)
        if budget is None:
            return recipe.head
        if isinstance(recipe.objective, LGFG) and shape == self.shapes[-1]:
            return HEADS.get("downstream=0")  # has a closed form too, or the last stage is refused
        if recipe.compute.bp_free or isinstance(recipe.objective, LGFG):
            return HEADS.get("linear")
        if isinstance(recipe.head_task, SupCon) or stop == len(self.chain.units):
            return HEADS.get(projection_name(shape))
        choice = self.choice(stop)
        assert choice is not None, "by now only auto is left"
        return HEADS.get(choice.name)

    def choice(self, stop: int) -> Choice | None:
        """Return what ``auto`` chose behind a unit, once per unit; None where it is not what chooses."""
        budget = self.budget
        if budget is None or stop == len(self.chain.units):
            return None
        if stop not in self._choices:
            self._choices[stop] = self.behind(stop).chosen(budget)
        return self._choices[stop]

    @cached_property
    def _choices(self) -> dict[int, Choice]:
        return {}

    def seeded(self, stop: int, *, input_shape: Shape | None = None) -> nn.Module:
        """Build the head behind a unit, with weights that depend only on the run's seed and that unit."""
        with seeded(self.recipe.seed, "head", self.chain.units[stop - 1].name):
            return self.build(stop, input_shape=input_shape)

    def build(self, stop: int, *, input_shape: Shape | None = None) -> nn.Module:
        """Build the head behind a unit.

        Args:
            stop: number of units before it.
            input_shape: shape of one row of its stage's input, for heads that take it.

        Raises:
            UserError: the head does not fit features and labels.
        """
        builder = self.chosen(stop)
        if isinstance(contrast := self.recipe.head_task, SupCon):
            return self._contrast(builder, stop, contrast.dimensions, input_shape)
        return build_head(
            builder,
            self.shapes[stop - 1],
            classes=self._classes,
            target_shape=self.info.target_shape,
            output_shape=self.output_shape,
            input_shape=input_shape,
            downstream=self._downstream(stop),
        )

    def behind(self, stop: int) -> Behind:
        """Return what ``auto`` chooses from behind a unit."""
        return Behind(
            feature_shape=self.shapes[stop - 1],
            classes=self._classes,
            output_shape=self.output_shape,
            target_shape=self.info.target_shape,
            downstream=self._downstream(stop),
        )

    @property
    def _classes(self) -> int:
        return self.recipe.task.width(self.output_shape)

    def _contrast(
        self, builder: HeadBuilder, stop: int, dimensions: int, input_shape: Shape | None
    ) -> nn.Module:
        """Build a projection by a head's form, with a linear probe beside it.

        Raises:
            UserError: the head ends in the model's own classifier, or does not fit.
        """
        name, shape = HEADS.name_of(builder), self.shapes[stop - 1]
        if ends_in_classifier(name):
            raise UserError(
                f"--head {name} ends in a copy of the classifier, and SupCon wants a projection: "
                f"choose auto, conv, dgl, mlp or linear"
            )
        projection = build_head(
            builder,
            shape,
            classes=dimensions,
            target_shape=(),
            output_shape=(dimensions,),
            input_shape=input_shape,
            downstream=self._downstream(stop),
        )
        probe = build_head(HEADS.get("linear"), shape, classes=self._classes, target_shape=())
        return ContrastHead(projection, probe)

    def _downstream(self, stop: int) -> Downstream:
        chain = self.chain
        return Downstream(
            units=chain.units[stop:],
            shapes=tuple(self.shapes[stop:]),
            classifier=chain.classifier,
            crossing=chain.crossing[stop - 1 :],
            start=stop,
            stages=self.stages,
            seed=self.recipe.seed,
            multiply_adds=chain.multiply_adds,
        )
