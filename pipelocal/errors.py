"""The errors that a user meets: each is one line that says what is wrong and how to mend it."""

import signal


class PipelocalError(Exception):
    """Base of every error that pipelocal raises on purpose."""


class UserError(PipelocalError, ValueError):
    """Input that cannot be used. The text says what was given, what is wanted and how to mend it."""


class Passing(UserError):
    """What may pass by itself, so that another attempt may do; other input is refused again."""


class NotMet(Passing):
    """Ranks did not find each other in time."""


class NotTwiceDifferentiable(UserError):
    """A model that exact reconciliation cannot train, because it differentiates twice."""


class DataError(UserError):
    """A data set that is missing, incomplete or corrupt."""


class StageError(PipelocalError, RuntimeError):
    """A stage could not go on.

    Args:
        reason: one line, without the name of the stage.
        stage: number of the stage, from 1.
        batch: number of the training batch, from 1 as in metrics; None outside the stream.
        test: whether it is a batch of an evaluation instead, of which its number is then.
        symptom: True if the cause most likely lies elsewhere (a lost connection, an input that was
            already bad); a symptom gives way to the cause when another rank reports one.
    """

    def __init__(
        self,
        reason: str,
        *,
        stage: int,
        batch: int | None = None,
        test: bool = False,
        symptom: bool = False,
    ) -> None:
        self.reason = reason
        self.stage = stage
        self.batch = batch
        self.test = test
        self.symptom = symptom
        super().__init__(reason)

    def __str__(self) -> str:
        where = f"stage {self.stage}"
        if self.batch is not None:
            where += f", {'test batch' if self.test else 'batch'} {self.batch}"
        return f"{where}: {self.reason}"


STALLED = "it hangs or is too slow (--timeout sets the patience)"
"""In the account of a stall; then all ranks are asked who waits for whom, and tell what they did last."""


class Terminated(BaseException):
    """This process was asked to end by a signal; like KeyboardInterrupt no error of the program's.

    Args:
        reason: one line.
        number: of the signal.
    """

    def __init__(self, reason: str, number: int = signal.SIGTERM) -> None:
        self.number = number
        super().__init__(reason)


class Interrupted(PipelocalError):
    """Another rank failed; the text is that rank's own account."""


class Refused(Interrupted):
    """Another rank was given what cannot be used, and would be again in another attempt."""
