"""From options to stages: what is computed where."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pipelocal.closed_form import ClosedFormStage, check_stage
from pipelocal.config import TrainConfig
from pipelocal.config.checks import AUTOCAST
from pipelocal.data import DataInfo, data_info
from pipelocal.errors import StageError, UserError
from pipelocal.heads.build import build_head, check_logits
from pipelocal.heads.downstream import Downstream
from pipelocal.models import Chain, Shape, build_chain
from pipelocal.models.state import versions_of, with_versions
from pipelocal.objective import DISTANCES, OBJECTIVES, WEIGHT_SCHEDULES, Reconciliation
from pipelocal.objective.delta_encoding import SUMMARIES, Summary
from pipelocal.objective.local import Greedy
from pipelocal.partition import Cut, by_count, from_names, from_text, names_of, to_text
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.partitioners import PartitionRequest, partition
from pipelocal.partition.profile import Meter, profile_chain
from pipelocal.partition.replicas import paces
from pipelocal.references import returned, users_code
from pipelocal.seeding import derive_seed, seeded
from pipelocal.stage.ema import Average
from pipelocal.stage.finite import HEAD, first_nonfinite
from pipelocal.stage.layout import put_channels_last
from pipelocal.stage.lr_schedule import LR_SCHEDULES, learning_rate_factor
from pipelocal.stage.optimizers import OPTIMIZERS
from pipelocal.stage.stage import Stage
from pipelocal.system.quantities import parse_bytes, parse_speeds
from pipelocal.transport.packing import PACKINGS, row_bytes


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The cut model, of which a rank builds only its own stages."""

    chain: Chain
    cuts: list[Cut]
    shapes: list[Shape]
    """Output shape of each unit, without the batch dimension."""
    target_shape: Shape = ()
    """Shape of the labels of one sample."""

    @classmethod
    def draw(cls, config: TrainConfig, *, info: DataInfo | None = None) -> Blueprint:
        """Cut the model as the options say; holds no parameters.

        Args:
            config: the options.
            info: what the model is fed; by default what ``--data`` holds.

        Raises:
            UserError: the model cannot be made for this data, or not be cut like that.
        """
        if info is None:
            info = data_info(config.data, root=config.data_root, seed=config.seed)
        chain = build_chain(
            config.model, input_shape=info.sample_shape, classes=info.classes, seed=config.seed
        )
        _check_sample_dtype(chain, config.model, info)
        if config.objective == "bp":  # back-propagation is the case of one stage
            cuts = by_count(chain, 1)
        elif config.cut is not None:
            cuts = from_text(chain, config.cut)
        else:
            cuts = by_count(chain, config.stages)
        chain, shapes = chain.tried()
        return cls(chain=chain, cuts=cuts, shapes=shapes, target_shape=info.target_shape)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.cuts)

    def cost_model(self, config: TrainConfig, meter: Meter) -> CostModel:
        """Cost every unit and every head that a cut could need.

        Args:
            config: the options; batch size, objective, head and optimizer matter.
            meter: says how long things take.

        Raises:
            UserError: a unit or a head cannot be differentiated twice, as sgr wants it.
        """
        reconciles = config.objective == "sgr"
        exact = config.reconcile == "exact"
        profile = profile_chain(
            self.chain,
            self.shapes,
            partial(self._head, config),
            meter,
            batch_size=config.batch_size,
            exact=reconciles and exact,
            optimizer=lambda parameters: _optimizer(config, parameters),
            target_shape=self.target_shape,
            seed=config.seed,
        )
        fraction = config.reconcile_fraction
        summaries = [
            SUMMARIES.get(config.delta)(shape, config.delta_size, config.seed)
            for shape in self.shapes
        ]
        packings = [PACKINGS.get(config.wire)(shape) for shape in self.shapes]
        return CostModel(
            profile=profile,
            x_bytes=[config.batch_size * row_bytes(packing) for packing in packings],
            delta_bytes=[config.batch_size * row_bytes(summary) for summary in summaries],
            reconcile_share=1 / config.reconcile_every if reconciles else 0.0,
            passes=0.0 if exact else 2 * fraction if fraction < 1 else 1.0,
            window=config.window,
        )

    def partitioned(self, config: TrainConfig, measure: Callable[[], CostModel]) -> Blueprint:
        """The same chain, cut as ``--balance``, ``--memory-limit`` and ``--device-speeds`` ask for.

        Args:
            config: the options; with ``--cut`` nothing changes, nor with back-propagation.
            measure: finds out what units and heads cost, if somebody asks.

        Raises:
            UserError: no cut keeps the memory limit, or a user's own partitioner returns no cut.
        """
        if config.cut is not None or config.objective == "bp":
            return self
        limit, text = config.memory_limit, config.device_speeds
        speeds = parse_speeds("--device-speeds", text, self.stages) if text else None
        request = PartitionRequest(
            chain=self.chain,
            stages=self.stages,
            measure=measure,
            memory_limit=parse_bytes("--memory-limit", limit) if limit else None,
            speeds=paces(speeds, config.replica_counts(self.stages), self.stages),
        )
        return replace(self, cuts=partition(config.balance, request))

    def cut_at(self, names: Sequence[str]) -> Blueprint:
        """The same chain, cut before the units with these names."""
        return replace(self, cuts=from_names(self.chain, names, what="a cut"))

    @property
    def cut_names(self) -> list[str]:
        """The cuts as :meth:`cut_at` takes them."""
        return names_of(self.chain, self.cuts)

    @property
    def cut_text(self) -> str:
        """The cuts as ``--cut`` takes them."""
        return to_text(self.chain, self.cuts)

    def _head(self, config: TrainConfig, stop: int) -> nn.Module:
        """The auxiliary head of a stage that ends before unit ``stop``."""
        chain = self.chain
        return build_head(
            config.head,
            self.shapes[stop - 1],
            classes=chain.classes,
            target_shape=self.target_shape,
            downstream=Downstream(
                units=chain.units[stop:],
                shapes=tuple(self.shapes[stop:]),
                classifier=chain.classifier,
            ),
        )

    def _reconciliation(self, stage: int, config: TrainConfig, steps: int) -> Reconciliation:
        weights = [0.0, *config.reconcile_weights(self.stages)]
        return Reconciliation(
            form="exact" if config.reconcile == "exact" else "first-order",
            distance=DISTANCES.get(config.distance),
            weight=weights[stage - 1],
            schedule=WEIGHT_SCHEDULES.get(config.reconcile_schedule),
            total_steps=steps,
            every=config.reconcile_every,
            fraction=config.reconcile_fraction,
            summary=self.summary(stage - 1, config),
        )

    def summary(self, source: int, config: TrainConfig) -> Summary:
        """How delta travels from stage ``source`` to the next."""
        seed = derive_seed(config.seed, "delta", source)
        return SUMMARIES.get(config.delta)(self.output_shape(source), config.delta_size, seed)

    def output_shape(self, stage: int) -> Shape:
        """Shape of one row of a stage's output; of the samples for stage 0."""
        return self.shapes[self.cuts[stage - 1].stop - 1] if stage else self.chain.input_shape

    def units(self, stage: int) -> str:
        """The names of a stage's first and last unit."""
        return self.cuts[stage - 1].describe(self.chain)

    def stage_state(self, stage: Stage) -> dict[str, Any]:
        """A stage's state with its body under the whole model's names.

        ``body`` and ``head`` are state dicts, ``optimizer`` and ``steps`` the training's state;
        ``averaged`` holds the averaged ``body`` and ``head``, and the number of its ``updates``, or
        is None.

        Raises:
            StageError: the training diverged: a weight is NaN or infinite. Such a state is never saved.
        """
        averaged = None
        if stage.average is not None:
            with stage.average.in_place():
                weights = {"body": self._whole_body(stage), "head": stage.head.state_dict()}
                averaged = copy.deepcopy(weights) | {"updates": stage.average.updates}
        state = stage.state_dict() | {"body": self._whole_body(stage), "averaged": averaged}
        whole: dict[str, Any] = stage.replicas.whole(state)
        if (bad := first_nonfinite(whole, self.parameter_names(stage))) is not None:
            raise StageError(
                f"after {stage.steps} batches {bad} is NaN or infinite: lower --lr, add --warmup-steps, or "
                f"look at the data",
                stage=stage.number,
            )
        return whole

    def _whole_body(self, stage: Stage) -> dict[str, torch.Tensor]:
        cut = self.cuts[stage.number - 1]
        return self.chain.whole_state(stage.body, cut.start, cut.stop)

    def parameter_names(self, stage: Stage) -> list[str]:
        """The names of what the stage's optimizer trains, in its order: the body's, then the head's."""
        cut = self.cuts[stage.number - 1]
        body = self.chain.whole_names(stage.body, cut.start, cut.stop)
        return body + [HEAD + name for name, p in stage.head.named_parameters() if p.requires_grad]

    def unit_names(self, stage: int) -> list[str]:
        """The names of a stage's units."""
        cut = self.cuts[stage - 1]
        return [unit.name for unit in self.chain.units[cut.start : cut.stop]]

    def load_weights(
        self, number: int, body: nn.Sequential, head: nn.Module, state: dict[str, Any]
    ) -> None:
        """Body and head of a stage from :meth:`stage_state`.

        Raises:
            UserError: they do not fit.
        """
        cut = self.cuts[number - 1]
        self.chain.load_whole_state(body, cut.start, cut.stop, state["body"])
        try:
            head.load_state_dict(state["head"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the head of stage {number} cannot be loaded: {reason}") from error

    def load_average(self, stage: Stage, state: dict[str, Any]) -> None:
        """The averaged weights from :meth:`stage_state`; those loaded before where it has none.

        Raises:
            UserError: they do not fit.
        """
        if stage.average is not None and (averaged := state["averaged"]) is not None:
            with stage.average.in_place():
                self.load_weights(stage.number, stage.body, stage.head, averaged)
            stage.average.updates = averaged["updates"]

    def plain_state(self, stages: Iterable[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The whole model's state dict from all stages' :meth:`stage_state`, in order.

        Auxiliary heads are left out; the last stage's head is the model's classifier.
        """
        states = list(stages)
        classifier, head = self.chain.classifier, states[-1]["head"]
        own = {classifier.whole_name(name): value for name, value in head.items()}
        last = with_versions(own, classifier.whole_versions(versions_of(head)))
        return self.chain.joined_state([*(state["body"] for state in states), last])

    def build_parts(
        self, number: int, config: TrainConfig, *, device: torch.device
    ) -> tuple[nn.Sequential, nn.Module]:
        """Build body and head of one stage, which depend on the seed and the units alone.

        Raises:
            UserError: the head does not fit features and labels.
        """
        cut = self.cuts[number - 1]
        body = self.chain.build(cut.start, cut.stop, seed=config.seed)
        classes, feature_shape = self.chain.classes, self.output_shape(number)
        if number == len(self.cuts):
            head = self.chain.build_classifier(seed=config.seed)
            check_logits(
                head,
                feature_shape,
                (*self.target_shape, classes),
                what=f"the classifier '{self.chain.classifier.name}'",
                mend=f"model '{config.model}' and data set '{config.data}' do not go together",
            )
        else:
            with seeded(config.seed, "head", self.chain.units[cut.stop - 1].name):
                head = self._head(config, cut.stop)
        for part in (body, head):
            part.to(device)
            if config.channels_last:
                put_channels_last(part)
            if config.compile is not None:
                part.compile(backend=config.compile)  # in place: names in state dicts stay
        return body, head

    def stage_to_evaluate(self, number: int, config: TrainConfig, *, device: torch.device) -> Stage:
        """Build one stage that will not be trained: it needs none of what the options say of training."""
        body, head = self.build_parts(number, config, device=device)
        return Stage(
            number=number,
            body=body,
            head=head,
            objective=Greedy(),
            optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.0),
            seed=config.seed,
            autocast=None if config.autocast is None else AUTOCAST[config.autocast],
            channels_last=config.channels_last,
        )

    def build_stage(
        self, number: int, config: TrainConfig, *, device: torch.device, total_steps: int
    ) -> Stage:
        """Build one stage with fresh parameters that depend on the seed and the units alone.

        Raises:
            UserError: the stage has nothing to train, its head does not fit features and labels, or
                it has no closed form where ``--bp-free`` wants one.
        """
        body, head = self.build_parts(number, config, device=device)
        if config.bp_free:
            check_stage(
                body,
                head,
                stage=number,
                units=len(self.chain.units),
                head_name=None if number == len(self.cuts) else config.head,
            )
        reconciliation = self._reconciliation(number, config, total_steps)
        make_objective = OBJECTIVES.get(config.objective)
        with users_code("objective", config.objective):
            objective = make_objective(number, reconciliation)
        parameters = [
            parameter
            for parameter in (*body.parameters(), *head.parameters())
            if parameter.requires_grad
        ]
        if not parameters:
            raise UserError(f"stage {number} ({self.units(number)}) has no parameters to train")
        optimizer = _optimizer(config, parameters)
        factor = learning_rate_factor(
            LR_SCHEDULES.get(config.schedule),
            total_steps=total_steps,
            warmup_steps=config.warmup_steps,
        )
        autocast = None if config.autocast is None else AUTOCAST[config.autocast]
        make: Callable[..., Stage] = ClosedFormStage
        if not config.bp_free:
            make = partial(
                Stage,
                autocast=autocast,
                channels_last=config.channels_last,
                recomputed_units=config.checkpoint_activations,
                steps_early=config.step_early,
            )
        return make(
            number=number,
            body=body,
            head=head,
            average=None if config.ema is None else Average((body, head), config.ema),
            objective=objective,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
            accumulate=config.batches_an_update,
            seed=config.seed,
        )


def _optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    build = OPTIMIZERS.get(config.optimizer)
    fused = {"fused": True} if config.fused else {}
    with users_code("optimizer", config.optimizer):
        optimizer = build(parameters, config.lr, config.weight_decay, config.momentum, **fused)
        return returned(optimizer, torch.optim.Optimizer)


def _check_sample_dtype(chain: Chain, model: str, info: DataInfo) -> None:
    """A model of the registry says what it takes; a user's own is given what the data has."""
    if ":" in model:
        chain.input_dtype = info.sample_dtype
    elif chain.input_dtype != info.sample_dtype:
        kinds = {torch.int64: "tokens", torch.float32: "images or vectors"}
        fitting = "gpt, lstm or gru" if info.tokens else "mlp or a resnet"
        raise UserError(
            f"model '{model}' takes {kinds.get(chain.input_dtype, chain.input_dtype)}, but data set "
            f"'{info.name}' holds {kinds[info.sample_dtype]}: choose a model such as {fitting}"
        )
