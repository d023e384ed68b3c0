"""The control plane: facts, records and failures."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelocal.errors import Interrupted, StageError, UserError
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from tests.launching import PATIENCE_S, start

Planes = Callable[[int], list[ControlPlane]]


@pytest.fixture
def planes(tmp_path: Path) -> Iterator[Planes]:
    """Makes as many ranks, all in this process, each with its own connection to one store."""
    made: list[ControlPlane] = []

    def make(size: int) -> list[ControlPlane]:
        for rank in range(size):
            store = dist.FileStore(str(tmp_path / "store"), size)
            world = World(rank=rank, size=size, local_rank=rank, store=store, lasting=store)
            made.append(ControlPlane(world))
        return made

    yield make
    for plane in made:  # one that has heard of a failure and goes on would end this process
        plane.stop_watching()


def test_facts_and_records(planes: Planes) -> None:
    zero, one = planes(2)
    threading.Timer(0.2, lambda: one.put("fact", {"a": [1, None, "x"]})).start()
    assert zero.wait_for("fact", timeout_s=PATIENCE_S) == {"a": [1, None, "x"]}
    for number in range(3):
        one.post({"number": number})
    zero.post({"number": 9})
    assert zero.take_records() == [{"number": n} for n in (9, 0, 1, 2)]
    assert zero.take_records() == []
    one.post({"number": 3})
    assert zero.take_records() == [{"number": 3}]


def test_waiting_in_vain_says_for_what(planes: Planes) -> None:
    (zero,) = planes(1)
    with pytest.raises(UserError, match=r"waited 0.1 s for another rank to say 'nothing'"):
        zero.wait_for("nothing", timeout_s=0.1)


def test_a_failure_interrupts_who_waits(planes: Planes) -> None:
    zero, one = planes(2)
    error = StageError("it broke", stage=2, batch=7)
    threading.Timer(0.2, lambda: one.fail(error)).start()
    with pytest.raises(Interrupted, match=r"^rank 1, stage 2, batch 7: it broke$"):
        zero.wait_for("nothing", timeout_s=PATIENCE_S)


def test_the_first_failure_is_everyones_account(planes: Planes) -> None:
    zero, one = planes(2)
    first, own = zero.fail(StageError("first", stage=1, batch=3))
    assert own
    assert first == "rank 0, stage 1, batch 3: first"
    assert one.fail(StageError("second", stage=2, batch=3)) == (first, False)
    assert one.failure() == first


def test_a_symptom_gives_way_to_a_cause_that_comes_later(planes: Planes) -> None:
    zero, one = planes(2)
    cause = StageError("the cause", stage=2, batch=3)
    threading.Timer(0.3, lambda: one.fail(cause)).start()
    symptom = StageError("lost the connection", stage=1, batch=4, symptom=True)
    assert zero.fail(symptom, grace_s=PATIENCE_S) == ("rank 1, stage 2, batch 3: the cause", False)


def test_a_symptom_without_a_cause_counts_in_the_end(planes: Planes) -> None:
    zero, _ = planes(2)
    symptom = StageError("lost the connection", stage=1, batch=4, symptom=True)
    account = "rank 0, stage 1, batch 4: lost the connection"
    assert zero.fail(symptom, grace_s=0.1) == (account, True)


def test_all_leave_together(planes: Planes) -> None:
    zero, one = planes(2)
    left: list[int] = []

    def leave(plane: ControlPlane) -> None:
        plane.leave(timeout_s=PATIENCE_S)
        left.append(plane.world.rank)

    threads = [threading.Thread(target=leave, args=(plane,)) for plane in (one, zero)]
    threads[0].start()
    time.sleep(0.2)
    assert left == [], "rank 1 waits for rank 0, which may keep the store"
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(left) == [0, 1]


def test_who_cannot_leave_is_ended_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank whose main thread waits deep inside a library never looks at check()."""
    monkeypatch.setattr("pipelocal.ranks.control.LAST_RESORT_S", 1.0)

    def body(rank: int) -> None:
        control = ControlPlane(World.from_environment())
        if rank == 0:
            control.fail(StageError("it broke", stage=1, batch=2))
            control.stop_watching()
        else:
            time.sleep(10 * PATIENCE_S)

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 1]
    assert "rank 0, stage 1, batch 2: it broke" in ranks.output(1)
