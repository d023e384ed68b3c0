"""``pipelocal`` with one mechanism switched off that has no option: ``without.py MECHANISM train ...``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import Tensor

from pipelocal.cli import main
from pipelocal.stage.stage import Stage
from pipelocal.transport import remote_receiver
from pipelocal.transport.header import Header
from pipelocal.transport.remote_sender import RemoteSender


def without_prefetch() -> None:
    """A ring of one slot: nothing of a batch arrives before the one in use is given back."""
    remote_receiver.ring_slots = lambda window: 1  # type: ignore[attr-defined]  # noqa: ARG005
    remote_receiver.most_slots = lambda contract, window: 1  # type: ignore[attr-defined]  # noqa: ARG005


def without_early_send() -> None:
    """What a training batch sends leaves after the stage's update."""
    held: list[Callable[[], None]] = []
    training = False
    begin, send, finish, update = (
        RemoteSender.begin,
        RemoteSender.send,
        RemoteSender.finish,
        Stage.update,
    )

    def noticing_begin(sender: RemoteSender, header: Header) -> None:
        nonlocal training
        training = header.kind.trains
        begin(sender, header)

    def holding_send(sender: RemoteSender, name: str, tensor: Tensor) -> None:
        if training:
            held.append(lambda: send(sender, name, tensor))
        else:
            send(sender, name, tensor)

    def holding_finish(sender: RemoteSender) -> None:
        if training:
            held.append(lambda: finish(sender))
        else:
            finish(sender)

    def letting_go_update(stage: Stage, due: int | None = None) -> None:
        update(stage, due)
        for call in held:
            call()
        held.clear()

    RemoteSender.begin = noticing_begin  # type: ignore[method-assign, assignment]
    RemoteSender.send = holding_send  # type: ignore[method-assign, assignment]
    RemoteSender.finish = holding_finish  # type: ignore[method-assign, assignment]
    Stage.update = letting_go_update  # type: ignore[method-assign, assignment]


MECHANISMS = {"prefetch": without_prefetch, "early-send": without_early_send}

if __name__ == "__main__":
    MECHANISMS[sys.argv[1]]()
    main(sys.argv[2:])
