"""Step times of ways to train one model, which take turns in one process: seconds of each round, as JSON.

Started by ``run.py``::

    python benchmarks/memory/turns.py ROUNDS '{"BP": ["--method", "BP", ...], ...}'
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.memory import trial
from pipelocal.system.strict_json import to_json


def main() -> None:
    """Time all, round after round; what the first round warms up is not counted."""
    rounds, methods = int(sys.argv[1]), json.loads(sys.argv[2])
    trial.set_up()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 1):
        for name, arguments in methods.items():
            options = trial.parse(arguments)
            options.steps = steps_of(options)
            found = trial.seconds(options.method, trial.config_of(options))
            if round_ > 0:
                seconds[name].append(found)
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
    print(to_json(seconds))


def steps_of(options: argparse.Namespace) -> int:
    """Of a timing: of pipelocal two records, of which the first is not counted."""
    return 4 if options.method in trial.PLAIN else 2 * trial.LOG_EVERY[options.objective]


if __name__ == "__main__":
    main()
