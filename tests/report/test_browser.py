"""A report in a real browser, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipelocal import cli

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

ALONE = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")


def console(page: Path, folder: Path) -> list[str]:
    """What a browser writes to its console when it shows a page."""
    assert BROWSER is not None
    options = [*ALONE, f"--user-data-dir={folder}", "--dump-dom", page.resolve().as_uri()]
    shown = subprocess.run([BROWSER, *options], capture_output=True, text=True, check=True)
    assert "</html>" in shown.stdout
    return [line for line in shown.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_report_has_no_errors_in_a_browser(made: Path, tmp_path: Path) -> None:
    assert cli.run(["report", str(made)]) == 0
    page = tmp_path / "page.html"
    text = (made / "report.html").read_text()
    page.write_text(text)
    assert console(page, tmp_path / "browser") == []
    # Were a script to get into the page, it would be refused, and the console would say so.
    page.write_text(text.replace("</main>", "<script>alert(1)</script></main>"))
    assert len(console(page, tmp_path / "browser")) == 1
