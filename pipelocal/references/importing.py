"""Imports what a user names in a file or a module, as Python itself would."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeVar

from pipelocal.errors import PipelocalError, UserError
from pipelocal.references.source import current_folder_on_path, is_reference
from pipelocal.seeding import seeded, undone
from pipelocal.system.names import did_you_mean

T = TypeVar("T")

_PREFIX = "pipelocal_user_"
_PIPELOCAL = Path(__file__).parents[1]
_FORMS = "package.module:function or file.py:function"
_folders: set[str] = set()
"""Folders of imported files; modules in them count as user code too."""
_files: dict[Path, tuple[bytes, ModuleType]] = {}
"""Imported files, with their text at that time and the resulting module."""


def imported(name: str, what: str) -> object:
    """Import what a user names ``package.module:thing`` or ``file.py:thing``.

    A file can import what lies beside it, and everything can what lies in the current folder. It runs once,
    for all that is named in it, and again only when its text has changed. It leaves torch's defaults and
    all generators as they were, and draws the same in every process.

    Args:
        name: the reference.
        what: the noun for errors, such as ``"model"``.

    Raises:
        UserError: there is no such file, module or thing, or it fails while it is imported; then with
            the file and line that failed.
    """
    named = f"{what} '{name}'"
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"{named} names nothing: give {_FORMS}")
    _folders.add(current_folder_on_path())
    with undone(), seeded(0, "import"):
        module = _from_file(named, Path(place)) if place.endswith(".py") else _module(named, place)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, vars(module))
        raise UserError(f"{named} cannot be imported: there is no '{attribute}' in {place}{hint}")
    thing: object = getattr(module, attribute)
    return thing


@contextmanager
def users_code(what: str, name: str) -> Iterator[None]:
    """Call in a block what a reference stands for: what it sets for all of torch is undone behind it.

    Nothing is done for a name that is no reference.

    Args:
        what: the noun for errors, such as ``"model"``.
        name: the reference.

    Raises:
        UserError: the code fails; says what failed, and where.
    """
    if not is_reference(name):
        yield
        return
    try:
        with undone():
            yield
    except UserError as error:
        raise UserError(f"{what} '{name}': {error}") from error
    except Exception as error:
        raise UserError(f"{what} '{name}': {told(error)}") from error


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Call what a user gave in a block.

    Args:
        what: it is, such as ``"optimizer"``.

    Raises:
        UserError: it fails; says how, and where.
    """
    try:
        yield
    except PipelocalError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {told(error)}") from error


def returned(thing: object, kind: type[T]) -> T:
    """Return the result of user code, if it is of the expected kind.

    Raises:
        UserError: it is of another kind.
    """
    if isinstance(thing, kind):
        return thing
    raise UserError(f"returned {type(thing).__name__}: return {kind.__name__}")


def told(error: BaseException) -> str:
    """Describe what failed in user code, and where."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {error}{where(error)}"


def where(error: BaseException) -> str:
    """The innermost place that is the user's, as words behind an error; nothing if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if _is_theirs(Path(frame.filename))]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""


def _is_theirs(file: Path) -> bool:
    """Whether a file lies below their folders, and is neither ours nor installed there."""
    if file.is_relative_to(_PIPELOCAL) or "site-packages" in file.parts:
        return False
    return any(file.is_relative_to(folder) for folder in _folders)


def _module(named: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # Not the module that was asked for, nor one that it lies in: it lacks something itself.
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _failed(named, error) from error
        raise UserError(
            f"{named} cannot be imported: there is no module '{error.name}': give {_FORMS}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(named, error) from error


def _from_file(named: str, path: Path) -> ModuleType:
    try:
        text = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UserError(f"{named} cannot be imported: {error.strerror or error}") from error
    if text is None:
        raise UserError(
            f"{named} cannot be imported: there is no Python file at {path}: give {_FORMS}"
        )
    path = path.resolve()
    main = sys.modules["__main__"]
    if Path(getattr(main, "__file__", None) or "").resolve() == path:
        return main  # a second import would do, and register, everything again
    _look_first_in(path.parent)
    if path in _files and _files[path][0] == text:
        return _files[path][1]
    name = _free_name(path)
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "likewise"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the types of their fields there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise _failed(named, error) from error
    _files[path] = text, module
    return module


class _FromSource(SourceFileLoader):
    """Compile a file each time it is imported.

    Python's cached bytecode is taken for any file of the same size and second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _failed(named: str, error: BaseException) -> UserError:
    if isinstance(error, UserError):
        return UserError(f"{named}: {error}")
    return UserError(f"{named} cannot be imported: {told(error)}")


def _free_name(path: Path) -> str:
    """Return a module name that no other file has."""
    name, number = _PREFIX + path.stem, 1
    while name in sys.modules and sys.modules[name].__file__ != str(path):
        number += 1
        name = f"{_PREFIX}{path.stem}_{number}"
    return name


def _look_first_in(folder: Path) -> None:
    """Let modules of a folder be found first, also those of whose name another folder has one."""
    own = str(folder)
    if own in sys.path:
        sys.path.remove(own)
    sys.path.insert(0, own)
    # A copy is made at one go; a list of the items is not, and other threads import.
    for name, module in sys.modules.copy().items():
        file = Path(getattr(module, "__file__", None) or "")
        if "." in name or name == "__main__" or name.startswith("pipelocal"):
            continue
        place = file.parent.parent if file.name == "__init__.py" else file.parent
        if str(place) in _folders - {own} and _lies_in(folder, name):
            _forget(name)
    _folders.add(own)


def _lies_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _forget(name: str) -> None:
    for each in [key for key in list(sys.modules) if key == name or key.startswith(f"{name}.")]:
        del sys.modules[each]
