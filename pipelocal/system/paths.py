"""Files and folders that a user names."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelocal.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

OPTIONS = {
    "config": "--config",
    "data_root": "--data-root",
    "model": "--model",
    "out": "--out",
    "plot": "--plot",
    "resume": "--resume",
    "run": "RUN",
    "to": "--to",
}
"""What names a file or a folder, by its field; a model and where to resume need not. So does every
``file.py:thing``."""


def with_home(options: Options) -> Options:
    """The options of a command with ``~`` put right in all paths, as a shell does for ``--out ~/run``.

    Neither a TOML file nor ``--out=~/run`` meets a shell that does.

    Raises:
        UserError: a path is blank, such as that of a shell's variable that is not set.
    """
    changed: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in OPTIONS and isinstance(value, str):
            if not value.strip():
                raise UserError(f"{OPTIONS[field.name]} '{value}' is blank: give a path")
            changed[field.name] = home_expanded(value)
        elif isinstance(value, str) and ".py:" in value:
            changed[field.name] = home_expanded(value)
    return replace(options, **changed)


def home_expanded(path: str) -> str:
    """The path with the home folder for a ``~`` at its beginning, if there is such a user."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path  # a file that is really called so


def check_path(what: str, path: str | Path, *, holds: str = "") -> None:
    """Find out that the file system cannot have such a path; what is not there yet may come.

    Args:
        what: the option that names it.
        path: the path.
        holds: name of a file that lies in it, if it is to be a folder.

    Raises:
        UserError: the name is too long, or leads through a file, a loop of links or a folder that is
            closed to this user.
    """
    try:
        (Path(path) / holds).stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be used ({error.strerror or error}): give another path"
        ) from error
