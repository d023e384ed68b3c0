"""The fault drill, each fault once: the run ends, with the bits that it would have had."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.communication import network
from benchmarks.faults import launched, trials
from benchmarks.faults.launched import same_bits
from benchmarks.faults.trials import Fault

LACKING = network.missing()
needs_hosts = [
    pytest.mark.netns,
    pytest.mark.skipif(LACKING is not None, reason=f"this machine lacks {LACKING}"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An undisturbed run; shorter than those of the benchmark."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launched, "WORK", ["20" if word == "40" else word for word in launched.WORK])
        with launched.Launched(folder / "run", log=folder / "log") as run:
            assert run.well(), run.said()
        yield folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        trials.killed,
        trials.hung,
        trials.corrupted,
        pytest.param(trials.cut_shortly, marks=needs_hosts),
        pytest.param(trials.cut_for_long, marks=needs_hosts),
    ],
)
def test_a_run_comes_through(tmp_path: Path, reference: Path, fault: Fault) -> None:
    row = fault(tmp_path / "trial", random.Random(0), 10.0)
    log = (tmp_path / "trial" / "log").read_text()
    assert row["ended"], log
    assert row["left_behind"] == 0
    assert row.get("named", True), log
    assert same_bits(reference, tmp_path / "trial" / "run")
