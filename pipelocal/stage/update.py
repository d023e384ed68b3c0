"""Updates a stage's parameters: steps optimizer and schedule after a number of batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pipelocal.stage.ema import Average
from pipelocal.stage.gradient_weights import GradientWeights
from pipelocal.stage.lr_schedule import SCHEDULED, BatchLR, go_to
from pipelocal.stage.replicas import ALONE, Replicas, Wait, Weight


class Update:
    """Steps the optimizer with the mean gradient over all that counts in the batches since the last update.

    With several batches per update, a batch is what is elsewhere called a micro-batch: its activations are
    freed before the next batch, and only the gradients remain.

    Args:
        optimizer: updates the parameters, to whose ``.grad`` the batches add.
        scheduler: learning-rate scheduler; None for a constant rate.
        clip: maximum L2 norm of an update's gradient, over all parameters; None for no limit.
        every: batches per update, summed over the replicas.
        average: moving average of the weights, updated after every update; None for none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        every: int = 1,
        average: Average | None = None,
        clip: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._built = _options_of(optimizer)
        self._scheduler = scheduler
        self._every = every
        self._average = average
        self._clip = clip
        self.replicas: Replicas = ALONE
        self.done = 0
        """Batches of the run so far, processed here or by another replica."""
        self.last = 0
        """Batches of the run up to the last update."""
        self._own = 0
        """Batches processed here since the last update."""
        self._averaging: Wait[Weight] | None = None
        self._averaged = False
        self._frozen = False
        self._weights = GradientWeights()
        self._weighed = False
        """Whether the current batch has been weighed."""

    def weigh(self, weight: Weight) -> None:
        """Say how much of the current batch counts; call it before its gradients are added.

        Args:
            weight: what the batch's loss is a mean over: rows, tokens or pixels; calls after the first do
                nothing.
        """
        if not self._weighed and not self._frozen:
            self._weighed = True
            self._weights.add(weight, self._holding_gradients)

    def begin_average(self, done: int, due: int) -> None:
        """Begin to average the gradients over the replicas, if an update is due.

        Args:
            done: batches of the run up to this one, whose gradients have been added.
            due: batch of the run after which the update is due.
        """
        if not self._frozen and self._comes(done, due):
            self._begin_average(due - self.last)

    def begin_completing(self, done: int) -> None:
        """Begin to average as :meth:`complete` does, so that it only has to wait."""
        if done != self.last and not self._frozen:
            self._begin_average(done - self.last)

    def finish_average(self) -> None:
        """Wait for the averaging that was begun, if one was."""
        if self._averaging is not None:
            wait, self._averaging = self._averaging, None
            self._weights.total = wait()
            self._averaged = True

    def _begin_average(self, batches: int) -> None:
        self._weights.align(self.replicas, batches, self._holding_gradients)
        self._averaging = self.replicas.begin_average(self._weights.total)

    def batch_done(self, done: int, due: int | None = None) -> None:
        """Count one more batch, whose gradients have been added, and update if due.

        Args:
            done: batches of the run up to this one.
            due: batch of the run after which the update is due; None to count batches processed here.
        """
        self.done, self._weighed = done, False
        self._own += 1
        if due is None:
            self.last = done - self._own
            due = self.last + self._every
        if self._comes(done, due):
            self.complete(due)

    def _comes(self, done: int, due: int) -> bool:
        """Return whether this replica's next batch comes after the update."""
        return done + self.replicas.count > due

    def complete(self, done: int) -> None:
        """Update with the batches so far, possibly fewer than usual; do nothing if there are none.

        Args:
            done: batches of the run so far.
        """
        batches, self.done, self._own = done - self.last, done, 0
        if batches == 0:
            self.last = done
            return
        if self._frozen:
            self.last = done
            if self._average is not None:  # which still approaches the frozen weights
                self._average.update()
            return
        if not self._averaged:
            if self._averaging is None:
                self._begin_average(batches)
            self.finish_average()
        self._averaged = False
        share = self._weights.share(self.replicas.count, batches)
        self._weights.reset()
        if isinstance(share, Tensor) or share != 1:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(share)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.replicas.updated()
        if self._scheduler is not None:
            # A schedule per batch advances by all batches of the update.
            for _ in range(batches if isinstance(self._scheduler, BatchLR) else 1):
                self._scheduler.step()
        if self._average is not None:
            self._average.update()
        self.last = done

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer and schedule state, and the gradients accumulated since the last update."""
        return {
            "optimizer": self.replicas.whole(self.optimizer.state_dict()),
            "built": self._built,
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "batches": self.done - self.last,
            "gradients": [parameter.grad for parameter in self._parameters()],
            "weights": self._weights.state_dict(),
        }

    def load_state_dict(
        self, state: dict[str, Any], *, done: int, updates: int | None = None
    ) -> None:
        """Load a :meth:`state_dict` for the same parameters, after ``done`` batches of the run.

        Options that were given anew, such as another learning rate, remain this optimizer's own. All else
        that its groups hold goes on.

        Args:
            state: the saved state.
            done: number of batches.
            updates: if the state is of another run or another cut, the updates after which this one's own
                schedule would be by then; None to go on with the state of the schedule.
        """
        scheduler, mine = self._scheduler, self._built
        self._own = state["batches"]
        self.done, self.last = done, done - self._own
        # Before the state is loaded, as a schedule's steps change what the optimizer's groups hold.
        if updates is not None and scheduler is not None:
            go_to(scheduler, self.last if isinstance(scheduler, BatchLR) else updates)
            mine = _options_of(self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        if updates is not None or scheduler is None or isinstance(scheduler, BatchLR):
            led = scheduler is not None or state["scheduler"] is not None
            then = state.get("built")
            _give_anew(self.optimizer, mine, then, scheduled=updates is not None and led)
        if updates is None and scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        self._weights.load_state_dict(state.get("weights"), batches=self._own)
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def _holding_gradients(self) -> Iterable[Tensor]:
        return self.replicas.holding_gradients(self._parameters())

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forget(self) -> None:
        """Stop updating; discard the batches since the last update and free the optimizer's memory."""
        self._frozen = True
        self.last, self._own = self.done, 0
        self._weights.reset()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()


def _options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what each group of an optimizer holds beside its parameters, copied."""
    return [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _give_anew(
    optimizer: torch.optim.Optimizer,
    now: list[dict[str, Any]],
    then: list[dict[str, Any]] | None,
    *,
    scheduled: bool,
) -> None:
    """Set the options with which an optimizer was built, where they differ from those of the saved one.

    Others may hold progress: some optimizers count their updates in their groups.

    Args:
        optimizer: which has loaded the saved state.
        now: with what it was built, or what its schedule has made of that.
        then: with what the saved one was built; all are set if that is not known, or of other groups.
        scheduled: whether to set in any case what schedules may have changed.
    """
    if then is None or len(then) != len(now):
        then = [{} for _ in now]
    for group, given, before in zip(optimizer.param_groups, now, then, strict=True):
        for name, value in given.items():
            own = scheduled and name in SCHEDULED
            if own or name not in before or not _equal(value, before[name]):
                group[name] = copy.deepcopy(value)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu())
    return a == b
