"""What a run is: ``run.json`` in its folder says what its options, in ``config.toml``, stood for.

Options are text. What they name can change while the text stays: the model's code, the files of the data,
the version of PyTorch. The description is made once, when a run begins, and compared whenever somebody
comes back to it::

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
"""Version of what the file holds."""

PACKAGES = ("pipelocal", "torch", "torchvision")
"""On whose versions the bits of a run depend, beside Python's."""


@dataclass(frozen=True, kw_only=True)
class CodeDescription:
    """What the code is behind a reference, wherever it lies."""

    code: str | None = None
    """Digest of the user's own code; None for what is pipelocal's."""
    file: str | None = None
    """Absolute path of the file that it is in, when the run began."""
    file_from_run: str | None = None
    """The same from the run's folder, so that both can be moved together."""

    def located(self, name: str, run: Path) -> str:
        """The reference, with the path of its file now: where it was, or where the run was moved to.

        Args:
            name: as the run was given it.
            run: the run's folder.
        """
        return located(
            name, run, file=self.file, file_from_run=self.file_from_run, digest=self.code
        )


@dataclass(frozen=True, kw_only=True)
class ModelDescription(CodeDescription):
    """What a model is, whatever its name."""

    units: str
    """Fingerprint of the names of units and parameters, and of shapes and dtypes."""
    first_weights: str | None = None
    """Of a module that was given with its weights, what ranks compare of them; None of a recipe."""

    @classmethod
    def of(cls, name: str, chain: Chain) -> Self:
        """That of the model called ``name``, of which ``chain`` was made."""
        return cls(units=fingerprint(chain), **_code(source_of(name)))

    def differences(self, now: Self) -> list[str]:
        """What of the model is not the same as ``now``, in words."""
        found = []
        if self.units != now.units:
            found.append("the names, shapes or dtypes of its parameters")
        elif self.code != now.code:
            found.append("its code")
        return found


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a run is made of, beside its options."""

    model: ModelDescription
    data: dict[str, Any]
    """See :func:`~pipelocal.data.fingerprint.describe_data`."""
    versions: dict[str, str]
    """Of Python, and of the packages that count."""
    references: dict[str, CodeDescription] = field(default_factory=dict)
    """Of what options beside the model's name by reference, by option; see :func:`own_code`."""

    def located(self, options: Mapping[str, Any], run: Path) -> dict[str, str]:
        """Of a run's options those that name code of the user's own, with the paths of the files now.

        Args:
            options: by name.
            run: the run's folder.
        """
        described = {"model": self.model, **self.references}
        return {option: code.located(options[option], run) for option, code in described.items()}

    @property
    def info(self) -> DataInfo:
        """What the model is fed, known without the data."""
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
        """That of a run's folder.

        Raises:
            UserError: there is none that this version can read.
        """
        path = run / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("another version's format")
            codes = content.pop("references", {})  # which earlier versions did not have
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
    """The code of what options name by reference, by option, but for what has a record of its own.

    That is the model, and the partitioner, whose cut is kept. What is not there has none.
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
    """The options, as a user writes them, whose code is not what it was."""
    both = sorted(then.keys() & now.keys())
    return [option_name(option) for option in both if then[option].code != now[option].code]


def versions() -> dict[str, str]:
    """Versions of what computes here; those of builds for other devices count as one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def data_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two descriptions of data, in words; the content is named where all else agrees."""
    names = sorted(then.keys() | now.keys())
    found = [
        f"{name.replace('_', ' ')} ({then.get(name)} then, {now.get(name)} now)"
        for name in names
        if name != "fingerprint" and then.get(name) != now.get(name)
    ]
    if not found and then.get("fingerprint") != now.get("fingerprint"):
        found.append("the content of its samples or labels")
    return found
