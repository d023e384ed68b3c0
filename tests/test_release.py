"""What a release rests on: one version, and archives that hold all that is installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_changelog_begins_with_the_version() -> None:
    (first, *_) = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == PROJECT["project"]["version"].removesuffix(".dev0")


def test_the_version_stands_in_one_place() -> None:
    version = PROJECT["project"]["version"]
    found = [path for path in (ROOT / "pipelocal").rglob("*.py") if version in path.read_text()]
    assert not found


def test_both_archives_hold_the_package_its_types_and_recipes() -> None:
    targets = PROJECT["tool"]["hatch"]["build"]["targets"]
    assert (ROOT / "pipelocal" / "py.typed").exists()
    assert targets["wheel"]["packages"] == ["pipelocal"]
    assert targets["wheel"]["force-include"] == {"launch": "pipelocal/launch"}
    assert {"/pipelocal", "/launch", "/tests", "/docs"} <= set(targets["sdist"]["include"])
