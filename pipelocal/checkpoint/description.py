"""The description of a run: ``run.json`` records what the options in ``config.toml`` referred to.

Options are text. What they refer to can change while the text stays the same: the model's code, the data
files, the version of PyTorch. The description is made once, when a run begins, and compared whenever the run
is used again::

    ranks, at the start     options, model and versions with those of rank 0     refused
    going on                options, model, data                                 refused
    evaluate, export, load  model, data                                          told
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import UserError
from pipelocal.models import Chain, source_of
from pipelocal.models.fingerprint import fingerprint
from pipelocal.options import option_name
from pipelocal.references import Source, located
from pipelocal.system.files import write_atomically
from pipelocal.system.strict_json import to_json

FILE = "run.json"
FORMAT = 1
"""Version of the file format."""

PACKAGES = ("pipelocal", "torch", "torchvision")
"""Packages whose versions, besides Python's, affect the bits of a run."""


@dataclass(frozen=True, kw_only=True)
class CodeDescription:
    """Describes the code behind a reference, independent of its location."""

    code: str | None = None
    """Digest of user code; None for pipelocal's own code."""
    file: str | None = None
    """Absolute path of the code's file when the run began."""
    file_from_run: str | None = None
    """Path of the file relative to the run's folder, so that both can be moved together."""

    def located(self, name: str, run: Path) -> str:
        """Return the reference with its file's current path: the original one, or one moved with the run.

        Args:
            name: the reference as given to the run.
            run: the run's folder.
        """
        return located(
            name, run, file=self.file, file_from_run=self.file_from_run, digest=self.code
        )


@dataclass(frozen=True, kw_only=True)
class ModelDescription(CodeDescription):
    """Describes a model, independent of its name."""

    units: str
    """Fingerprint of the names of units and parameters, and of shapes and dtypes."""
    first_weights: str | None = None
    """Fingerprint of the weights of a module given with its weights; None for a recipe."""

    init: str | None = None
    """Fingerprint of the weights of ``--init``; None without it."""

    @classmethod
    def of(cls, name: str, chain: Chain) -> Self:
        """Describe the model called ``name``, from which ``chain`` was made."""
        return cls(units=fingerprint(chain), **_code(source_of(name)))

    def differences(self, now: Self) -> list[str]:
        """List in words the differences from ``now``."""
        found = []
        if self.units != now.units:
            found.append("the names, shapes or dtypes of its parameters")
        elif self.code != now.code:
            found.append("its code")
        if None not in (self.init, now.init) and self.init != now.init:
            found.append("the weights of --init")
        return found


@dataclass(frozen=True, kw_only=True)
class Description:
    """Describes what a run is made of, besides its options."""

    model: ModelDescription
    data: dict[str, Any]
    """See :func:`~pipelocal.data.fingerprint.describe_data`."""
    versions: dict[str, str]
    """Versions of Python and of :data:`PACKAGES`."""
    references: dict[str, CodeDescription] = field(default_factory=dict)
    """Code that options other than the model refer to, by option; see :func:`own_code`."""

    def located(self, options: Mapping[str, Any], run: Path) -> dict[str, str]:
        """Return a run's options that refer to user code, with the files' current paths.

        Args:
            options: the options by name.
            run: the run's folder.
        """
        described = {"model": self.model, **self.references}
        return {option: code.located(options[option], run) for option, code in described.items()}

    @property
    def info(self) -> DataInfo:
        """Return the description of the model's input, known without the data."""
        return DataInfo.from_json(self.data)

    def write(self, run: Path) -> None:
        """Write ``run.json`` to a run's folder."""
        content = {"format": FORMAT, **asdict(self)}
        for code in (content["model"], *content["references"].values()):
            if code["file"] is not None:
                code["file_from_run"] = os.path.relpath(code["file"], run.resolve())
        write_atomically(run / FILE, (to_json(content, indent=2) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read ``run.json`` from a run's folder.

        Raises:
            UserError: there is no description that this version can read.
        """
        path = run / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("another version's format")
            codes = content.pop("references", {})  # missing in earlier versions
            return cls(
                **content | {"model": ModelDescription(**content["model"])},
                references={option: CodeDescription(**code) for option, code in codes.items()},
            )
        except FileNotFoundError:
            reason = f"there is no {FILE}"
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} does not say what the run was made of ({reason}): train it again, or take the version "
            f"of pipelocal that made it"
        )


def own_code(references: Mapping[str, str]) -> dict[str, CodeDescription]:
    """Describe the code that options refer to, by option, except what is recorded elsewhere.

    Recorded elsewhere are the model, and the partitioner by its cut. Missing code is left out.
    """
    found = {
        option: Source.of_name(name)
        for option, name in references.items()
        if option not in ("model", "balance")
    }
    return {option: CodeDescription(**_code(source)) for option, source in found.items() if source}


def _code(source: Source | None) -> dict[str, Any]:
    return {} if source is None else {"code": source.digest, "file": str(source.file)}


def changed_code(
    then: Mapping[str, CodeDescription], now: Mapping[str, CodeDescription]
) -> list[str]:
    """Return the options, as a user writes them, whose code has changed."""
    both = sorted(then.keys() & now.keys())
    return [option_name(option) for option in both if then[option].code != now[option].code]


def versions() -> dict[str, str]:
    """Return the versions of Python and packages; builds for different devices count as equal."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def data_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List in words how two descriptions of data differ; the content only if all else agrees."""
    names = sorted(then.keys() | now.keys())
    found = [
        f"{name.replace('_', ' ')} ({then.get(name)} then, {now.get(name)} now)"
        for name in names
        if name != "fingerprint" and then.get(name) != now.get(name)
    ]
    if not found and then.get("fingerprint") != now.get("fingerprint"):
        found.append("the content of its samples or labels")
    return found
