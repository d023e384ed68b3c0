"""Methods of local learning side by side: the same network, data, seeds, steps and data order for all.

Each training is a ``pipelocal train`` of its own. Every arm first tries the same learning rates, and trains
at the best. Runs are kept, and a study that was stopped goes on::

    python benchmarks/methods/run.py --quick --json methods.json
    python benchmarks/methods/run.py --setups fashion --data-root DIR --keep RUNS --json methods.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.accuracy import tables
from benchmarks.accuracy.run import study
from benchmarks.methods import bytes_back
from benchmarks.methods.setups import SETUPS


def main() -> None:
    """Train what is missing, print, write."""
    study(
        SETUPS,
        default="fashion",
        document=__doc__,
        columns=tables.METHODS,
        plot=bytes_back.plot,
    )


if __name__ == "__main__":
    common.run_main(main)
