"""The rooms of the house lie in layers: what is below knows nothing of what is above.

docs/how-it-works.md shows them in this order, with what each is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pipelocal"

LAYERS = (
    *("errors", "options", "seeding", "system", "references", "registry"),
    *("ranks", "loggers", "telemetry", "transport"),
    *("models", "data", "tasks", "heads", "objective", "objectives", "partition"),
    *("stage", "closed_form", "forward_gradient", "replicas"),
    *("checkpoint", "pipeline", "run", "api"),
    *("config", "results", "plan", "report", "doctor"),
    *("cli", "public", "__init__", "__main__"),
)
"""Packages, and modules directly in ``pipelocal``, from the ground floor up."""

MOST_LOOSE_FILES = 10


def test_every_room_has_its_layer() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or _is_room(path)}
    assert rooms == set(LAYERS)


def test_no_import_goes_up() -> None:
    up = [
        f"{importer} -> {imported}"
        for importer, imported in _imports()
        if LAYERS.index(_room(imported)) > LAYERS.index(_room(importer))
    ]
    assert not up, "imports from a lower layer to a higher one"


def test_no_file_imports_itself_in_a_circle() -> None:
    """Files within a room as well: so each can be read after those that it names."""
    imports: dict[str, set[str]] = {}
    for importer, imported in _imports():
        imports.setdefault(importer, set()).add(imported)
    while leaves := {name for name in imports if not imports[name] & imports.keys() - {name}}:
        imports = {name: names for name, names in imports.items() if name not in leaves}
    assert not imports, "files that import each other"


def test_few_files_lie_outside_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_LOOSE_FILES


def test_the_documentation_shows_the_layers() -> None:
    text = (PACKAGE.parent / "docs" / "how-it-works.md").read_text()
    places = [text.find(f"`{layer}`") for layer in LAYERS if not layer.startswith("__")]
    assert -1 not in places
    assert places == sorted(places), "the order of the layers"


def _is_room(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.py"))


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _modules() -> dict[str, Path]:
    return {
        ".".join(("pipelocal", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def _imports() -> Iterator[tuple[str, str]]:
    """Pairs of modules, the first of which imports the second somewhere."""
    modules = _modules()
    for importer, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                assert node.level == 0, f"{importer}: write imports in full"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else node.module for name in whole]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] == "pipelocal":
                    assert name in modules, f"{importer} imports {name}"
                    yield importer, name
