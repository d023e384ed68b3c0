"""Locates user code, and tells whether it is still the same code.

A run remembers it by what the code is, not by how its path was spelled: the name of the file and
the thing in it, and a digest of that file and of those beside it that it imports.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

OWN_CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of user code."""

    file: Path
    """Absolute path of the file that holds it."""
    digest: str
    """Digest of that file, and of the files it imports from its folder or the current one."""

    @classmethod
    def of_name(cls, name: str) -> Source | None:
        """Find the source of ``file.py:thing`` or ``package.module:thing``; None if there is no such file."""
        place = name.rpartition(":")[0]
        file = Path(place) if place.endswith(".py") else _file_of_module(place)
        return cls.of_file(file) if file is not None and file.is_file() else None

    @classmethod
    def of_builder(cls, builder: Callable[..., Any]) -> Source | None:
        """Find the source of a function in a registry; None if it is built in."""
        while isinstance(builder, partial):
            builder = builder.func
        try:
            path = inspect.getsourcefile(inspect.unwrap(builder))
        except TypeError:  # such as an object with a __call__ written in C
            return None
        file = None if path is None else Path(path).resolve()
        if file is None or not file.is_file() or file.is_relative_to(OWN_CODE):
            return None
        return cls.of_file(file)

    @classmethod
    def of_file(cls, file: Path) -> Source:
        """Make the source of a file."""
        file = file.resolve()
        return cls(file=file, digest=_digest(file))


def is_reference(name: str) -> bool:
    """Whether it names something in a file or a module, and not an entry of a registry."""
    return ":" in name


def plain_name(name: str) -> str:
    """Return a reference without its file's folder, which does not identify it."""
    place, colon, thing = name.rpartition(":")
    return f"{Path(place).name}{colon}{thing}" if place.endswith(".py") else name


def located(
    name: str, run: Path, *, file: str | None, file_from_run: str | None, digest: str | None
) -> str:
    """Return a reference with its file's current path: the original one, or one moved with the run.

    Args:
        name: as the run was given it.
        run: the run's folder.
        file: absolute path of the file when the run began; None if there was none.
        file_from_run: the same from the run's folder, so that both can be moved together.
        digest: of the code then; of several files that of the same code is taken.
    """
    place, _, thing = name.rpartition(":")
    if file is None or not place:
        return name
    candidates = [place] if place.endswith(".py") else []
    candidates.insert(0, file)
    if file_from_run is not None:
        candidates.insert(0, os.path.normpath(run.resolve() / file_from_run))
    there = [path for path in candidates if Path(path).is_file()]
    same = [path for path in there if Source.of_file(Path(path)).digest == digest]
    found = next(iter([*same, *there]), None)
    if found is None or (not place.endswith(".py") and Source.of_name(name) is not None):
        return name
    return f"{found}:{thing}"


def current_folder_on_path() -> str:
    """The current folder, in which modules are found from now on."""
    here = str(Path.cwd())
    if here not in sys.path:  # as it is under python -m, which the console script is not
        sys.path.insert(0, here)
    return here


def _file_of_module(name: str) -> Path | None:
    current_folder_on_path()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and Path(origin).is_file() else None


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    for name, path in sorted(_imported({"": file}).items()):
        total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _imported(known: dict[str, Path]) -> dict[str, Path]:
    """The file, and those that it and they import from its folder or the current one, by module name."""
    waiting = list(known.items())
    roots = (known[""].parent, Path.cwd())
    looked_for: set[str] = set()
    while waiting:
        package, file = waiting.pop()
        for name in _imports(file.read_bytes(), package) - looked_for:
            looked_for.add(name)
            path = _find(roots, name)
            if path is not None and name not in known:
                known[name] = path
                waiting.append((name if path.name == "__init__.py" else _parent(name), path))
    return known


@cache  # as several files are often looked at for the same code, which may import many others
def _imports(code: bytes, package: str) -> frozenset[str]:
    """Names of the modules that a file's code may import, and of the packages that they are in."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return frozenset()  # which its import will tell
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if node.level and package else []
            base = base[: len(base) - node.level + 1] if node.level > 1 else base
            module = ".".join([*base, *([node.module] if node.module else [])])
            # What is imported from a package may be a module of it.
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for name in filter(None, names):
            parts = name.split(".")
            found.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return frozenset(found)


def _find(roots: Sequence[Path], name: str) -> Path | None:
    for root in roots:
        path = root.joinpath(*name.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
