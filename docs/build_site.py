"""Build the site: pages stay where they are read in the repository, and links work in both places.

The pages of the repository, and the files that they link to, are copied to ``build/pages`` in the same
folders, notebooks as pages (`notebooks`), from where MkDocs builds ``build/site``; a warning is an error::

    pip install -e '.[docs]'
    python docs/build_site.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from notebooks import as_markdown, to_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
FOLDERS = ("docs", "benchmarks", "launch", "tests")
SHOWN = {".md", ".png", ".svg", ".py", ".sh", ".yaml", ".json", ".sbatch"}


def gather() -> None:
    """Copy pages, pictures and the files that pages link to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for page in (*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "CITATION.cff"):
        shutil.copy(page, PAGES / page.name)
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*"):
            target = PAGES / file.relative_to(ROOT)
            if file.suffix in SHOWN and file.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
            elif file.suffix == ".ipynb":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.with_suffix(".md").write_text(as_markdown(file))
    for page in PAGES.rglob("*.md"):
        page.write_text(to_pages(page.read_text()))


def main() -> None:
    """Gather and build; the exit code is that of MkDocs."""
    gather()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
