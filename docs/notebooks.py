"""The tutorials: notebooks whose outputs are stored, as pages of the site, and executed anew.

``python docs/notebooks.py [NAME ...]`` executes all of them, or some, each in an empty folder, and writes
what came out into their files. It needs ``pip install -e '.[notebooks,plot]'``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

COLOUR = re.compile(r"\x1b\[[\d;]*m")
TUTORIALS = Path(__file__).parent / "tutorials"


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return a notebook's cells."""
    found: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return found


def as_markdown(notebook: Path) -> str:
    """Return a notebook as a page: texts, code, and what was stored of its outputs."""
    parts = []
    for cell in cells(notebook):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(to_pages(source))
        else:
            parts += [f"```python\n{source}\n```", *_outputs(cell)]
    return "\n\n".join(parts) + "\n"


def to_pages(text: str) -> str:
    """Let links to notebooks point to the pages that are made of them."""
    return re.sub(r"\.ipynb(#[^)]*)?\)", r".md\1)", text)


def _outputs(cell: dict[str, Any]) -> list[str]:
    """Return what a cell has shown: texts in one block, and pictures."""
    texts, pictures = [], []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            png = "".join(data["image/png"]).strip()
            pictures.append(f"![What the code draws](data:image/png;base64,{png})")
        else:
            shown = "".join(output.get("text", data.get("text/plain", "")))
            lines = COLOUR.sub("", shown).strip("\n").splitlines()
            texts.append("\n".join(line.rstrip() for line in lines))
    text = "\n".join(filter(None, texts))
    return [*([f"```text\n{text}\n```"] if text else []), *pictures]


def main(names: list[str]) -> None:
    """Execute tutorials, by default all, and store their outputs."""
    import nbformat
    from nbclient import NotebookClient

    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as empty:
            NotebookClient(notebook, resources={"metadata": {"path": empty}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which would be new every time
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main(sys.argv[1:])
