"""Headers and contracts, without ranks."""

import dataclasses
import json

import pytest
import torch

from pipelocal.errors import UserError
from pipelocal.transport.frame import Frame, FrameLayout
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.window import check_room
from tests.transport.contracts import plain_contract

CONTRACT = plain_contract(
    source=2, feature=(3, 4), label=(), classes=5, max_rows=8, delta_shape=(3, 4)
)


def test_a_ring_that_memory_does_not_hold_is_refused() -> None:
    """Before the system ends the process for it; the mend is a window that fits, where there is one."""
    batch = CONTRACT.batch_bytes
    assert batch == 8 * (8 + 8 + 48 + 48 + 20)
    check_room(CONTRACT, 3, 3 * batch)
    with pytest.raises(
        UserError, match=r"^--window 4: stage 3 would keep .* at most --window 3, or"
    ):
        check_room(CONTRACT, 4, 3 * batch)
    with pytest.raises(UserError, match=r": give a smaller --batch-size$"):
        check_room(CONTRACT, 1, batch)  # of two slots at least


@pytest.mark.parametrize("kind", list(Kind))
def test_header_survives_the_wire(kind: Kind) -> None:
    header = Header(kind=kind, number=2**40, rows=17, epoch=3, step=0)
    memory = bytearray(64)
    header.pack_into(memory)
    assert memory[56:] == bytes(8), "seven int64"
    assert Header.unpack_from(memory) == header


def test_other_bytes_are_no_header() -> None:
    with pytest.raises(ValueError, match="expected a batch header"):
        Header.unpack_from(bytes(64))


def test_what_follows_a_header() -> None:
    names = {kind: [message.name for message in CONTRACT.of_kind(kind)] for kind in Kind}
    assert names == {
        Kind.TRAIN: ["ids", "target", "x"],
        Kind.RECONCILE: ["ids", "target", "x", "delta"],
        Kind.EVALUATE: ["target", "x", "votes"],
        Kind.EVALUATED: [],
        Kind.END: [],
        Kind.SNAPSHOT: [],
        Kind.EPOCH: [],
        Kind.UPDATE: [],
    }


def a_frame(layout: FrameLayout) -> Frame:
    return Frame(layout, torch.zeros(layout.size, dtype=torch.uint8))


@pytest.mark.parametrize("rows", [8, 3, 1])
@pytest.mark.parametrize("label", [(), (4,)])
def test_a_frame_holds_the_header_and_what_rides(rows: int, label: tuple[int, ...]) -> None:
    """Every tensor as if in memory of its own: as large as it is, and aligned."""
    contract = plain_contract(source=1, feature=(3,), label=label, classes=5, max_rows=8)
    layout = FrameLayout(contract, 1000)
    header = Header(kind=Kind.TRAIN, number=5, rows=rows, epoch=1, step=0)
    tensors = {
        "ids": torch.arange(100, 100 + rows),
        "target": torch.randint(1, 9, (rows, *label)),
        "x": torch.randn(rows, 3),
    }
    frame = a_frame(layout)
    frame.write(header)
    places, data = frame.load(header.kind, rows)
    for name, tensor in tensors.items():
        places[name].copy_(tensor)
    arrived = a_frame(layout)
    arrived.data[: len(data)] = data  # as a transfer does
    assert arrived.read() == header
    places, _ = arrived.load(header.kind, rows)
    assert places.keys() == tensors.keys()
    for name, place in places.items():
        assert torch.equal(place, tensors[name])
        assert place.untyped_storage().nbytes() == tensors[name].nbytes
        assert (place.data_ptr() - arrived.data.data_ptr()) % 64 == 0


def test_a_marker_is_a_header_alone() -> None:
    _, data = a_frame(FrameLayout(CONTRACT, 1000)).load(Kind.END, 0)
    assert len(data) == 64


@pytest.mark.parametrize(
    ("room", "rides"),
    [
        (0, {"ids", "target"}),
        (383, {"ids", "target"}),
        (384, {"ids", "target", "x"}),  # eight rows of 48 bytes
        (10_000, {"ids", "target", "x", "votes"}),  # delta is made later
    ],
)
def test_what_rides_fits_the_room(room: int, rides: set[str]) -> None:
    layout = FrameLayout(CONTRACT, room)
    assert {m.name for messages in layout.riding.values() for m in messages} == rides
    for kind in Kind:
        names = [m.name for m in (*layout.riding[kind], *layout.following[kind])]
        assert names == [m.name for m in CONTRACT.of_kind(kind)]


def test_bytes_per_row() -> None:
    sizes = {message.name: message.bytes_per_row for message in CONTRACT.messages}
    assert sizes == {"x": 48, "target": 8, "ids": 8, "votes": 20, "delta": 48}


@pytest.mark.parametrize(
    ("label", "form", "votes", "travels"),
    [
        ((), "float32", None, True),  # 3 classes, 3 numbers
        ((), "bf16", None, False),  # 12 bytes of votes, 6 of the output
        ((2,), "float32", None, False),
        ((2,), "float32", True, True),
        ((), "float32", False, False),
    ],
)
def test_votes_travel_where_they_do_not_cost_more(
    label: tuple[int, ...], form: str, votes: bool | None, travels: bool
) -> None:
    contract = plain_contract(
        source=1,
        feature=(3,),
        label=label,
        classes=3,
        max_rows=8,
        form=form,
        votes=votes,
    )
    names = [message.name for message in contract.of_kind(Kind.EVALUATE)]
    assert names == ["target", "x", *(["votes"] if travels else [])]
    assert (contract.bytes_of("votes") > 0) == travels


def test_equal_contracts_agree_after_json() -> None:
    theirs = json.loads(json.dumps(CONTRACT.to_json()))
    CONTRACT.check_equal(theirs, own_end="rank 1", other_end="rank 2")


@pytest.mark.parametrize(
    "change", [{"max_rows": 9}, {"source": 1}, {"messages": CONTRACT.messages[:-1]}]
)
def test_a_difference_names_both_sides(change: dict[str, object]) -> None:
    other = dataclasses.replace(CONTRACT, **change)  # type: ignore[arg-type]
    theirs = json.loads(json.dumps(other.to_json()))
    with pytest.raises(UserError, match="2 -> 3.*disagree on " + next(iter(change))) as error:
        CONTRACT.check_equal(theirs, own_end="rank 1", other_end="rank 2")
    assert "rank 1 has" in str(error.value)
    assert "rank 2 has" in str(error.value)
    assert "\n" not in str(error.value)
