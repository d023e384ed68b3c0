"""The timetable of a run: how long it trains, and what happens on which batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelocal.errors import UserError
from pipelocal.pipeline.options import LengthOptions


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """How long to train and when to evaluate.

    The stream, with two epochs of three batches and an evaluation of two after each::

        T T T |  E E #  T T T |  E E #  end    T train, | epoch over, E evaluate, # evaluation over

    and with a marker (*) after every two batches, and after the evaluation::

        T T * T |  E E # *  T * T T |  E E #  end

    With replicas, ``together`` batches form a round, in which all replicas of a stage get equally many
    batches. All batches of a round are treated alike, and rounds start afresh with each epoch.
    """

    epochs: int
    steps_per_epoch: int
    max_steps: int | None
    """Stop after this many training batches, even in the middle of an epoch; None for no limit."""
    evaluate_every: int
    """Epochs between evaluations; the end is always evaluated."""
    reconcile_every: int | None = None
    """Interval, in rounds, at which stages reconcile, starting with the first; None for never."""
    together: int = 1
    """Batches per round: the least number that every stage's replicas can share evenly."""
    update_every: int = 1
    """Batches per update; an epoch's last update takes the remaining batches."""
    epochs_before: int = 0
    """Epochs completed before the number of batches per epoch changed, in a continued run."""
    steps_before: int = 0
    """Training batches in those epochs."""

    @classmethod
    def of(
        cls,
        options: LengthOptions,
        steps_per_epoch: int,
        *,
        reconcile_every: int | None = None,
        together: int = 1,
        whole_rounds: bool = False,
        epochs_before: int = 0,
        steps_before: int = 0,
    ) -> Timetable:
        """Make the timetable of a run.

        Args:
            options: the length of the run.
            steps_per_epoch: batches that the data yields per epoch.
            reconcile_every: see the attribute.
            together: see the attribute.
            whole_rounds: whether replicas stay in step, so that incomplete rounds are left out.
            epochs_before: see the attribute.
            steps_before: see the attribute.

        Raises:
            UserError: there are too few batches for replicas that must stay in step.
        """
        plan = cls(
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            max_steps=options.max_steps,
            evaluate_every=options.evaluate_every,
            reconcile_every=reconcile_every,
            together=together,
            update_every=options.accumulate * together,
            epochs_before=epochs_before,
            steps_before=steps_before,
        )
        return plan.in_whole_rounds() if whole_rounds else plan

    @property
    def total_steps(self) -> int:
        """Total number of training batches."""
        steps = self.steps_before + (self.epochs - self.epochs_before) * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def epochs_begun(self) -> int:
        """Number of epochs with at least one training batch."""
        return self.epoch_of_last(self.total_steps) + 1

    def epoch_of_last(self, done: int) -> int:
        """Return the epoch, from 0, of the last of ``done`` training batches; 0 if there are none."""
        behind = -(-(done - self.steps_before) // self.steps_per_epoch)
        return max(0, self.epochs_before + behind - 1)

    def first_of(self, epoch: int) -> int:
        """Return the number of training batches before an epoch."""
        return self.steps_before + (epoch - self.epochs_before) * self.steps_per_epoch

    def _place(self, done: int) -> tuple[int, int]:
        """Return the epochs since the change, and the batches within the epoch, after ``done`` batches."""
        return divmod(done - self.steps_before, self.steps_per_epoch)

    def in_whole_rounds(self) -> Timetable:
        """Return a timetable without the incomplete round at the end of each epoch.

        Raises:
            UserError: no batch would be left.
        """
        whole = self.steps_per_epoch - self.steps_per_epoch % self.together
        if whole == 0:
            raise UserError(
                f"an epoch of {self.steps_per_epoch} batch(es) is less than the {self.together} that all "
                f"replicas take in step: give a smaller --batch-size, or fewer --replicas"
            )
        plan = replace(self, steps_per_epoch=whole)
        total = plan.total_steps
        steps = total - (total - plan.steps_before) % whole % self.together
        if steps == 0:
            raise UserError(
                f"--max-steps {self.max_steps} is less than the {self.together} batches that all replicas "
                f"take in step: give at least so many"
            )
        return replace(plan, max_steps=steps)

    @property
    def total_updates(self) -> int:
        """Total number of updates; each epoch's last one takes the remaining batches."""
        rest = (self.total_steps - self.steps_before) % self.steps_per_epoch
        return max(1, self.updates_before(self.total_steps) + (rest % self.update_every > 0))

    def updates_before(self, done: int) -> int:
        """Return how many updates are complete after so many batches."""
        whole = -(-self.steps_per_epoch // self.update_every)
        epochs, rest = divmod(done - self.steps_before, self.steps_per_epoch)
        before = -(-self.steps_before // self.update_every)
        return before + epochs * whole + rest // self.update_every

    def update_at(self, done: int) -> int:
        """Return the number of batches after which the batch following ``done`` batches is updated."""
        _, step = self._place(done)
        end = min(step - step % self.update_every + self.update_every, self.steps_per_epoch)
        return min(done - step + end, self.total_steps)

    def reconciles(self, done: int) -> bool:
        """Return whether the stages reconcile in the batch that follows ``done`` batches."""
        if self.reconcile_every is None:
            return False
        epoch, step = self._place(done)
        rounds = epoch * -(-self.steps_per_epoch // self.together) + step // self.together
        return rounds % self.reconcile_every == 0
