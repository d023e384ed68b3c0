"""When a stage's parameters change: optimizer and schedule, after every so many batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from pipelocal.stage.ema import Average
from pipelocal.stage.lr_schedule import BatchLR
from pipelocal.stage.replicas import ALONE, Replicas


class Update:
    """Steps the optimizer with the mean gradient of the batches since the last update.

    With several batches an update, a batch is what others call a micro-batch: its activations are gone
    before the next one comes, and only the gradients stay.

    Args:
        optimizer: over the parameters, whose ``.grad`` the batches add to.
        scheduler: of the learning rate; None for a constant one.
        clip: greatest L2 norm of an update's gradient, over all parameters; None for any.
        every: batches an update, whichever replicas meet them.
        average: of the weights, brought up to date after every update; None for none.
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
        self._scheduler = scheduler
        self._every = every
        self._average = average
        self._clip = clip
        self.replicas: Replicas = ALONE
        self.done = 0
        """Batches of the run that have been met, or passed over as another replica's."""
        self.last = 0
        """Batches of the run before the last update."""
        self._own = 0
        """Batches met here since then."""
        self._averaged = False
        self._frozen = False

    def average_gradients(self, done: int, due: int) -> None:
        """The first part of an update of replicas, if that comes now: it waits for the others.

        Args:
            done: batches of the run up to this one, whose gradients are in.
            due: those after which comes the update.
        """
        if not self._frozen and self._comes(done, due):
            self.replicas.average()
            self._averaged = True

    def batch_done(self, done: int, due: int | None = None) -> None:
        """The gradients of one more batch are in.

        Args:
            done: batches of the run up to this one.
            due: those after which comes the update; None to go by the batches that were met here.
        """
        self.done = done
        self._own += 1
        if due is None:
            self.last = done - self._own
            due = self.last + self._every
        if self._comes(done, due):
            self.complete(due)

    def _comes(self, done: int, due: int) -> bool:
        """Whether the next batch of this replica would be behind the update."""
        return done + self.replicas.count > due

    def complete(self, done: int) -> None:
        """Update with the batches there are, fewer than usual as they may be; if there are any.

        Args:
            done: batches of the run so far.
        """
        batches, self.done, self._own = done - self.last, done, 0
        if batches == 0 or self._frozen:
            self.last = done
            return
        if not self._averaged:
            self.replicas.average()
        self._averaged = False
        share = batches / self.replicas.count
        if share != 1:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(share)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.replicas.updated()
        if self._scheduler is not None:
            # A schedule of batches is one of those, whichever update they belong to.
            for _ in range(batches if isinstance(self._scheduler, BatchLR) else 1):
                self._scheduler.step()
        if self._average is not None:
            self._average.update()
        self.last = done

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, schedule, and what was gathered since the last update."""
        return {
            "optimizer": self.replicas.whole(self.optimizer.state_dict()),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "batches": self.done - self.last,
            "gradients": [parameter.grad for parameter in self._parameters()],
        }

    def load_state_dict(self, state: dict[str, Any], *, done: int) -> None:
        """The inverse of :meth:`state_dict`, for the same parameters and ``done`` batches of the run.

        Learning rate and other options stay this optimizer's own, should they differ; but those that a
        schedule of the user's own has set are taken over with it.
        """
        own = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is None or isinstance(self._scheduler, BatchLR):
            for group, options in zip(self.optimizer.param_groups, own, strict=True):
                group.update(options)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._own = state["batches"]
        self.done, self.last = done, done - self._own
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forget(self) -> None:
        """Update no more; drop the batches since the last update, and the optimizer's memory."""
        self._frozen = True
        self.last, self._own = self.done, 0
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
