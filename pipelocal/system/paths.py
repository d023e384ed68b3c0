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
    "html": "--html",
    "init": "--init",
    "model": "--model",
    "out": "--out",
    "plot": "--plot",
    "resume": "--resume",
    "run": "RUN",
    "to": "--to",
}
"""Fields that always name a file or a folder, unlike a model or the place to resume. Every
``file.py:thing`` names a file too."""


def with_home(options: Options) -> Options:
    """Expand ``~`` in all paths among a command's options, as a shell does for ``--out ~/run``.

    Shells do not expand it in a TOML file or in ``--out=~/run``.

    Raises:
        UserError: a path is blank, for example because a shell variable is not set.
    """
    changed: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in OPTIONS and isinstance(value, str):
            changed[field.name] = given_path(OPTIONS[field.name], value)
        elif isinstance(value, str) and ".py:" in value:
            changed[field.name] = home_expanded(value)
    return replace(options, **changed)


def given_path(option: str, path: str) -> str:
    """Return the path that an option names, with ``~`` expanded.

    Raises:
        UserError: it is blank.
    """
    if not path.strip():
        raise UserError(f"{option} '{path}' is blank: give a path")
    return home_expanded(path)


def home_expanded(path: str) -> str:
    """Replace a leading ``~`` by the home folder, if there is such a user."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path  # a file with that literal name


def check_path(what: str, path: str | Path, *, holds: str = "") -> None:
    """Check that the file system can have such a path; it need not exist yet.

    Args:
        what: the option that names it.
        path: the path.
        holds: name of a file inside it, if it should be a folder.

    Raises:
        UserError: the name is too long, or leads through a file, a loop of links or a folder that this
            user may not access.
    """
    try:
        (Path(path) / holds).stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be used ({error.strerror or error}): give another path"
        ) from error
