"""Over a long link a run with the window ``auto`` keeps as many batches in flight as hide it."""

from statistics import median

import pytest

from benchmarks.communication import network, over_link
from benchmarks.communication.network import Shape, two_hosts
from pipelocal.config import TrainConfig
from tests.test_transparency import MODELS

LACKING = network.missing()
pytestmark = [
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(LACKING is not None, reason=f"this machine lacks {LACKING}"),
]
STEPS, RECORD = 240, 24
LAST = 4
"""Records at the end: by then TCP and the window have grown."""


def test_a_long_link_costs_a_twentieth_at_most() -> None:
    """50 ms one way and 1 Gbit/s: at any time the slower of two stages works, as if there were no link.

    Waits are counted, and not what a busy machine takes from a step. With a window of 2, half the time is
    lost where a step takes little more than the 30 ms that the second stage sleeps.
    """
    config = TrainConfig(
        model=f"{MODELS}:far",
        cut="1,1",
        objective="greedy",
        batch_size=4,  # 256 KiB
        lr=1e-5,
        max_steps=STEPS,
        log_every=RECORD,
    )
    assert config.window == "auto"
    with two_hosts(Shape(bits_per_s=1e9, one_way_s=0.05)) as hosts:
        _, records = over_link.train(hosts, config)
    shares: dict[int, list[float]] = {}
    for record in records:
        if record["event"] == "train":
            shares.setdefault(record["step"], []).append(record["busy_fraction"])
    last = [max(shares[STEPS - number * RECORD]) for number in range(LAST)]
    assert median(last) >= 0.95, shares
