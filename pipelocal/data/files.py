"""Reading data files so that whatever is wrong with one becomes a single line that names it."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelocal.errors import DataError

Bytes = NDArray[np.uint8]


def require_root(root: Path | None, *, name: str, layout: str) -> Path:
    """The folder given with ``--data-root``.

    Args:
        root: what the user gave, or None.
        name: the data set, for the message.
        layout: the files that are wanted, said with ``DIR`` for the folder.

    Raises:
        DataError: there is none, or it is no folder.
    """
    if root is None:
        raise DataError(
            f"data set '{name}' is read from files and nothing is downloaded: "
            f"give --data-root DIR with {layout}"
        )
    if not root.is_dir():
        raise DataError(
            f"--data-root {root} is no folder: give --data-root DIR with {layout} "
            f"for data set '{name}'"
        )
    return root


def missing_file(path: Path, *, name: str, layout: str) -> DataError:
    """The error for a file that a data set lacks."""
    return DataError(f"data set '{name}': {path} is missing: give --data-root DIR with {layout}")


def corrupt_file(path: Path, *, name: str, reason: str) -> DataError:
    """The error for a file that is there but cannot be used."""
    reason = " ".join(reason.split())
    return DataError(f"data set '{name}': {path} is truncated or corrupt ({reason}): get it anew")


def read_file(path: Path, *, name: str) -> bytes:
    """The content of ``path``, unpacked if it ends in ``.gz``.

    Raises:
        DataError: it ends in ``.gz`` but is no whole gzip file.
        OSError: it cannot be read; ``load_dataset`` makes a DataError of it.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise corrupt_file(path, name=name, reason=f"gzip: {error}") from error


def check_labels(labels: Bytes, *, classes: int, path: Path, name: str) -> None:
    """Check that all labels of a file are below ``classes``.

    Raises:
        DataError: one is not; the text names the file.
    """
    highest = int(labels.max(initial=0))
    if highest >= classes:
        reason = f"label {highest} where {classes} classes allow 0 to {classes - 1}"
        raise corrupt_file(path, name=name, reason=reason)
