"""``pipelocal report``: what a run's record says, as one HTML file."""

from __future__ import annotations

import re
from pathlib import Path

from pipelocal.config import ReportConfig
from pipelocal.report import sections, traffic
from pipelocal.report.findings import findings
from pipelocal.report.markup import Html, joined, tag
from pipelocal.report.page import page, write_page
from pipelocal.report.record import RunRecord

NAME = "report.html"


def report(config: ReportConfig) -> Path:
    """Write a run's report; return the file.

    Raises:
        UserError: there is no run, or the file cannot be written.
    """
    run = RunRecord(config.run)
    path = run.path / NAME
    write_page(path, report_text(run))
    return path


def report_text(run: RunRecord) -> str:
    """Return the report of a run."""
    said = findings(run)
    told = tag("ul", *(tag("li", _with_options(line)) for line in said), class_="warnings")
    if not said:
        told = tag("p", "Nothing stands out.", class_="soft")
    parts: list[tuple[str, str, Html | None]] = [
        ("figures", "", sections.cards(run)),
        ("noticed", "What stands out", told),
        ("curves", "Curves", sections.curves(run)),
        ("results", "Results", sections.results(run)),
        ("cut", "The cut", sections.cut(run)),
        ("time", "Time", traffic.time_spent(run)),
        ("bytes", "Bytes and memory", traffic.bytes_and_memory(run)),
        ("agreement", "Agreement of stages", sections.agreement(run)),
        ("configuration", "Configuration", sections.configuration(run)),
        ("environment", "Environment", sections.environment(run)),
    ]
    shown = [(name, heading, part) for name, heading, part in parts if part is not None]
    options = run.options
    what = f"{options.get('model')} on {options.get('data')}, {options.get('objective')}"
    state = "finished" if run.summary is not None else "not finished"
    return page(
        str(run.path),
        f"{what}: {len(run.stages)} stage(s) on {run.world_size} rank(s), {state}",
        shown,
        "Written by pipelocal report from the run's own files.",
    )


def _with_options(line: str) -> Html:
    """Return text in which the options are set apart, and are not broken."""
    parts = re.split(r"(--[a-z][a-z-]*)", line)
    return joined(tag("code", part) if part.startswith("--") else part for part in parts)
