"""Standard streams that are closed, full, or whose reader has left.

Progress that cannot be written is dropped, and training goes on. A result that cannot be written is a
failure. What is said on standard error is said if anybody can hear it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from pipelocal.errors import PipelocalError


def fill_closed_streams() -> None:
    """Put something in the place of standard streams that this process was started without.

    Otherwise the next file or socket that is opened takes the place, and what a library prints goes there.
    Standard output takes nothing, so that a result which is written to it is not lost in silence.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, and those below it are taken.
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  for as long as the process lasts
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def flush_streams() -> None:
    """Write what is still held back; what cannot be written is dropped, without a word at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a stream of a test's, say, has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Write lines to standard error, in one piece: ranks and threads share the terminal."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def tell(line: str) -> None:
    """Say something that the user should know, though nothing ends by it."""
    say(f"pipelocal: {line}")


@contextmanager
def result_wanted() -> Iterator[None]:
    """Within this block a result is written to standard output, and nothing else is done.

    Raises:
        BrokenPipeError: its reader has left, and wants to hear no more.
        PipelocalError: it cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelocalError(
            f"standard output cannot be written ({error.strerror}), and the result with it"
        ) from error


def for_progress(stream: TextIO | None) -> TextIO:
    """A stream that takes what ``stream`` takes, and drops the rest; None takes nothing."""
    return cast(TextIO, _Progress(stream))


class _Progress(io.TextIOBase):
    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def _try(self, call: Callable[[TextIO], object]) -> None:
        if self._stream is not None:
            try:
                call(self._stream)
            except (OSError, ValueError):
                self._stream = None
