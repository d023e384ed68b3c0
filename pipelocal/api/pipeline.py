"""The Python interface: trains a user's network in stages, in one process or on every torchrun rank."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from pipelocal.api.arguments import (
    check_kinds,
    cut_of,
    default_optimizer,
    freezing_of,
    options_of,
    schedule_of,
    task_of,
)
from pipelocal.api.data import Data, epoch_steps, loading_of
from pipelocal.api.definition import Definition
from pipelocal.api.one_batch import check_batch, info_of_batch, train_on_batch
from pipelocal.checkpoint.description import Description
from pipelocal.checkpoint.pick_snapshot import read_weights
from pipelocal.data.dataset import DataInfo
from pipelocal.data.mixing import Mixing
from pipelocal.errors import UserError
from pipelocal.heads import HEADS, HeadBuilder
from pipelocal.loggers.registry import Given, as_text, listed
from pipelocal.models import Chain
from pipelocal.models.inputs import check_inputs
from pipelocal.models.payload import Payload
from pipelocal.objective import Greedy, ObjectiveRecipe, as_recipe
from pipelocal.options import check_values, names_that
from pipelocal.partition.partitioners import Partitioner
from pipelocal.pipeline.callbacks import Callback
from pipelocal.ranks.script import end_plainly
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.combinations import check_combinations, check_stages
from pipelocal.run.evaluation import evaluate_stages
from pipelocal.run.gather import gather_model
from pipelocal.run.run import Run
from pipelocal.run.train import run_training
from pipelocal.seeding import seeded, undone
from pipelocal.stage.recipe import OptimizerBuilder, Recipe, ScheduleBuilder
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import load_stage_weights, stage_state
from pipelocal.system.describing import described
from pipelocal.system.streams import tell
from pipelocal.tasks import LossFunction, Task
from pipelocal.tasks.trial import check_task

Fitted = tuple[Blueprint, list[Stage]]


P = ParamSpec("P")
R = TypeVar("R")


def leaving_torch_as_it_was(method: Callable[P, R]) -> Callable[P, R]:
    """Restore torch's generators, thread count and defaults after a call of the method."""

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with undone(), seeded(0, "pipeline"):
            return method(*args, **kwargs)

    return wrapped


class Pipeline:
    """A network, cut into stages, each with its own head, loss and optimizer.

    Args:
        model: an ``nn.Sequential`` whose last child is the classifier, or a
            :class:`~pipelocal.models.chain.Chain` (``Chain.from_module`` makes one of any module). All
            ranks must build it with the same weights: seed torch first.
        stages: number of stages, with equal numbers of units unless ``balance`` says otherwise.
        cut: instead of ``stages``, the name of the first unit of each stage after the first.
        balance: ``count``, ``time`` or ``memory``, the folder of a finished run, or a function of a
            :class:`~pipelocal.partition.partitioners.PartitionRequest`.
        memory_limit: bytes that no stage may exceed, with ``balance`` time or memory.
        speeds: relative speed of each stage's device, with ``balance="time"``.
        task: what is learnt, see :mod:`pipelocal.tasks`; by default classification, with one class per
            model output.
        loss: function of outputs and targets that replaces the task's: a scalar, mean over the batch, or a
            :class:`~pipelocal.tasks.task.Loss`.
        head: name of an auxiliary head, or a function that builds one, see :mod:`pipelocal.heads`.
        head_task: task by whose loss auxiliary heads train, such as ``Classification(label_smoothing=0.1)``;
            by default the task itself. Figures and evaluations are always the task's.
        objective: ``Greedy()`` (the default), another of :mod:`pipelocal.objectives`, or your own.
        optimizer: called with the stage's ``(name, parameter)`` pairs, and with its
            :class:`~pipelocal.objective.local.Place` if it takes a second argument; by default SGD with
            learning rate 0.1, momentum 0.9 and weight decay 5e-4.
        schedule: called with a stage's optimizer and the total number of updates; its result is stepped
            after each update. Or ``"cosine"``. Constant by default.
        freeze_stage: stages that stop training, as text: ``"1:0"`` (stage 1 is never trained),
            ``"1:500,2:plateau"`` (after 500 batches, and on a plateau of its training loss).
        transport_penalty: weight in every stage's loss of how far its units that keep the shape of their
            input move it; half as much in the second half of the stages.
        clip_norm: maximum L2 norm of a stage's gradient in an update.
        ema: decay of an exponential moving average of the weights, kept alongside them.
        input_shape: shape of one sample; by default taken from the data.
        seed: seed for heads, data order, augmentation and dropout.
        options: command-line options that say how to run, such as ``window=4``,
            ``autocast="bf16"``, ``replicas="2"`` or ``accumulate=4``;
            see :class:`~pipelocal.run.options.RunOptions`.

    Raises:
        UserError: an argument is unknown or out of range, or two are mutually exclusive.
    """

    def __init__(
        self,
        model: nn.Sequential | Chain,
        *,
        stages: int | None = None,
        cut: Sequence[str] | None = None,
        balance: str | Partitioner = "count",
        memory_limit: int | None = None,
        speeds: Sequence[float] | None = None,
        task: Task | None = None,
        loss: LossFunction | None = None,
        head: str | HeadBuilder = "auto",
        head_task: Task | None = None,
        objective: ObjectiveRecipe | Callable[..., Any] | None = None,
        optimizer: OptimizerBuilder | None = None,
        schedule: ScheduleBuilder | str | None = None,
        freeze_stage: str | None = None,
        transport_penalty: float = 0.0,
        clip_norm: float | None = None,
        ema: float | None = None,
        input_shape: Sequence[int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        chosen = options_of(options)
        check_kinds(
            cut=cut,
            balance=balance,
            speeds=speeds,
            loss=loss,
            head=head,
            optimizer=optimizer,
            schedule=schedule,
            freeze_stage=freeze_stage,
            transport_penalty=transport_penalty,
            clip_norm=clip_norm,
            ema=ema,
            input_shape=input_shape,
            seed=seed,
        )
        if head_task is not None:
            check_task(head_task)
        recipe = Recipe(
            task=task_of(task, loss),
            head=HEADS.later(head) if isinstance(head, str) else head,
            head_task=head_task,
            objective=as_recipe(Greedy() if objective is None else objective),
            optimizer=default_optimizer if optimizer is None else optimizer,
            schedule=schedule_of(schedule),
            counts_batches=isinstance(schedule, str),
            freezing=freezing_of(freeze_stage),
            transport_penalty=transport_penalty,
            clip=clip_norm,
            ema=ema,
            seed=seed,
            compute=chosen,
        )
        check_combinations(chosen, recipe)
        asked = cut_of(stages, cut, balance, memory_limit, speeds)
        check_stages(recipe, asked.stages)
        recipe.freezing(asked.stages)  # which refuses a stage that there is not
        self._given = Definition(
            model=model,
            input_shape=None if input_shape is None else tuple(input_shape),
            recipe=recipe,
            cut=asked,
            options=chosen,
            text={
                "stages": stages,
                "cut": None if cut is None else ",".join(cut),
                "balance": described(balance),
                "task": described(task),
                "loss": described(loss),
                "head": described(head),
                "head_task": described(head_task),
                "objective": "greedy" if objective is None else described(objective),
                "optimizer": described(optimizer),
                "schedule": described(schedule),
                "freeze_stage": freeze_stage,
                "transport_penalty": transport_penalty,
                "clip_norm": clip_norm,
                "ema": ema,
                "seed": seed,
            },
        )
        self._world: World | None = None
        self._runs = 0
        self._fitted: Fitted | None = None
        self._steps = False
        """Whether the stages are those of :meth:`step`, with optimizers that no schedule has led."""

    @leaving_torch_as_it_was
    def fit(
        self,
        train: Any,
        test: Any = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        columns: Sequence[str] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        bad_samples: str = "error",
        mixup: float | None = None,
        cutmix: float | None = None,
        out: str | None = None,
        resume: str = "auto",
        evaluate_every: int = 1,
        callbacks: Sequence[Callback] = (),
        log: Given = (),
        accept_changes: bool = False,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Train; all ranks call it together. Another call continues from the current weights.

        Args:
            train: a data set of samples ``(x, target)``, ``(x, ..., target)``, ``((x, ...), target)`` or
                dicts; a ``DataLoader``; an ``IterableDataset``; or a function that returns one of these, or
                a pair of training and test data. Only the ranks of the first stage open and read it.
            test: the same for evaluation; a number to evaluate on such a share of the training data; None
                for no evaluation.
            epochs: passes over the training data; as many as ``max_steps`` needs if only that is given. Data
                without a length are counted in batches: an epoch is an equal part of ``max_steps``, or all.
            max_steps: stop after this many batches, even within an epoch.
            batch_size: samples in a batch, 64 by default; a DataLoader has its own.
            workers: processes that load ahead of the training; by default data are loaded in the process
                of the first stage. The bits are the same.
            columns: names of the inputs and, last, the target, of samples that are dicts.
            collate: makes a batch of a list of samples.
            bad_samples: ``error``, or ``skip``: leave out and count samples whose loading fails.
            mixup: alpha of MixUp, such as 0.2; training targets become shares of the classes.
            cutmix: alpha of CutMix, such as 1.0.
            out: run folder to create, or to continue in if it holds this same run, unfinished; None to
                write nothing.
            resume: ``auto`` (continue an unfinished run in ``out``), ``never``, or the folder of a run or
                of one of its snapshots to start from.
            evaluate_every: epochs between evaluations; the end is always evaluated.
            callbacks: called with what the stages of this rank have done.
            log: ``tensorboard``, ``wandb``, ``csv`` or a :class:`~pipelocal.loggers.logger.Logger` of your
                own, or several of these; rank 0 gives them the records of all stages.
            accept_changes: continue a run even though its model or data have changed.
            progress: whether rank 0 shows progress on standard output.

        Returns:
            The summary, the same on every rank: ``steps``, ``seconds``, ``eval`` (loss and metrics of the
            last head) and everything else in ``summary.json``.

        Raises:
            UserError: the arguments, the data or the folder cannot be used.
            StageError: a stage of this rank cannot continue.
            Interrupted: another rank failed.
        """
        check_kinds(callbacks=callbacks, out=out)
        if train is None:
            raise UserError("fit: train=None: give data to train on")
        parts = epochs or 1
        if epochs is None:
            if max_steps is None:
                raise UserError("fit: say how long to train, with epochs= or max_steps=")
            epochs = max_steps  # each of which has one batch or more
        options = replace(
            self._given.options,
            epochs=epochs,
            max_steps=max_steps,
            evaluate_every=evaluate_every,
            resume=resume,
            log=as_text(log),
            accept_changes=accept_changes,
            keep_snapshots=self._given.options.keep_snapshots if out is not None else 0,
        )
        check_values(options)
        loading = loading_of(
            options,
            given=(train, test),
            batch_size=batch_size,
            workers=workers,
            columns=columns,
            collate=collate,
            bad_samples=bad_samples,
        )
        self._given.check_columns(columns)
        given = self._given
        if self._fitted is not None and self._fitted[1] and not given.recipe.uncut:
            given = replace(given, cut=given.cut.at(self._fitted[0].cut_names))
        data = Data(
            train=train,
            test=test,
            loading=loading,
            mixing=Mixing(mixup=mixup, cutmix=cutmix),
            steps=epoch_steps(parts, max_steps),
        )
        text = given.written(options, data)
        run, summary = run_training(
            partial(given.spec, options, text, data, out, tuple(callbacks), listed(log)),
            text=text,
            own=names_that(options, "alike"),
            patience_s=options.start_timeout,
            world=self._next_world(),
            stream=None if progress else io.StringIO(),
            begin_with=None if self._fitted is None else self._begin_with,
        )
        self._take(run)
        return summary

    @leaving_torch_as_it_was
    def load(self, run: str) -> None:
        """Load the weights of a run that a Pipeline like this one trained.

        Args:
            run: the run's folder, one of its snapshot folders, or ``RUN/snapshots/best``.

        Raises:
            UserError: there are no weights, or they do not fit.
        """
        world = self._next_world()
        found = read_weights(Path(run), tell)
        if found is None:
            raise UserError(
                f"{run} holds no weights: give the folder of a run that took snapshots, or ended"
            )
        info = Description.read(found.chosen.run).info
        blueprint = self._given.draw(info).cut_at(found.chosen.manifest.cut)
        placement = self._given.options.placement(blueprint.stages, world.size)
        device = world.device(self._given.options.device)
        stages = []
        for number in placement.seat(world.rank).block.stages:
            stage = blueprint.build_stage(number, device=device, total_steps=1)
            cut, state = blueprint.cuts[number - 1], found.states[number - 1]
            load_stage_weights(blueprint.network, cut, stage, state)
            stages.append(stage)
        self._fitted, self._steps = (blueprint, stages), False

    @leaving_torch_as_it_was
    def evaluate(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        columns: Sequence[str] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        bad_samples: str = "error",
    ) -> dict[str, Any]:
        """Evaluate every stage's head on some data; all ranks call it together.

        Args:
            data: as for :meth:`fit`, and so are the others.
            batch_size: samples in a batch.
            workers: processes that load ahead.
            columns: names of the inputs and, last, the target, of samples that are dicts.
            collate: makes a batch of a list of samples.
            bad_samples: ``error`` or ``skip``.

        Returns:
            ``loss`` and the task's metrics, such as ``accuracy``, of the last head, identical on every
            rank; ``ensemble``, the metrics of all heads together (and ``ensemble_accuracy``, where
            accuracy is one of them); and ``stages``, a list with the same figures for each stage.
        """
        world = self._next_world()
        loading = loading_of(
            self._given.options,
            given=(data,),
            batch_size=batch_size,
            workers=workers,
            columns=columns,
            collate=collate,
            bad_samples=bad_samples,
        )
        self._given.check_columns(columns)
        recipe, stages = self._given.recipe, self._fitted[1] if self._fitted else []
        opener = Data(test=data, loading=loading).opener(
            recipe.seed, getattr(recipe.task, "classes", None)
        )
        result = evaluate_stages(
            self._blueprint_for,
            stages or None,
            opener.batches,
            info=opener.info,
            options=self._given.options,
            world=world,
        )
        # What was never trained is built anew when it is needed, where it is to be cut then.
        self._fitted = (result.blueprint, result.stages if stages else [])
        return result.figures

    @leaving_torch_as_it_was
    def module(self, *, stage: int | None = None, averaged: bool = False) -> nn.Module:
        """Return the whole plain model with the trained weights, on the CPU; all ranks call it together.

        Args:
            stage: number of a stage, from 1: the network up to it, with its head in place of the classifier.
            averaged: whether to take the moving average of the weights, kept with ``ema``.

        Raises:
            UserError: there is no such stage, or its head never learnt anything; there is no average; or
                nothing has been trained yet, and the model's input shape is unknown.
        """
        world = self._next_world()
        nothing: list[Stage] = []
        blueprint, stages = self._fitted or (self._given.draw_alone(), nothing)
        if averaged and not any(stage.average and stage.average.updates for stage in stages):
            raise UserError(
                "averaged=True: nothing was averaged yet: give Pipeline(ema=0.999), and fit"
            )
        return gather_model(
            blueprint,
            stages,
            world,
            replicas=self._given.options,
            upto=stage,
            averaged=averaged,
        )

    @leaving_torch_as_it_was
    def step(self, x: Payload, target: Tensor) -> dict[str, Any]:
        """Train all stages on one batch, in this process, at the optimizers' own learning rates.

        After :meth:`fit` or :meth:`load` it begins as another :meth:`fit` does: with the current weights and
        new optimizers.

        Args:
            x: samples ``[B, ...]``; for a model of several inputs a tuple of them.
            target: their targets ``[B, ...]``, as the task wants them.

        Returns:
            ``loss`` and the task's metrics of the last head on this batch before the update, and the same
            for every stage in ``stages``.

        Raises:
            UserError: there are several ranks, and each would train on its own; something flows back; or the
                samples are of another shape than before.
            DataError: the targets do not fit.
            StageError: a loss is NaN or infinite.
        """
        world = self._next_world()
        if world.size > 1:
            raise UserError(
                f"step() trains all stages in one process, and {world.size} ranks were started: use fit(), "
                f"or start it without torchrun"
            )
        if self._given.recipe.sends_back:
            raise UserError(
                "step() trains each stage by what it has itself, and here stages send something back (PGL, "
                "LoCo, guided heads): use fit()"
            )
        check_batch(x, target)
        stages = self._local_stages(x, target)
        figures = train_on_batch(self._blueprint, stages, x, target)
        return {**figures[-1], "stages": figures}

    # Implementation.

    @property
    def _blueprint(self) -> Blueprint:
        assert self._fitted is not None
        return self._fitted[0]

    def _blueprint_for(self, info: DataInfo) -> Blueprint:
        """Return the cut model for data like this, the trained one if there is one.

        Raises:
            UserError: it is for other data.
        """
        if self._fitted is None:
            return self._given.draw(info)
        check_inputs(self._blueprint.chain.inputs, info.inputs)
        return self._blueprint

    def _local_stages(self, x: Payload, target: Tensor) -> list[Stage]:
        """Return all stages, building them on the first call, with the weights that there are."""
        blueprint = self._blueprint_for(info_of_batch(x, target))
        stages = [] if self._fitted is None else self._fitted[1]
        if not self._steps or len(stages) < blueprint.stages:
            device = World.alone().device(self._given.options.device)
            plain = replace(blueprint, recipe=replace(blueprint.recipe, schedule=None))
            stages = [
                plain.build_stage(
                    number, device=device, total_steps=1, accumulate=self._given.options.accumulate
                )
                for number in range(1, blueprint.stages + 1)
            ]
            if self._fitted is not None:
                for stage in stages:
                    self._begin_with(stage)
            self._fitted, self._steps = (blueprint, stages), True
        return stages

    def _take(self, run: Run) -> None:
        self._fitted, self._steps = (run.blueprint, run.stages), False
        # Where replicas were to be chosen, the stages now lie as they were.
        chosen = replace(self._given.options, replicas=run.spec.options.replicas)
        self._given = replace(self._given, options=chosen)

    def _begin_with(self, stage: Stage) -> None:
        """Give a new stage the weights of the old stage with its number, if this rank holds that."""
        assert self._fitted is not None
        blueprint, stages = self._fitted
        old = next((old for old in stages if old.number == stage.number), None)
        if old is not None:
            chain, cut = blueprint.network, blueprint.cuts[stage.number - 1]
            load_stage_weights(chain, cut, stage, stage_state(chain, cut, old))

    def _next_world(self) -> World:
        """Return the ranks, with a part of their store reserved for the coming call."""
        if self._world is None:
            self._world = World.from_environment(start_timeout_s=self._given.options.start_timeout)
            if self._world.size > 1:
                end_plainly(self._world.rank)
        self._runs += 1
        return self._world.part(f"run/{self._runs}")
