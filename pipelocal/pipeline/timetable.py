"""How long a run trains, and what is done to which batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelocal.errors import UserError
from pipelocal.pipeline.options import LengthOptions


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """How long to train and when to evaluate.

    The stream, with two epochs of three batches and an evaluation of two after each::

        T T T |  E E #  T T T |  E E #  end    T train, | epoch over, E evaluate, # evaluation over

    and with a marker (*) behind every two batches, and behind the evaluation::

        T T * T |  E E # *  T * T T |  E E #  end

    With replicas, ``together`` batches are a round: of them every replica of a stage meets as many as the
    others. What is done to a batch is the same within a round, and rounds begin anew with each epoch.
    """

    epochs: int
    steps_per_epoch: int
    max_steps: int | None
    """Stop after this many training batches, also in the middle of an epoch; None for no limit."""
    evaluate_every: int
    """Evaluate after every so many epochs, and always at the end."""
    reconcile_every: int | None = None
    """Let the stages reconcile in every so many rounds, the first included; None for never."""
    together: int = 1
    """Batches of a round: the least number that the replicas of every stage share out evenly."""
    update_every: int = 1
    """Batches of an update; an epoch's last one takes what is left."""
    epochs_before: int = 0
    """Epochs that were over before epochs had so many batches, in a run that began with others."""
    steps_before: int = 0
    """Training batches in them."""

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
        """The plan of a run.

        Args:
            options: its length.
            steps_per_epoch: batches that the data yields in an epoch.
            reconcile_every: as below.
            together: as below.
            whole_rounds: whether replicas keep step, so that the rest of an epoch is left out.
            epochs_before: as below.
            steps_before: as below.

        Raises:
            UserError: replicas that must keep step would have no batch.
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
        """Training batches in all."""
        steps = self.steps_before + (self.epochs - self.epochs_before) * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def epochs_begun(self) -> int:
        """Epochs of which at least one batch is trained on."""
        return self.epoch_of_last(self.total_steps) + 1

    def epoch_of_last(self, done: int) -> int:
        """The epoch, from 0, of the last of so many training batches; 0 of none."""
        behind = -(-(done - self.steps_before) // self.steps_per_epoch)
        return max(0, self.epochs_before + behind - 1)

    def first_of(self, epoch: int) -> int:
        """Training batches before an epoch."""
        return self.steps_before + (epoch - self.epochs_before) * self.steps_per_epoch

    def _place(self, done: int) -> tuple[int, int]:
        """Epochs since the change, and batches within the epoch, before the batch after so many."""
        return divmod(done - self.steps_before, self.steps_per_epoch)

    def in_whole_rounds(self) -> Timetable:
        """Without the rest of each epoch that is no whole round.

        Raises:
            UserError: nothing would be left.
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
        """Updates in all: each epoch's last one takes what is left of it."""
        whole = -(-self.steps_per_epoch // self.update_every)
        epochs, rest = divmod(self.total_steps - self.steps_before, self.steps_per_epoch)
        before = -(-self.steps_before // self.update_every)
        return max(1, before + epochs * whole + -(-rest // self.update_every))

    def update_at(self, done: int) -> int:
        """The training batches after which comes the update of the batch before which there were ``done``."""
        _, step = self._place(done)
        end = min(step - step % self.update_every + self.update_every, self.steps_per_epoch)
        return min(done - step + end, self.total_steps)

    def reconciles(self, done: int) -> bool:
        """Whether the stages reconcile in the batch before which there were ``done``."""
        if self.reconcile_every is None:
            return False
        epoch, step = self._place(done)
        rounds = epoch * -(-self.steps_per_epoch // self.together) + step // self.together
        return rounds % self.reconcile_every == 0
