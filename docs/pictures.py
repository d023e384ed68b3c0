"""Draw the README's pictures: the live table of its first run, and figures of the benchmarks.

The table is that of a run, made anew; the figures are those of the benchmarks' result files::

    pip install -e '.[bench]'
    python docs/pictures.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.telemetry.live_table import whole_view
from pipelocal.telemetry.progress import Progress, StageRow

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
OURS, OTHER = "#1f77b4", "#9aa0a6"
MEMORY = {
    "back-propagation": "BP",
    "with checkpointing": "BP, checkpointing",
    "pipelocal, 2 stages": "pipelocal greedy, K = 2",
    "pipelocal, 4 stages": "pipelocal greedy, K = 4",
    "with accumulation": "pipelocal greedy, K = 4, accumulation",
}
"""Rows of the memory benchmark, by what the picture calls them."""
SETTINGS = {
    "2 ranks": "2 ranks, 100 Mbit/s and 50 ms",
    "4 ranks": "4 ranks, 100 Mbit/s and 50 ms",
}
METHODS = ("DDP", "1F1B", "interleaved", "pipelocal")
"""How the names of the time to accuracy's methods begin."""
Bar = tuple[str, float | None, str]
"""A name, a figure, and what is written beside it."""


def main() -> None:
    """Draw both."""
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "against-bp.svg").write_text(against_bp())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "first")
        command = (
            "-m torch.distributed.run --standalone --nproc-per-node 4 -m pipelocal train --stages 4"
        )
        subprocess.run([sys.executable, *command.split(), "--out", str(out)], check=True)
        (PICTURES / "live.svg").write_text(live_table(out))


def live_table(run: Path) -> str:
    """Return the table that a terminal shows at a run's end, as SVG that loads nothing."""
    folder = RunFolder.open(str(run))
    records = folder.records()
    rows = [_row(records, stage) for stage in range(1, 1 + max(r["stage"] for r in records))]
    last = next(r for r in reversed(records) if r["event"] == "evaluate")
    progress = Progress(
        step=last["step"],
        total_steps=last["step"],
        epoch=last["epoch"],
        epochs=last["epoch"],
        phase="eval",
        elapsed_s=folder.summary()["seconds"],
    )
    console = Console(record=True, width=100, file=StringIO(), force_terminal=True)
    console.print(whole_view(rows, progress, width=100))
    svg = console.export_svg(title="pipelocal train --stages 4", unique_id="live")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def _row(records: Sequence[dict[str, Any]], stage: int) -> StageRow:
    own = [record for record in records if record["stage"] == stage]
    begin, train, evaluation = (
        next(record for record in reversed(own) if record["event"] == event)
        for event in ("begin", "train", "evaluate")
    )
    units = begin["units"]
    return StageRow(
        stage=stage,
        rank=begin["rank"],
        units=units[0] if len(units) == 1 else f"{units[0]}..{units[-1]}",
        step=train["step"],
        loss=train["loss"],
        metric=train["accuracy"],
        eval_metric=evaluation["accuracy"],
        samples_per_second=train["samples_per_second"],
        busy_fraction=train["busy_fraction"],
        peak_memory_bytes=train["peak_memory_bytes"],
    )


def against_bp() -> str:
    """Return memory, and time to accuracy over a slow link, beside back-propagation's, as SVG."""
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pipelocal", "font.size": 9}
    figure, panels = plt.subplots(1, 3, figsize=(11, 2.2), layout="constrained")
    _bars(panels[0], "memory of a training step, ResNet-110,\none device, default heads", memory())
    for panel, (name, setting) in zip(panels[1:], SETTINGS.items(), strict=True):
        target, bars = time_to_accuracy(setting)
        title = f"time to {target:.1%}, ResNet-20,\n{name} over 100 Mbit/s and 50 ms"
        _bars(panel, title, bars)
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    plt.close(figure)
    return written.getvalue()


def memory() -> list[Bar]:
    """Return bars of memory over back-propagation's."""
    rows = json.loads((ROOT / "benchmarks/memory/memory.json").read_text())["results"]
    found = {row["method"]: row["memory_over_bp"] for row in rows}
    return [(name, found[method], f"{found[method]:.2f}") for name, method in MEMORY.items()]


def time_to_accuracy(setting: str) -> tuple[float, list[Bar]]:
    """Return the target, and bars of the time to it over DDP's, with each method's fastest form."""
    path = ROOT / "benchmarks/time_to_accuracy/cifar10-resnet20.json"
    rows = [
        row
        for row in json.loads(path.read_text())["results"]
        if row["part"] == "time" and row["setting"] == setting
    ]
    best: dict[str, float | None] = {}
    for name in METHODS:
        own = [row["seconds"] for row in rows if row["method"].startswith(name)]
        best[name] = min((each for each in own if each is not None), default=None)
    of_ddp = best["DDP"]
    assert of_ddp is not None
    bars: list[Bar] = [
        (name, None, "not reached in as many steps")
        if seconds is None
        else (name, seconds / of_ddp, f"{seconds / of_ddp:.2f}")
        for name, seconds in best.items()
    ]
    return rows[0]["accuracy"], bars


def _bars(panel: Any, title: str, bars: Sequence[Bar]) -> None:
    names = [name for name, _, _ in bars]
    ours = [name.startswith(("pipelocal", "with accumulation")) for name in names]
    panel.barh(
        names, [value or 0 for _, value, _ in bars], color=[OURS if o else OTHER for o in ours]
    )
    most = max(value or 0 for _, value, _ in bars)
    for place, (_, value, text) in enumerate(bars):
        panel.text((value or 0) + most / 50, place, text, va="center")
    panel.set(xlim=(0, most * 1.2), title=title, xticks=[])
    panel.title.set_fontsize(9)
    panel.invert_yaxis()
    panel.spines[["top", "right", "bottom"]].set_visible(False)


if __name__ == "__main__":
    main()
