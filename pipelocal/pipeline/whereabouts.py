"""Where in the stream a stage is, so that its errors name the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelocal.data.loading import is_worker_failure, worker_failed
from pipelocal.errors import PipelocalError, StageError
from pipelocal.references import where
from pipelocal.transport.header import Header, Kind


class Whereabouts:
    """The event that a stage is at.

    Args:
        stage: number of the stage.
    """

    def __init__(self, stage: int) -> None:
        self.number = -1
        """Of the event, as counted along the stream from 0; all that is sent has one."""
        self.batch = 1
        """Number of the training batch, or in an evaluation of the test batch, from 1; between batches, of
        the training batch before."""
        self._test = False
        self._marker = -1
        """Number of the last event that was no batch."""
        self._stage = stage

    def expect(self, trained: int) -> None:
        """Wait for the next event, until it comes the next batch of the same kind.

        Args:
            trained: training batches of the run so far.
        """
        self.number += 1
        self.batch = self.batch + 1 if self._test else trained + 1

    def meet(self, header: Header) -> None:
        """Be at the event that has come."""
        self.number, self._test = header.number, header.kind == Kind.EVALUATE
        if self._test:
            self.batch = header.number - self._marker  # test batches follow one another
        elif header.kind.trains:
            self.batch = header.step + 1
        else:
            self.batch, self._marker = header.step, header.number

    def named(self, error: StageError) -> StageError:
        """Return an error of this stage with the batch at which it came, if it does not say so itself."""
        known = error.batch is not None
        return StageError(
            error.reason,
            stage=self._stage,
            batch=error.batch if known else self.batch,
            test=error.test if known else self._test,
            symptom=error.symptom,
        )

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """Turn what fails in a block into an error that names stage and batch.

        Raises:
            StageError: the block failed, other than by an error of pipelocal's own, which is raised as it is.
        """
        try:
            yield
        except StageError as error:
            raise self.named(error) from error
        except PipelocalError:
            raise
        except (Exception, SystemExit) as error:
            if is_worker_failure(error):  # torch raises it wherever this thread is
                raise worker_failed(error) from None
            said = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
            reason = "; ".join(text.splitlines()[0] for text in said if text) + where(error)
            # contextlib would prefer a StopIteration; and a name for the cause would be a circle, which
            # keeps the run and its folder's lock.
            raise self.named(StageError(reason, stage=self._stage)) from (
                None if isinstance(error, StopIteration) else error
            )
