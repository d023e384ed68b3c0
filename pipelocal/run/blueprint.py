"""A cut model and the recipe for its stages, from which each rank builds its own stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pipelocal.closed_form import ClosedFormStage, check_stage
from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.forward_gradient import ForwardGradientStage
from pipelocal.forward_gradient import check_stage as check_forward_gradient
from pipelocal.heads.guided import guided_every
from pipelocal.models import Chain, Shape
from pipelocal.models.context import Supplied
from pipelocal.objective import (
    LGFG,
    SGR,
    Greedy,
    Place,
    Relay,
    Section,
    WayBack,
    network_of,
    relays_of,
    way_back_of,
)
from pipelocal.objective.delta_encoding import Summary
from pipelocal.partition import Cut, by_count, from_names, names_of, to_text
from pipelocal.pipeline.messages import Messages, relay_name
from pipelocal.references.importing import calling
from pipelocal.run.heads import Heads
from pipelocal.seeding import derive_seed, seeded
from pipelocal.stage.displacement import Displacement, weight_at
from pipelocal.stage.ema import Average
from pipelocal.stage.graphs import check_cuda_graphs
from pipelocal.stage.layout import put_channels_last
from pipelocal.stage.passes import HALF
from pipelocal.stage.recipe import Recipe, check_schedule
from pipelocal.stage.stage import Stage, own_module
from pipelocal.stage.state import trained_names
from pipelocal.system.tensor_kind import TensorKind
from pipelocal.tasks.registry import own_task
from pipelocal.tasks.task import batch_of
from pipelocal.tasks.trial import shapes_of_sums


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A cut model; a rank builds only its own stages from it."""

    chain: Chain
    """The model as it is cut."""
    cuts: list[Cut]
    shapes: list[Shape]
    """Output shape of each unit, without the batch dimension."""
    recipe: Recipe
    info: DataInfo
    """Description of the data."""
    sections: Sequence[Cut] | None = None
    """What would be stages, where the model is trained uncut; None for the cuts."""

    @classmethod
    def of(cls, chain: Chain, recipe: Recipe, info: DataInfo) -> Blueprint:
        """Make the blueprint of an uncut model; it holds no parameters.

        Args:
            chain: the model.
            recipe: how to build its stages.
            info: description of the data.

        Raises:
            UserError: a unit fails to run.
        """
        chain, shapes = chain.tried()
        half = next((kinds[0].dtype for kinds in chain.crossing if kinds[0].dtype in HALF), None)
        if half is not None and recipe.objective.reconcile_every is not None:
            raise UserError(
                f"the model works in {half}, which is too coarse to compare gradients in: build it in "
                f"float32 (with --autocast bf16 for speed), or choose --objective greedy"
            )
        return cls(
            chain=chain,
            cuts=by_count(chain, 1),
            shapes=shapes,
            recipe=recipe,
            info=info,
        )

    @property
    def model_output(self) -> Shape:
        """Shape of one row of the model's output, and of every head's."""
        assert self.chain.output_shape is not None, "a chain that was tried knows it"
        return self.chain.output_shape

    @property
    def classes(self) -> int:
        """Number of classes, labels or outputs of the model's output."""
        return self.recipe.task.width(self.model_output)

    def checked(self) -> Blueprint:
        """Return the same, once it is known that the model's output is what the task wants.

        Raises:
            UserError: it is not.
        """
        made = self.model_output
        for task in (self.recipe.task, self.recipe.head_task or self.recipe.task):
            wanted = task.output_shape(self.info, made)
            if wanted != made:
                raise UserError(
                    f"the classifier '{self.chain.classifier.name}' makes outputs {batch_of(made)}, but "
                    f"{type(task).__name__} of this data wants {batch_of(wanted)}: make both the same"
                )
        compute, target = self.recipe.compute, self.info.train_target or self.info.target
        formulas = compute.bp_free or isinstance(self.recipe.objective, LGFG)
        if formulas and target.dtype.is_floating_point:
            raise UserError(
                f"{'--bp-free' if compute.bp_free else '--objective lg-fg'}: its formulas are of one class a "
                f"prediction, not of shares of several, as --mixup and --cutmix make: leave one of them out"
            )
        if self.recipe.transport_penalty and not any(
            map(self.keeps_shape, range(len(self.shapes)))
        ):
            raise UserError(
                f"--transport-penalty {self.recipe.transport_penalty:g}: it is on units that keep the shape "
                f"of their input, and the model has none: leave it out"
            )
        return self

    def keeps_shape(self, unit: int) -> bool:
        """Return whether a unit's main output has the shape of its main input, both floating."""
        kinds = self.chain.crossing[unit - 1] if unit else self.chain.inputs
        before, after = kinds[0], self.chain.crossing[unit][0]
        floating = before.dtype.is_floating_point and after.dtype.is_floating_point
        return floating and before.shape == after.shape

    def _displacement(self, number: int, body: nn.Sequential) -> Displacement | None:
        """Return a stage's transport penalty; None if there is none."""
        weight = weight_at(self.recipe.transport_penalty, number, self.stages)
        first = self.cuts[number - 1].start
        units = [
            unit.unit if isinstance(unit, Supplied) else unit  # what is supplied moves nothing
            for place, unit in enumerate(body, first)
            if self.keeps_shape(place)
        ]
        return Displacement(units, weight) if weight and units else None

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.cuts)

    def cut_into(self, cuts: Sequence[Cut]) -> Blueprint:
        """Return the same chain with other cuts.

        Raises:
            UserError: the objective does not fit the model, cut like this.
        """
        cut = replace(self, cuts=list(cuts))
        _ = cut.network  # refused now, not where it is built
        return cut

    @cached_property
    def network(self) -> Chain:
        """The model as it is trained: with what the objective puts into its units, under the same names."""
        return network_of(self.recipe.objective, self.chain, [cut.start for cut in self.cuts])

    def cut_at(self, names: Sequence[str]) -> Blueprint:
        """Return the same chain, cut before the units with these names."""
        return self.cut_into(from_names(self.chain, names, what="a cut"))

    @property
    def cut_names(self) -> list[str]:
        """The cuts in the form that :meth:`cut_at` takes."""
        return names_of(self.chain, self.cuts)

    @property
    def cut_text(self) -> str:
        """The cuts in the form that ``--cut`` takes."""
        return to_text(self.chain, self.cuts)

    def output_shape(self, stage: int) -> Shape:
        """Return the shape of one row of a stage's output; for stage 0, of one sample."""
        return self.shapes[self.cuts[stage - 1].stop - 1] if stage else self.chain.input_shape

    def passed_on(self, stage: int) -> tuple[TensorKind, ...]:
        """Return the kinds of the tensors that a stage passes on, main first; stage 0 is the data."""
        if stage:
            return self.network.crossing[self.cuts[stage - 1].stop - 1]
        return self.network.inputs

    def describe_crossing(self) -> tuple[str, ...]:
        """Say in a line each what several tensors cross a cut, and what was done to the model to cut it."""
        return tuple(self.network.describe([cut.stop for cut in self.cuts[:-1]]))

    def messages(self, stage: int) -> Messages:
        """Return the names of the tensors that come in to a stage, and of what it relays."""
        return Messages.of(self.info, len(self.passed_on(stage - 1)) - 1, stage, self.relays)

    @property
    def relays(self) -> Sequence[Relay]:
        """What the objective has relayed."""
        return relays_of(self.recipe.objective, self.stages)

    def relayed(self, source: int) -> list[TensorKind]:
        """Return the kinds of what is relayed from stage ``source`` to the next."""
        return [
            replace(self.passed_on(relay.of)[0], name=relay_name(relay.name))
            for relay in self.relays
            if relay.crosses(source)
        ]

    def units(self, stage: int) -> str:
        """Return the names of a stage's first and last unit, as text."""
        return self.cuts[stage - 1].describe(self.chain)

    def unit_names(self, stage: int) -> list[str]:
        """Return the names of a stage's units."""
        cut = self.cuts[stage - 1]
        return [unit.name for unit in self.chain.units[cut.start : cut.stop]]

    def summary(self, source: int) -> Summary:
        """Return how delta is encoded on the edge from stage ``source`` to the next."""
        seed = derive_seed(self.recipe.seed, "delta", source)
        return self.recipe.objective.delta_encoding(self.output_shape(source), seed)

    def silent(self, number: int) -> bool:
        """Return whether a stage is frozen from the first batch, so that its head never learns anything.

        The last stage never is: its head is the model's own.
        """
        freezing = self.recipe.freezing(self.stages).get(number)
        return number < self.stages and freezing is not None and freezing.from_start

    def has_delta(self, number: int) -> bool:
        """Return whether a stage's output gradient may be reconciled with; SGR leaves out a silent one's."""
        return number > 0 and not (isinstance(self.recipe.objective, SGR) and self.silent(number))

    def place(self, number: int, *, total_steps: int = 1) -> Place:
        """Return a stage's place in the network."""
        return Place(
            number=number,
            stages=self.stages,
            input_shape=self.output_shape(number - 1),
            output_shape=self.output_shape(number),
            sample_shape=self.chain.input_shape,
            total_steps=total_steps,
            previous_delta=self.summary(number - 1) if self.has_delta(number - 1) else None,
            sections=self._sections(number),
            head_loss=(self.heads.task or self.recipe.task).loss,
        )

    def _sections(self, number: int) -> list[Section]:
        """Return the parts of a stage that can have heads."""
        first = self.cuts[number - 1].start
        cuts = self.sections or [self.cuts[number - 1]]
        before = [
            self.chain.input_shape if c.start == 0 else self.shapes[c.start - 1] for c in cuts
        ]
        return [
            Section(
                stop=cut.stop - first,
                build_head=partial(self.heads.seeded, cut.stop, input_shape=shape),
            )
            for cut, shape in zip(cuts, before, strict=True)
        ]

    @cached_property
    def heads(self) -> Heads:
        """What builds the auxiliary heads."""
        return Heads(
            chain=self.chain,
            shapes=self.shapes,
            recipe=self.recipe,
            info=self.info,
            output_shape=self.model_output,
            stages=len(self.sections or self.cuts),
        )

    @cached_property
    def way_back(self) -> WayBack | None:
        """What flows back: the classifier's weights to guided heads, or what the objective declares.

        Raises:
            UserError: heads are guided, and the classifier has no weights that are trained.
        """
        every = guided_every(self.recipe.head)
        if every is None:
            return way_back_of(self.recipe.objective)
        unit = self.chain.classifier
        with torch.device("meta"):
            named = unit.build().named_parameters()
        weights = tuple(
            TensorKind(name=name, shape=tuple(weight.shape), dtype=weight.dtype)
            for name, weight in named
            if weight.requires_grad
        )
        if not weights:
            raise UserError(
                f"head 'guided': the classifier '{unit.name}' has no weights to be drawn to: choose twin"
            )
        return WayBack(name=unit.name, every=every, passed_on=True, weights=weights)

    def head_name(self, number: int) -> str | None:
        """Return a stage's auxiliary head, as ``--head`` takes it; None for the last, which needs none."""
        return None if number == self.stages else self.heads.name(self.cuts[number - 1].stop)

    def multiply_adds(self, number: int) -> tuple[int, int] | None:
        """Return those of a stage's body and head for one sample's forward pass; None if not counted.

        They are counted where ``--head auto`` chooses by them.
        """
        if self.heads.budget is None or self.network is not self.chain:
            return None
        cut, counts = self.cuts[number - 1], self.chain.multiply_adds()
        choice = None if number == self.stages else self.heads.choice(cut.stop)
        return sum(counts[cut.start : cut.stop]), choice.multiply_adds if choice else counts[-1]

    def build_parts(self, number: int, *, device: torch.device) -> tuple[nn.Sequential, nn.Module]:
        """Build the body and head of one stage; they depend only on the seed and the units.

        Raises:
            UserError: the head does not fit features and labels.
        """
        cut, seed, compute = self.cuts[number - 1], self.recipe.seed, self.recipe.compute
        body = self.network.build(cut.start, cut.stop, seed=seed)
        if number == self.stages:
            head = self.network.build_classifier(seed=seed)
        else:
            head = self.heads.seeded(cut.stop, input_shape=self.output_shape(number - 1))
        for part in (body, head):
            part.to(device)
            if compute.channels_last:
                put_channels_last(part)
            if compute.compile is not None:
                part.compile(backend=compute.compile)  # in place: names in state dicts stay
        return body, head

    def sum_shapes(self, device: torch.device) -> dict[str, Shape]:
        """Return the shapes of the task's sums."""
        target = self.info.target
        return shapes_of_sums(
            self.recipe.task, self.model_output, target.shape, target.dtype, device
        )

    def check_target(self, target: Tensor) -> None:
        """Check a batch's targets; see :class:`~pipelocal.tasks.task.Task`."""
        self.recipe.task.check_target(target, self.model_output)

    def stage_to_evaluate(self, number: int, *, device: torch.device) -> Stage:
        """Build one stage that will not be trained."""
        body, head = self.build_parts(number, device=device)
        return Stage(
            number=number,
            body=body,
            head=head,
            objective=Greedy(),
            optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.0),
            task=own_task(self.recipe.task, device),
            sum_shapes=self.sum_shapes(device),
            seed=self.recipe.seed,
            compute=replace(
                self.recipe.compute,
                checkpoint_activations=None,
                step_early=False,
                cuda_graphs=False,
            ),
        )

    def build_stage(
        self,
        number: int,
        *,
        device: torch.device,
        total_steps: int,
        total_updates: int | None = None,
        accumulate: int = 1,
    ) -> Stage:
        """Build one stage with fresh parameters that depend only on the seed and the units.

        Args:
            number: the stage's number, from 1.
            device: where the stage computes.
            total_steps: training batches of the run.
            total_updates: updates of the run; by default one per batch.
            accumulate: batches per update.

        Raises:
            UserError: the stage has nothing to train, its head does not fit features and labels, or
                it lacks what ``--bp-free`` or the objective needs.
        """
        recipe, compute = self.recipe, self.recipe.compute
        head_task = None if number == self.stages else self.heads.task
        body, head = self.build_parts(number, device=device)
        kind: type[Stage] = Stage
        if compute.bp_free:
            kind, units = ClosedFormStage, len(self.chain.units)
            check_stage(body, head, stage=number, units=units, head_name=self.head_name(number))
        elif isinstance(recipe.objective, LGFG):
            kind = ForwardGradientStage
            check_forward_gradient(body, head, stage=number, head_name=self.head_name(number))
        elif check := getattr(recipe.objective, "check_stage", None):
            check(body, head, stage=number)
        place = self.place(number, total_steps=total_steps)
        with seeded(recipe.seed, "objective", number), calling("objective"):
            objective = recipe.objective.for_stage(place)
        if compute.cuda_graphs:
            crossing = (self.passed_on(number - 1), self.passed_on(number))
            several = any(len(kinds) > 1 for kinds in crossing)
            check_cuda_graphs(device, objective, stage=number, several=several)
        own = own_module(objective)
        if own is not None:
            own.to(device)
        cut = self.cuts[number - 1]
        named = trained_names(self.network, cut, body, head, own)
        if not named:
            raise UserError(f"stage {number} ({self.units(number)}) has no parameters to train")
        optimizer = recipe.make_optimizer(named, place)
        total = total_steps if recipe.counts_batches else total_updates or total_steps
        with calling("schedule"):
            scheduler = None if recipe.schedule is None else recipe.schedule(optimizer, total)
        if recipe.schedule is not None:
            check_schedule(scheduler)
        return kind(
            number=number,
            body=body,
            head=head,
            objective=objective,
            optimizer=optimizer,
            task=own_task(recipe.task, device),
            head_task=None if head_task is None else own_task(head_task, device),
            sum_shapes=self.sum_shapes(device),
            scheduler=scheduler,
            accumulate=accumulate,
            clip=recipe.clip,
            average=None if recipe.ema is None else Average((body, head), recipe.ema),
            seed=recipe.seed,
            compute=compute,
            displacement=self._displacement(number, body),
        )
