"""One gradient-isolated stage: body, head, objective and optimizer.

A stage knows nothing of ranks. It processes each batch in four steps, which :meth:`Stage.step` runs in
sequence and a pipeline interleaves with its transfers::

    forward(x)               -> out      body only; out can be sent at once
    output_gradient(target)  -> delta    head and local loss, then back to out; delta can be sent
    reconcile(delta of the stage before) the rest of the backward pass, but for what an objective with a
                             way back does later: give_back() -> eta or the like, take_back(the next stage's)
    update()                             optimizer and schedule
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pipelocal.errors import StageError
from pipelocal.models.in_place import disable_inplace
from pipelocal.models.payload import Payload, pack, unpack
from pipelocal.objective.local import LocalPass, Objective
from pipelocal.objective.way_back import SendsBack
from pipelocal.seeding import derive_seed
from pipelocal.stage.displacement import FIGURE, Displacement
from pipelocal.stage.early_step import EarlyStep
from pipelocal.stage.ema import Average
from pipelocal.stage.inner import InnerOutputs
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.passes import Passes
from pipelocal.stage.replay import leaving_input
from pipelocal.stage.replicas import Replicas
from pipelocal.stage.result import StepMetrics, StepResult
from pipelocal.stage.under_way import UnderWay, said_figures
from pipelocal.stage.unsaved import Unsaved
from pipelocal.stage.update import Update
from pipelocal.tasks import Classification, Task

CLASSIFICATION, PLAIN = Classification(), ComputeOptions()
NONE: Mapping[str, Tensor] = {}


class Stage:
    """Body and head with their local training.

    Args:
        number: position in the network, from 1.
        body: the units, in order.
        head: maps the body's output to logits ``[B, ..., classes]``.
        objective: what the stage minimises.
        optimizer: updates the parameters of body, head and objective.
        task: defines the loss and the metrics.
        head_task: defines the loss in training instead; None for the task.
        sum_shapes: shapes of the task's sums; None to learn them from the first batch, if the stage has no
            replicas.
        scheduler: learning-rate scheduler; None for a constant rate.
        accumulate: batches whose gradients are averaged for one update.
        clip: maximum L2 norm of an update's gradient; None for no limit.
        average: moving average of the weights of body and head; None for none.
        seed: the run's seed. Dropout and the like are seeded from this, the stage and the step, so
            they do not depend on what else the process does.
        compute: how to compute; used here are autocast (parameters, outputs, logits, loss and delta
            are float32 regardless), channels_last (the modules' weights must already have that
            layout), checkpoint_activations and step_early.
        displacement: the transport penalty, a further term of the loss; None for none.
    """

    def __init__(
        self,
        *,
        number: int,
        body: nn.Sequential,
        head: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        task: Task = CLASSIFICATION,
        head_task: Task | None = None,
        sum_shapes: Mapping[str, tuple[int, ...]] | None = None,
        scheduler: LRScheduler | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        average: Average | None = None,
        seed: int = 0,
        compute: ComputeOptions = PLAIN,
        displacement: Displacement | None = None,
    ) -> None:
        self.number = number
        self.body = body
        self.head = head
        self.objective = objective
        self.own_objective = own_module(objective)
        """The objective, if it has parameters or buffers."""
        self.optimizer = optimizer
        self.average = average
        self.task = task
        trained = task if head_task is None else head_task
        self._loss_of = trained.loss
        self._logits_of = trained.logits
        self.sum_shapes = sum_shapes
        self._update = Update(optimizer, scheduler, every=accumulate, average=average, clip=clip)
        self.steps = 0
        """Batches of the run so far; with replicas, not all of them were processed here."""
        self._passes = Passes(
            number=number,
            body=body,
            head=head,
            seed=seed,
            compute=compute,
            displacement=displacement,
        )
        self._sends_back = objective if isinstance(objective, SendsBack) else None
        self._inner = InnerOutputs(body, getattr(objective, "watches", ()))
        self._passes.run_body = getattr(objective, "run_body", leaving_input)
        self._figure_names: tuple[str, ...] = getattr(objective, "figure_names", ())
        self.figure_names = self._figure_names + (() if displacement is None else (FIGURE,))
        """Names of the figures of every batch: the objective's, and the penalty's."""
        self._seed = seed
        self._autocast = compute.autocast_dtype
        self._batch: UnderWay | None = None
        self._early = EarlyStep(optimizer, self._trained()) if compute.step_early else None
        places = {id(p): place for place, p in enumerate(self._trained())}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.order = [places[id(p)] for p in held if id(p) in places]
        """Position in the optimizer of each trained parameter of body, head and objective; recorded now
        because sharded replicas replace them later."""
        disable_inplace(body)
        disable_inplace(head)
        losses = [getattr(each, "loss_function", None) for each in (trained, task)]
        self._loss_modules = [loss for loss in losses if isinstance(loss, nn.Module)]
        """Of the training, and of the task, whose figures are those of batches and evaluations."""
        self.loss_module = losses[0] if isinstance(losses[0], nn.Module) else None
        """The loss of the training, if it is a module."""
        self.unsaved = Unsaved(body, head, self.own_objective, self.loss_module)
        self._train_mode: bool | None = None
        self.frozen_at: int | None = None
        """Number of batches after which the stage was frozen; None while it trains."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Return body, head, and the objective if it has parameters or buffers."""
        own = self.own_objective
        return (self.body, self.head) if own is None else (self.body, self.head, own)

    @property
    def frozen(self) -> bool:
        """Whether the stage has stopped training and only feeds the next one."""
        return self.frozen_at is not None

    @property
    def wants_delta(self) -> bool:
        """Whether the stage can use the output gradient of the stage before."""
        return self.objective.wants_delta and not self.frozen

    def freeze(self) -> None:
        """Stop training permanently: from now on the stage runs as in evaluation.

        With replicas, call it right after an update, so that all stop at the same batch. The optimizer's
        memory is freed. The output gradient is still available: the next stage may reconcile with it.
        """
        self.frozen_at = self.updated_at
        for parameter in self._parameters():
            parameter.requires_grad_(False)
        self._passes.run_body = leaving_input
        self._update.forget()
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Let go of what ``--cuda-graphs`` has captured; it is captured anew if it is needed again."""
        self._passes.forget_graphs()

    def step(
        self,
        x: Tensor,
        target: Tensor,
        delta: Tensor | None = None,
        *,
        beside: Sequence[Tensor] = (),
        relayed: Mapping[str, Tensor] = NONE,
    ) -> StepResult:
        """Train on one batch.

        Args:
            x: input ``[B, ...]``.
            target: labels ``[B]`` (or ``[B, T]``), int64.
            delta: output gradient of the stage before, with x's shape, if the batch is to be
                reconciled; only if :attr:`wants_delta`.
            beside: what the input has beside its main tensor.
            relayed: by name, what the objective has relayed to this stage.
        """
        output = self.forward(x, beside, reconciled=delta is not None, relayed=relayed)
        beside = self.beside
        output_gradient = self.output_gradient(target)
        self.reconcile(delta)
        metrics = self.metrics(target)
        self.update()
        return StepResult(
            output=output, beside=beside, output_gradient=output_gradient, metrics=metrics
        )

    @property
    def kept_bytes(self) -> int:
        """Bytes kept for the last batch's backward pass outside autograd, which are counted elsewhere."""
        return self._passes.kept_bytes

    @property
    def beside(self) -> tuple[Tensor, ...]:
        """What the last output has beside the main tensor: skips, masks and positions, detached."""
        return self._passes.beside

    def forward(
        self,
        x: Tensor,
        beside: Sequence[Tensor] = (),
        *,
        reconciled: bool = False,
        relayed: Mapping[str, Tensor] = NONE,
    ) -> Tensor:
        """Run the body and return its detached output, which must not be modified until :meth:`update`.

        What the output has beside its main tensor is in :attr:`beside`.

        Args:
            x: input ``[B, ...]``.
            beside: what the input has beside its main tensor ``[B, ...]``; gets no gradient.
            reconciled: whether :meth:`reconcile` will receive delta.
            relayed: by name, what the objective has relayed to this stage ``[B, ...]``.
        """
        assert not (reconciled and self.frozen), "a frozen stage has nothing to reconcile"
        self._set_train_mode(not self.frozen)
        self._passes.step = self.steps
        with self._inner.noting():
            leaf, out, sent = self._passes.body(
                x,
                beside,
                again=reconciled,
                input_gradient=reconciled or self._gives_back,
            )
        if self._early is not None:
            self._early.begin(on=not reconciled)
        local = LocalPass(
            x=leaf,
            out=out,
            add_gradients_at=self._add_gradients_at,
            relayed=relayed,
            reconciled=reconciled,
            inner=self._inner.found,
            parameters=self._parameters,
            step=self.steps,
            seed=derive_seed(self._seed, "objective", self.number, self.steps),
            mixed=self._autocast is not None,
        )
        self._batch = UnderWay(local=local)
        return sent

    def output_gradient(self, target: Tensor) -> Tensor:
        """Compute the local loss and return its gradient at the output (delta, of the batch mean)."""
        batch = self._under_way()
        batch.target, local = target, batch.local
        x = local.x  # capturing the pass itself would create a reference cycle

        def loss_of(out: Tensor) -> Tensor:
            logits = self._passes.head(out, x)
            now = self._under_way()
            now.logits = self._logits_of(logits).detach()
            mean, now.weight = self._loss_of(logits, target)
            self._update.weigh(now.weight)
            return mean

        local.target, local.head, local.task_loss = target, self.head, loss_of
        local.loss_function = self._loss_of
        self._passes.before_head(again=local.reconciled)
        version = local.out._version
        in_place = StageError(
            "the head changes the stage's output in place, while the output is on its way to "
            "the next stage: use an operation that is not in place",
            stage=self.number,
        )
        try:
            batch.loss, delta = self.objective.head_backward(local)
        except RuntimeError as error:
            # If the objective passes the head a leaf, autograd refuses before anything changes.
            if local.out._version == version and "in-place operation" not in str(error):
                raise
            raise in_place from error
        if local.out._version != version:
            raise in_place
        if self._figure_names:  # now: the objective may run again on other inputs
            batch.figures |= said_figures(self.objective, self._figure_names, stage=self.number)
        if self._passes.displaced is not None:
            batch.figures[FIGURE] = self._passes.displaced
        return self._passes.laid_out(delta)

    @torch.no_grad()
    def local_loss(self, target: Tensor) -> None:
        """Compute only the loss, for :meth:`metrics` of a frozen stage whose delta is not needed."""
        batch = self._under_way()
        batch.logits = self._passes.head(batch.local.out, batch.local.x)
        batch.loss, batch.weight = self._loss_of(batch.logits, target)

    def reconcile(self, delta: Tensor | None) -> None:
        """Complete the gradients of all parameters, using the previous stage's delta if given."""
        batch = self._under_way()
        batch.residual = self.objective.body_backward(batch.local, delta)

    @property
    def _gives_back(self) -> bool:
        """Whether this batch's input gradient is sent back."""
        sends_back = self._sends_back
        return sends_back is not None and sends_back.wants_input_gradient(self.steps)

    def give_back(self) -> Tensor:
        """Return what the objective sends back to the stage before on this batch: ``[B, ...]``, as x."""
        assert self._sends_back is not None
        return self._passes.laid_out(self._sends_back.given_back(self._under_way().local))

    def take_back(self, returned: Tensor) -> None:
        """Complete the gradients with what the next stage sent back: ``[B, ...]``, as the output."""
        assert self._sends_back is not None
        self._sends_back.take_back(self._under_way().local, self._passes.laid_out(returned))

    def metrics(self, target: Tensor) -> StepMetrics:
        """Return the metrics of this batch; call it after :meth:`reconcile`.

        Raises:
            StageError: a user's objective has not run the head.
        """
        return self._under_way().metrics(self.task, target, stage=self.number)

    def begin_average(self, due: int) -> None:
        """Begin the part of :meth:`update` that waits for other replicas, once all gradients are there.

        Args:
            due: as in :meth:`update`.
        """
        self._update.begin_average(self.steps + 1, due)

    def update(self, due: int | None = None) -> None:
        """Step optimizer and schedule if due, then end the batch; at most gradients are kept.

        Args:
            due: batch of the run after which the update is due; None for every ``accumulate`` batches.
        """
        self._update.batch_done(self.steps + 1, due)
        self.steps = self._update.done
        if self._batch is not None and self._batch.figures:
            getattr(self.objective, "figures", {}).clear()  # with what they hold of the batch
        self._batch = None
        self._inner.found = {}
        self._passes.end_batch()

    def finish_average(self) -> None:
        """Wait for what :meth:`begin_average` has begun, if it has."""
        self._update.finish_average()

    def begin_completing(self, steps: int) -> None:
        """Begin the part of :meth:`complete_update` that waits for other replicas; ``steps`` as there."""
        self._update.begin_completing(steps)

    def complete_update(self, steps: int | None = None) -> None:
        """Update with the batches since the last update, at the end of an epoch.

        Args:
            steps: batches of the run so far, including those of replicas; None for :attr:`steps`.
        """
        self.steps = self.steps if steps is None else steps
        self._update.complete(self.steps)

    @property
    def replicas(self) -> Replicas:
        """The replicas of this stage."""
        return self._update.replicas

    def join(self, replicas: Replicas) -> None:
        """Train together with other replicas from now on; they must be bit-identical."""
        self._update.replicas = replicas

    @property
    def updated_at(self) -> int:
        """Batches of the run up to the last update, the point at which all replicas are identical."""
        return self._update.last

    @torch.no_grad()
    def evaluate(self, x: Tensor, beside: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return the output and the head's logits in evaluation mode, without training.

        What the output has beside its main tensor is in :attr:`beside`.
        """
        self._set_train_mode(False)
        return self._passes.evaluate(x, beside)

    def state_dict(self) -> dict[str, Any]:
        """Return body, head, objective, optimizer and step counts; loads with ``weights_only=True``."""
        own = self.own_objective
        return {
            "body": self.body.state_dict(),
            "head": self.head.state_dict(),
            **({} if own is None else {"objective": own.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "frozen_at": self.frozen_at,
        }

    def training_state(self) -> dict[str, Any]:
        """Return what is needed, besides :meth:`state_dict`, to resume exactly."""
        return self._update.state_dict()

    def load_training_state(
        self,
        state: dict[str, Any],
        *,
        steps: int,
        frozen_at: int | None,
        updates: int | None = None,
    ) -> None:
        """Load what :meth:`training_state` returned; body and head are already loaded.

        Args:
            state: the saved state.
            steps: batches that the stage had trained on.
            frozen_at: batches after which the stage was frozen; None if it was not.
            updates: see :meth:`~pipelocal.stage.update.Update.load_state_dict`.
        """
        if frozen_at is not None:
            self.freeze()
        self._update.load_state_dict(state, done=steps, updates=updates)
        self.steps, self.frozen_at = steps, frozen_at

    def replay_body(self, x: Payload, *, full: bool = False) -> Any:
        """Recompute the body's output, with its graph, from this step's seed and buffers; changes neither.

        It is a tensor, or a tuple where the input is one.

        Args:
            x: inputs ``[B, ...]``.
            full: whether to run without autocast.
        """
        self._set_train_mode(not self.frozen)
        self._passes.step = self.steps
        return self._passes.replay_body(x, full=full)

    def replay_loss(
        self, out: Payload, target: Tensor, *, x: Tensor | None = None, full: bool = False
    ) -> Tensor:
        """Recompute the training loss at an output of the body, from this step's seed and buffers.

        Args:
            out: ``[B, ...]``.
            target: labels of its rows.
            x: the input that it was computed from, for heads that see the input.
            full: whether to run without autocast.
        """
        return self._loss_of(self._passes.replay_head(out, x, full=full), target).mean

    def _add_gradients_at(self, x: Tensor, rows: Tensor | None, factor: Tensor) -> None:
        """See :data:`~pipelocal.objective.local.AddGradientsAt`."""
        target = self._under_way().target_of(rows)
        beside = tuple(t if rows is None else t[rows] for t in self._passes.beside_input)
        out, beside_out = unpack(self.replay_body(pack(x, beside), full=True))
        penalty = self._passes.penalty()

        def loss_of(out: Tensor) -> Tensor:
            return self.replay_loss(pack(out, beside_out), target, x=x, full=True)

        now = self._under_way().local
        relayed = now.relayed
        if rows is not None:
            relayed = {name: tensor[rows] for name, tensor in relayed.items()}
        local = replace(now, x=x, out=out, target=target, task_loss=loss_of, relayed=relayed)
        loss = self.objective.loss(local, out)
        loss = factor * (loss if penalty is None else loss + penalty)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules:
            yield from module.parameters()

    def _trained(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self._parameters() if parameter.requires_grad)

    def _under_way(self) -> UnderWay:
        assert self._batch is not None, "forward comes first"
        return self._batch

    def _set_train_mode(self, train: bool) -> None:
        if self._train_mode != train:
            for module in (*self.modules, *self._loss_modules):
                module.train(train)
            self._train_mode = train


def own_module(objective: Objective) -> nn.Module | None:
    """Return the objective as a module if it has parameters or buffers; None otherwise."""
    if not isinstance(objective, nn.Module):
        return None
    held = itertools.chain(objective.parameters(), objective.buffers())
    return objective if any(True for _ in held) else None
