"""A rank that builds one stage holds no more than that stage. In a fresh process, to measure it."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import gc, json, sys
import torch
from pipelocal.models import build_chain
from pipelocal.partition import by_count

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

def real():
    return sum(
        t.untyped_storage().nbytes() for t in gc.get_objects()
        if isinstance(t, torch.Tensor) and not t.is_meta
    )

late = "torchvision" not in sys.modules
# The import, and the first use of what draws random numbers.
warm = build_chain("resnet18", input_shape=(3, 32, 32), classes=10, seed=0)
warm.shapes()
warm.build(0, 2, seed=0)
del warm
gc.collect()

before, real_before = peak(), real()
chain = build_chain("resnet50", input_shape=(3, 224, 224), classes=10, seed=0)
chain.shapes()
without = real() - real_before
cut = by_count(chain, 4)[2]
body = chain.build(cut.start, cut.stop, seed=0)
sizes = [t.untyped_storage().nbytes() for t in (*body.parameters(), *body.buffers())]
print(json.dumps({
    "late": late, "without": without, "held": real() - real_before, "peak": peak() - before,
    "stage": sum(sizes), "largest": max(sizes),
}))
"""

WHOLE = 94_000_000
"""Bytes of resnet50's parameters with ten classes."""
SLACK = 8 * 2**20
"""Modules as Python objects, and the allocator."""


@pytest.mark.slow
def test_building_one_stage_of_resnet50_takes_that_stage_and_little_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["late"], "torchvision must not be imported before such a model is asked for"
    assert found["without"] == 0, "the uncut model must hold no memory"
    assert found["held"] == found["stage"]
    assert found["peak"] <= found["stage"] + 2 * found["largest"] + SLACK
    assert found["stage"] < WHOLE / 4
