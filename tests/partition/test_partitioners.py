"""The registry behind --balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pipelocal import PARTITIONERS, PartitionRequest, cli
from pipelocal.errors import UserError
from pipelocal.models import Chain, build_chain
from pipelocal.partition import by_count, to_text
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.partitioners import Partitioner, partition


@pytest.fixture
def chain() -> Chain:
    return build_chain("resnet20", input_shape=(3, 8, 8), classes=10, seed=0)


@pytest.fixture
def register() -> Iterator[list[str]]:
    """Names that are forgotten after the test."""
    names: list[str] = []
    yield names
    for name in names:
        del PARTITIONERS._entries[name]


def never() -> CostModel:
    raise AssertionError("nobody asked what units cost")


def add(names: list[str], name: str, partitioner: Partitioner) -> None:
    PARTITIONERS.register(name)(partitioner)
    names.append(name)


def test_equal_counts_measure_nothing(chain: Chain) -> None:
    request = PartitionRequest(chain=chain, stages=3, measure=never)
    assert partition(PARTITIONERS.get("count"), request, name="count") == by_count(chain, 3)


def test_costs_are_measured_once(chain: Chain) -> None:
    calls = []

    def measure() -> CostModel:
        calls.append(1)
        return object()  # type: ignore[return-value]

    request = PartitionRequest(chain=chain, stages=3, measure=measure)
    assert request.costs is request.costs
    assert len(calls) == 1


def test_a_users_own_partitioner_cuts(chain: Chain, register: list[str]) -> None:
    add(
        register, "own", lambda request: [1] * (request.stages - 1) + [len(request.chain.units) - 2]
    )
    request = PartitionRequest(chain=chain, stages=3, measure=never)
    assert (
        to_text(chain, partition(PARTITIONERS.get("own"), request, name="own")) == "block1,block2"
    )


@pytest.mark.parametrize(
    "counts", [[5, 5], [5, 5, 5], [10, 0, 0], [5, 6, -1], [4.0, 3.0, 3.0], [], ["4", "3", "3"]]
)
def test_what_is_no_cut_is_refused_in_one_line(
    chain: Chain, register: list[str], counts: Sequence[int]
) -> None:
    add(register, "own", lambda _: counts)
    request = PartitionRequest(chain=chain, stages=3, measure=never)
    with pytest.raises(UserError, match=r"^--balance own says \[.*add up to 10$"):
        partition(PARTITIONERS.get("own"), request, name="own")


def test_an_own_partitioner_is_an_option_of_train_and_plan(
    register: list[str], capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    def wanted(request: PartitionRequest) -> list[int]:
        assert request.costs.seconds(0, 1) > 0
        assert request.memory_limit == 2**30
        assert request.speeds == [1.0, 2.0]
        return [1, 3]

    add(register, "own", wanted)
    options = ["--stages", "2", "--balance", "own", "--memory-limit", "1GiB"]
    options += ["--device-speeds", "1,2", "--objective", "greedy"]
    assert cli.run(["plan", *options, "--repeats", "1"]) == 0
    assert "--cut block1" in capsys.readouterr().out
    run = ["train", *options, "--max-steps", "1", "--plain", "--out", f"{tmp_path}/run"]
    assert cli.run(run) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device-speeds", "1,1,1,1"], "--device-speeds is for --balance time: add it"),
        (["--memory-limit", "1GiB"], "--memory-limit is for --balance time or memory: add it"),
    ],
)
def test_limits_and_speeds_are_not_for_equal_counts(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--plain", *options]) == cli.USER_ERROR
    assert said in capsys.readouterr().err
