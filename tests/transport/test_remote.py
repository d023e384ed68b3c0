"""An edge between two real ranks: order, ownership, the window, and what breaks it."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelocal.errors import StageError
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.device import describe_device
from pipelocal.transport.connect import Link, connect, use_nccl
from pipelocal.transport.contract import Contract
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.groups import check_sharding
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.packing import SCALE_BYTES
from pipelocal.transport.remote_receiver import RemoteReceiver
from pipelocal.transport.remote_sender import RemoteSender
from pipelocal.transport.window import RING_SLOTS, Growth, Window, ring_slots
from tests.launching import FORK, PATIENCE_S, start, until, world_of
from tests.transport.contracts import plain_contract

CPU = torch.device("cpu")
SLOW_S = 0.5


def contract(features: int, max_rows: int = 8, form: str = "float32") -> Contract:
    return plain_contract(
        source=1,
        feature=(features,),
        label=(),
        classes=2,
        max_rows=max_rows,
        form=form,
        delta_shape=(features,),
    )


def run_edge(
    folder: Path,
    edge: Contract,
    send: Callable[[RemoteSender], None],
    receive: Callable[[RemoteReceiver], None],
    *,
    window: Window = 2,
    receiver_timeout_s: float = PATIENCE_S,
) -> None:
    """Rank 0 sends and rank 1 receives; both must end well."""

    def body(rank: int) -> None:
        torch.set_num_threads(1)
        world = world_of(rank)
        control = ControlPlane(world)
        link = Link(contract=edge, own_rank=rank, peer_rank=1 - rank, sending=rank == 0)
        (wire,) = connect(
            [link],
            pairs=[(0, 1)],
            size=2,
            rank=rank,
            device=CPU,
            device_name=describe_device(CPU),
            edge="auto",
            put=control.put,
            wait_for=lambda key: control.wait_for(key, timeout_s=PATIENCE_S),
        )
        common = {"peer": link.peer_name, "check": control.check, "window": window}
        common["timeout_s"] = PATIENCE_S if rank == 0 else receiver_timeout_s
        if rank == 0:
            sender = RemoteSender(edge, wire, **common)  # type: ignore[arg-type]
            send(sender)
            sender.drain()
            sender.close()
        else:
            receiver = RemoteReceiver(edge, wire, **common)  # type: ignore[arg-type]
            receive(receiver)
            receiver.close()
        control.leave()

    ranks = start(folder, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


def send_batch(sender: Sender, number: int, x: torch.Tensor) -> None:
    rows = len(x)
    sender.begin(Header(kind=Kind.RECONCILE, number=number, rows=rows, epoch=0, step=0))
    sender.send("ids", torch.arange(rows))
    sender.send("target", torch.full((rows,), number))
    sender.send("x", x)
    sender.send("delta", -x)
    sender.finish()


def end(sender: Sender, number: int) -> None:
    sender.begin(Header(kind=Kind.END, number=number, rows=0, epoch=0, step=0))
    sender.finish()


def take_all(receiver: Receiver, check: Callable[[Header, torch.Tensor], None]) -> int:
    """Take batches to the end, comparing every tensor; the number of batches."""
    count = 0
    while (batch := receiver.receive()).header.kind != Kind.END:
        x = batch.get("x")
        check(batch.header, x)
        assert torch.equal(batch.get("delta"), -x)
        assert torch.equal(batch.get("target"), torch.full((len(x),), batch.header.number))
        assert torch.equal(batch.get("ids"), torch.arange(len(x)))
        batch.release()
        count += 1
    batch.release()
    return count


def value(number: int, rows: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn((rows, features), generator=generator)


def test_uneven_batches_arrive_whole_and_in_order(tmp_path: Path) -> None:
    sizes = [8, 8, 3, 8, 1, 8]

    def send(sender: RemoteSender) -> None:
        for number, rows in enumerate(sizes):
            send_batch(sender, number, value(number, rows, 1000))
        end(sender, len(sizes))
        assert sender.sent_bytes == sum(sizes) * (4000 + 8 + 8 + 4000)

    def receive(receiver: RemoteReceiver) -> None:
        def check(header: Header, x: torch.Tensor) -> None:
            assert torch.equal(x, value(header.number, sizes[header.number], 1000))

        assert take_all(receiver, check) == len(sizes)
        assert receiver.received_bytes == sum(sizes) * (4000 + 8 + 8 + 4000)

    run_edge(tmp_path, contract(1000), send, receive)


def test_messages_of_64_mib(tmp_path: Path) -> None:
    features = 2 * 1024 * 1024

    def send(sender: RemoteSender) -> None:
        for number in range(3):
            send_batch(sender, number, torch.full((8, features), float(number)))
        end(sender, 3)

    def receive(receiver: RemoteReceiver) -> None:
        def check(header: Header, x: torch.Tensor) -> None:
            assert bool((x == header.number).all())

        assert take_all(receiver, check) == 3

    run_edge(tmp_path, contract(features), send, receive)


@pytest.mark.parametrize("form", ["bf16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_packed_message_of_64_mib(tmp_path: Path, form: str) -> None:
    """64 MiB on the wire; what arrives is what packing and unpacking in one process gives."""
    per_row = 64 * 2**20 // 8
    features = per_row // 2 if form == "bf16" else per_row - SCALE_BYTES
    edge = contract(features, form=form)
    (x,) = (message for message in edge.messages if message.name == "x")
    assert x.bytes_per_row * 8 == 64 * 2**20

    def send(sender: RemoteSender) -> None:
        for number in range(2):
            sender.begin(Header(kind=Kind.TRAIN, number=number, rows=8, epoch=0, step=0))
            for name in ("ids", "target"):
                sender.send(name, torch.arange(8))
            sender.send("x", value(number, 8, features))
            sender.finish()
        end(sender, 2)
        assert sender.sent_bytes == 2 * (64 * 2**20 + 128)

    def receive(receiver: RemoteReceiver) -> None:
        for number in range(2):
            batch = receiver.receive()
            got = batch.get("x")
            assert torch.equal(got, x.unpack(x.pack(value(number, 8, features))))
            assert got.dtype == torch.float32
            assert batch.get("x") is got  # unpacked once
            batch.release()
        receiver.receive().release()

    run_edge(tmp_path, edge, send, receive)


@pytest.mark.slow
def test_three_thousand_small_batches(tmp_path: Path) -> None:
    def send(sender: RemoteSender) -> None:
        for number in range(3000):
            send_batch(sender, number, torch.full((2, 4), float(number)))
        end(sender, 3000)

    def receive(receiver: RemoteReceiver) -> None:
        def check(header: Header, x: torch.Tensor) -> None:
            assert float(x[1, 3]) == header.number

        assert take_all(receiver, check) == 3000

    run_edge(tmp_path, contract(4), send, receive)


def test_what_was_received_stays_until_it_is_released(tmp_path: Path) -> None:
    """The sender runs ahead into the ring, but never into a slot in use."""

    def send(sender: RemoteSender) -> None:
        for number in range(6):
            send_batch(sender, number, torch.full((8, 1000), float(number)))
        end(sender, 6)

    def receive(receiver: RemoteReceiver) -> None:
        first = receiver.receive()
        held = first.get("x")
        second = receiver.receive()
        also_held = second.get("x")
        time.sleep(SLOW_S)  # time enough to write over them
        assert bool((held == 0).all())
        assert bool((also_held == 1).all())
        first.release()
        second.release()
        for _ in range(5):
            receiver.receive().release()

    run_edge(tmp_path, contract(1000), send, receive, window=4)


@pytest.mark.parametrize("window", [1, 3])
def test_a_sender_is_never_further_ahead_than_the_window(tmp_path: Path, window: int) -> None:
    """With a receiver that takes nothing, so many batches leave as the window and the ring hold."""
    most = window + ring_slots(window)
    looked = FORK.Event()

    def send(sender: RemoteSender) -> None:
        begun: list[int] = []

        def run() -> None:
            for number in range(12):
                send_batch(sender, number, torch.zeros(8, 500_000))
                begun.append(number)
            end(sender, 12)

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: len(begun) == most, lambda: str(begun))
        time.sleep(SLOW_S)  # time enough to begin another
        assert len(begun) == most, begun
        looked.set()
        thread.join()
        assert sender.waited_s > 0

    def receive(receiver: RemoteReceiver) -> None:
        assert looked.wait(PATIENCE_S)
        assert take_all(receiver, lambda *_: None) == 12

    run_edge(tmp_path, contract(500_000), send, receive, window=window)


def test_a_ring_that_grows_while_batches_are_under_way(tmp_path: Path) -> None:
    """Everything arrives whole and in order, and what is in use stays as it is."""

    def send(sender: RemoteSender) -> None:
        for number in range(20):
            send_batch(sender, number, value(number, 8, 20_000))
        end(sender, 20)

    def receive(receiver: RemoteReceiver) -> None:
        class Growing(Growth):
            def add(self, *, sender_s: float, receiver_s: float) -> int:  # noqa: ARG002
                self.slots += 1
                return 1

        receiver._growth = Growing(RING_SLOTS, 100, lambda: 100)
        held = receiver.receive()
        x = held.get("x")
        for number in range(1, 20):
            batch = receiver.receive()
            assert torch.equal(batch.get("x"), value(number, 8, 20_000))
            assert torch.equal(batch.get("delta"), -batch.get("x"))
            batch.release()
        assert torch.equal(x, value(0, 8, 20_000))
        held.release()
        receiver.receive().release()
        assert receiver._growth.slots == RING_SLOTS + 20

    run_edge(tmp_path, contract(20_000), send, receive, window="auto")


def test_a_sender_tells_how_long_it_waited_for_room(tmp_path: Path) -> None:
    """Until the receiver takes something, which here it does after a while."""
    looked = FORK.Event()

    def send(sender: RemoteSender) -> None:
        for number in range(6):
            send_batch(sender, number, torch.zeros(8, 500_000))
            if number == 3:  # two frames are begun, and two slots are full
                looked.set()
        end(sender, 6)

    def receive(receiver: RemoteReceiver) -> None:
        assert looked.wait(PATIENCE_S)
        time.sleep(SLOW_S)
        told = []
        for _ in range(6):
            batch = receiver.receive()
            told.append(batch.sender_waited_s)
            batch.release()
        assert told[0] == 0.0
        assert max(told) > SLOW_S / 2
        receiver.receive().release()

    run_edge(tmp_path, contract(500_000), send, receive, window="auto")


def test_a_sender_that_has_drained_may_leave(tmp_path: Path) -> None:
    """Everything has arrived by then, and memory given back to a connection that is closed is no error."""
    drained = FORK.Event()

    def send(sender: RemoteSender) -> None:
        for number in range(3):
            send_batch(sender, number, value(number, 8, 100_000))
        end(sender, 3)
        sender.drain()
        drained.set()
        os._exit(0)

    def receive(receiver: RemoteReceiver) -> None:
        assert drained.wait(PATIENCE_S)
        time.sleep(SLOW_S)

        def check(header: Header, x: torch.Tensor) -> None:
            assert torch.equal(x, value(header.number, 8, 100_000))

        assert take_all(receiver, check) == 3
        time.sleep(SLOW_S)
        assert receiver.trouble() is None
        os._exit(0)

    run_edge(tmp_path, contract(100_000), send, receive, window=4)


def test_a_missing_batch_number_is_noticed(tmp_path: Path) -> None:
    def send(sender: RemoteSender) -> None:
        send_batch(sender, 0, torch.zeros(1, 4))
        send_batch(sender, 2, torch.zeros(1, 4))
        end(sender, 3)

    def receive(receiver: RemoteReceiver) -> None:
        receiver.receive().release()
        with pytest.raises(StageError, match=r"stage 2: event 2 came .* a batch was lost"):
            receiver.receive()

    run_edge(tmp_path, contract(4), send, receive)


def test_patience_ends_with_an_error_that_names_both_ends(tmp_path: Path) -> None:
    gave_up, ended = FORK.Event(), FORK.Event()

    def send(sender: RemoteSender) -> None:
        assert gave_up.wait(PATIENCE_S)
        end(sender, 0)
        sender.drain()
        ended.set()

    def receive(receiver: RemoteReceiver) -> None:
        text = r"stage 2: nothing from stage 1 \(rank 0\) for 1 s.*--timeout"
        with pytest.raises(StageError, match=text):
            receiver.receive()
        gave_up.set()
        assert ended.wait(PATIENCE_S)

    run_edge(tmp_path, contract(4), send, receive, receiver_timeout_s=1)


def test_messages_out_of_the_contracts_order_are_refused(tmp_path: Path) -> None:
    def send(sender: RemoteSender) -> None:
        sender.begin(Header(kind=Kind.EVALUATE, number=0, rows=1, epoch=0, step=0))
        with pytest.raises(AssertionError, match="the contract wants target next, not x"):
            sender.send("x", torch.zeros(1, 4))
        os._exit(0)

    def receive(receiver: RemoteReceiver) -> None:
        with pytest.raises(StageError, match="lost the connection to stage 1"):
            receiver.receive().get("x")
        os._exit(0)

    run_edge(tmp_path, contract(4), send, receive)


GPU_0, GPU_1, CPU_0 = "a/cuda/0", "a/cuda/1", "a/cpu"


def test_who_may_use_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    assert use_nccl((0, 1), [GPU_0, "auto"], [GPU_1, "auto"])
    assert not use_nccl((0, 1), [GPU_0, "auto"], [GPU_0, "auto"])
    assert not use_nccl((0, 1), [GPU_0, "host"], [GPU_1, "host"])
    assert not use_nccl((0, 1), [GPU_0, "auto"], [CPU_0, "auto"])
    with pytest.raises(ValueError, match=r"ranks 0 and 1 share one GPU.*--edge host"):
        use_nccl((0, 1), [GPU_0, "device"], [GPU_0, "device"])
    with pytest.raises(ValueError, match="wants NCCL and CUDA on both ranks"):
        use_nccl((0, 1), [CPU_0, "device"], [CPU_0, "device"])


def test_sharded_replicas_want_nccl_on_cuda() -> None:
    check_sharding({0: [CPU_0, "auto"], 1: [CPU_0, "auto"]})
    with pytest.raises(
        ValueError, match=r"ranks 1, 2 are replicas on CUDA without NCCL.*--replicate ddp"
    ):
        check_sharding({1: [GPU_0, "host"], 2: [GPU_1, "host"]})
