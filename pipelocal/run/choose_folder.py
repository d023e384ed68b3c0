"""Which folder a run is written to: a new one, or that of a run to go on with."""

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
    """The folder of a new run, which is not made yet, or that of the run to go on with.

    Args:
        spec: the run.
        model: what its model is now.
        earlier: folder of an attempt of this very run that failed; None on the first attempt.

    Raises:
        UserError: there is something already.
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
    """Without ``--out``: this very run, if it began and did not end, or the next free number."""
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
    """Whether a folder holds an unfinished run like this, whose code has not changed."""
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
    """Of a path that :func:`_numbered` gives; 0 of another one."""
    if path.name == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"-(\d+)", path.name)
    return 0 if match is None else int(match[1])


def _short(name: str) -> str:
    """A name as a part of a folder's: of a reference, the file's or the package's."""
    return Path(name.partition(":")[0]).stem if is_reference(name) else name
