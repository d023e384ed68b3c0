"""What the throughput benchmark makes of its blocks: ratios within a round, and targets by intervals."""

import pytest

from benchmarks.throughput.blocks import ALONE, AT_ONCE, BP, LINEAR, OWN
from benchmarks.throughput.run import OVERHEAD, WORKS, _row, make_targets

ROUNDS = 8


def rows_of(model: str, times: dict[str, float]) -> list[dict[str, object]]:
    """Rows of methods that take so many seconds, on a machine that becomes slower from round to round."""
    (work,) = (work for work in WORKS if work.model == model)
    seconds = {
        name: [each * (1 + round_) for round_ in range(ROUNDS)] for name, each in times.items()
    }
    return [_row(work, name, 3, seconds) for name in seconds]


STAGES = {f"{name}{suffix}": 0.98 for name in (ALONE, AT_ONCE) for suffix in ("", ", linear heads")}


def test_ratios_are_of_a_round_whatever_the_machine_does_meanwhile() -> None:
    times = {OWN: 1.0, LINEAR: 0.5, **STAGES, BP: 1.1, "1F1B, m = 2": 1.4, "1F1B, m = 8": 0.9}
    targets = {each.name: each for each in make_targets(rows_of("resnet20", times), 2)}
    best = targets["resnet20, pipelocal: over the best pipeline, m = 2"]
    assert best.interval == pytest.approx((1.4, 1.4))
    assert best.met
    assert not targets["resnet20, pipelocal: over the best pipeline, m = 8"].met
    assert targets["resnet20, pipelocal, linear heads: over the best pipeline, m = 8"].met
    assert targets["resnet20, pipelocal: efficiency"].value == pytest.approx(0.98)
    assert targets[f"resnet20, pipelocal: over {BP}"].met


def test_the_runtimes_own_cost_is_what_is_beyond_the_slowest_stage() -> None:
    rows = rows_of(OVERHEAD, {OWN: 0.001, LINEAR: 0.0012, **dict.fromkeys(STAGES, 0.0008)})
    targets = {each.name: each for each in make_targets(rows, 2)}
    beyond = targets["mlp, pipelocal: ms a batch beyond the slowest stage"]
    assert beyond.value == pytest.approx(0.2 * (ROUNDS + 1) / 2)
    assert beyond.goal == "<= 0.5"
