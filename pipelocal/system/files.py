"""Writes files atomically."""

from __future__ import annotations

import os
from pathlib import Path

from pipelocal.errors import Passing


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file, creating its folder if needed; readers see either the old or the new content.

    Raises:
        UserError: the file cannot be written, for example on a full disk.
    """
    # In the same folder, under a unique name that is not longer.
    temporary = path.with_name(f".{os.getpid()}-{path.name[-16:]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> Passing:
    """Make the error for a file that cannot be written."""
    return Passing(
        f"{path} cannot be written ({error.strerror or error}): make room or leave to write there, or "
        f"choose another place"
    )
