"""Chooses the folder of a run: a new one, or that of a run to continue."""

from __future__ import annotations

import re
from pathlib import Path

from pipelocal.checkpoint.description import ModelDescription, changed_code, own_code
from pipelocal.checkpoint.run_folder import RunFolder, numbered, unusable
from pipelocal.errors import UserError
from pipelocal.references import is_reference
from pipelocal.run.identity import differences, identity
from pipelocal.run.spec import Spec
from pipelocal.system.paths import check_path


def choose_folder(spec: Spec, model: ModelDescription, *, earlier: str | None = None) -> RunFolder:
    """Return the folder of a new run, not yet created, or the folder of the run to continue.

    Args:
        spec: the run.
        model: the current description of its model.
        earlier: folder of a failed attempt at this same run; None on the first attempt.

    Raises:
        UserError: the folder already holds something else.
    """
    if spec.out is None and earlier is None:
        return _default(spec, model)
    folder = RunFolder(spec.out or earlier or "")
    check_path("--out", folder.path, holds="config.toml")
    if spec.options.resume != "never" and folder.unfinished:
        folder.goes_on = True
        return folder
    try:
        if folder.path.exists() and any(folder.path.iterdir()):
            if folder.finished:
                raise UserError(_how_to_train_more(folder, spec))
            what = "another run" if (folder.path / "config.toml").exists() else "other files"
            raise UserError(
                f"--out {folder.path} already holds {what}: give a folder that is new or empty"
            )
    except OSError as error:
        raise unusable(folder.path, error) from error
    return folder


def _default(spec: Spec, model: ModelDescription) -> RunFolder:
    """Return the folder without ``--out``: that of this run if unfinished, or the next free number."""
    words = spec.text
    name = "-".join(_short(words[each]) for each in ("model", "data", "objective"))
    taken = [path for path in Path("runs").glob(f"{name}*") if _number_of(path, name)]
    if spec.options.resume != "never":
        for path in sorted(taken, key=lambda path: _number_of(path, name), reverse=True):
            folder = RunFolder(path)
            if _is_of(folder, spec, model) and _locked(folder):
                folder.goes_on = True
                return folder
    folder = RunFolder(next(path for path in numbered(name) if not path.exists()))
    folder.numbered = name
    return folder


def _is_of(folder: RunFolder, spec: Spec, model: ModelDescription) -> bool:
    """Return whether a folder holds this same run, unfinished and with unchanged code."""
    if not folder.unfinished:
        return False
    try:
        own, then = folder.options(), folder.description()
    except UserError:
        return False
    now = own_code(spec.references)
    changed = changed_code(then.references, now) or then.model.differences(model)
    if changed and not spec.options.accept_changes:
        return False
    same_start = own.get("resume", spec.defaults["resume"]) == spec.options.resume
    return same_start and not differences(identity(spec, own), spec)


def _locked(folder: RunFolder) -> bool:
    try:
        folder.lock()
    except UserError:
        return False
    return True


def _how_to_train_more(folder: RunFolder, spec: Spec) -> str:
    own = {**spec.defaults, **folder.options()}
    if own["max_steps"] is not None:
        more = f"--max-steps {2 * own['max_steps']}"
    else:
        epochs = spec.options.epochs
        more = f"--epochs {epochs if epochs > own['epochs'] else 2 * own['epochs']}"
    return (
        f"--out {folder.path} holds a run that came to its end: --resume {folder.path} {more} with a new "
        f"--out trains it further; another run wants a folder that is new or empty"
    )


def _number_of(path: Path, name: str) -> int:
    """Return the number in a path made by :func:`_numbered`; 0 for any other path."""
    if path.name == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"-(\d+)", path.name)
    return 0 if match is None else int(match[1])


def _short(name: str) -> str:
    """Shorten a name for use in a folder's name: a reference becomes its file or package name."""
    return Path(name.partition(":")[0]).stem if is_reference(name) else name
