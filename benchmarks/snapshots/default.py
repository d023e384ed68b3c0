"""What the snapshots that a run takes by default cost: the README's first command with them and without.

In pairs, of which every other one begins with the run without::

    python benchmarks/snapshots/default.py --json benchmarks/snapshots/default.json
    python benchmarks/snapshots/default.py --json default.json --ranks 1 --pairs 5

On a machine that does other work too, the processor time says more than the time that passes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common

MOST = 1.03
"""Goal: time with them over time without."""
OFF = ["--keep-snapshots", "0"]


def main() -> None:
    """Measure, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--ranks", type=int, default=4, help="1 for one process without torchrun")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("more", nargs=argparse.REMAINDER, help="further options of train")
    options = parser.parse_args()
    common.check_writable(options.json)
    pairs = []
    for number in range(options.pairs):
        order = [[], OFF] if number % 2 else [OFF, []]
        results = {bool(each): measure(options.ranks, [*options.more, *each]) for each in order}
        pairs.append({"without": results[True], "with": results[False]})
        print(json.dumps(pairs[-1]), flush=True)
    ratios = {
        what: [pair["with"][what] / pair["without"][what] for pair in pairs]
        for what in ("seconds", "processor_seconds")
    }
    targets = [
        common.at_most(f"{what} with snapshots over those without", each, MOST)
        for what, each in ratios.items()
    ]
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "ranks": options.ranks},
        results=pairs,
        targets=targets,
    )


def measure(ranks: int, options: list[str]) -> dict[str, Any]:
    """One run: seconds that passed, those of all processors, and snapshots that were taken."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command += ["pipelocal", "train", "--stages", "4", *options]
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        log = Path(scratch, "log")
        started = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen([*command, "--out", str(out)], stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        if process.returncode:
            raise common.BenchmarkError(f"a run failed: {log.read_text().strip()[-500:]}")
        lines = (out / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
    taken = [r for r in records if r["event"] == "snapshot" and r["stage"] == 1]
    return {
        "seconds": round(seconds, 3),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "snapshots": len(taken),
    }


if __name__ == "__main__":
    common.run_main(main)
