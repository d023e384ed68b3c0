"""Handles standard streams that are closed, full, or no longer read.

Progress that cannot be written is dropped, and training goes on. A result that cannot be written is a
failure. Messages on standard error are written if possible.
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
    """Open replacements for standard streams that this process was started without.

    Otherwise the next file or socket opened would take their place, and receive what libraries print.
    The replacement of standard output accepts nothing, so that no result is lost silently.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # This takes the lowest free number, and those below are in use.
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  for as long as the process lasts
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def flush_streams() -> None:
    """Flush the streams; drop what cannot be written, without an error at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a test's stream, for example, has no file number
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Write lines to standard error, in one piece: ranks and threads share the terminal."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def tell(line: str) -> None:
    """Tell the user something that does not end the run."""
    say(f"pipelocal: {line}")


@contextmanager
def result_wanted() -> Iterator[None]:
    """Guard a block that only writes a result to standard output.

    Raises:
        BrokenPipeError: the reader has closed the stream.
        PipelocalError: the result cannot be written.
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
    """Wrap a stream so that failed writes are dropped; for None everything is dropped."""
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

    @property
    def name(self) -> str:
        """The stream's name, such as ``<stdout>``; empty if it has none."""
        return str(getattr(self._stream, "name", ""))

    def _try(self, call: Callable[[TextIO], object]) -> None:
        if self._stream is not None:
            try:
                call(self._stream)
            except (OSError, ValueError):
                self._stream = None
