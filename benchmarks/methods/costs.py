"""What the stages of each method cost, measured on an idle machine; see ``benchmarks/accuracy/costs.py``.

Kept beside the runs, so that ``run.py --report`` puts it into the tables::

    python benchmarks/methods/costs.py --setups fashion --data-root DIR --keep RUNS
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.accuracy.costs import measure
from benchmarks.methods.setups import SETUPS


def main() -> None:
    """Measure what is missing."""
    measure(SETUPS, document=__doc__)


if __name__ == "__main__":
    common.run_main(main)
