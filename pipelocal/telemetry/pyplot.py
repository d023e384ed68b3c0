"""Loads matplotlib if it is installed; plots are only written to files."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.system.paths import check_path


def check_plot(option: str, path: str) -> None:
    """Check before the work that a plot can be made.

    Args:
        option: option that names the file.
        path: path of the file.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written or is not a PNG.
    """
    file = Path(path)
    check_path(option, file)
    if file.suffix != ".png":
        raise UserError(f"{option} {path}: give a file whose name ends in .png")
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{option} {path}: give a file in a folder that exists")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: give another file")
    load_pyplot(option)


def load_pyplot(what: str) -> Any:
    """Load matplotlib's pyplot, for drawing to files only.

    Raises:
        UserError: matplotlib is not installed, and ``what`` needs it.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        if "matplotlib.pyplot" not in sys.modules:  # otherwise a notebook's pictures would vanish
            matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError(
            f"{what} needs matplotlib, which is not installed: pip install 'pipelocal[plot]'"
        ) from error
