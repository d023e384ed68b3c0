"""Bytes between two ranks for every training batch: those of the tensors, and those on the link.

Both are differences between a longer and a shorter run, so that what is sent once, at the start and
for the evaluation at the end, is left out.
"""

from __future__ import annotations

from typing import Any

from benchmarks.communication import methods
from benchmarks.communication.methods import Method, Work
from benchmarks.communication.network import Shape, two_hosts

SHORT, LONG = 8, 40
"""Training batches; whole cycles of ``--reconcile-every``."""
SUMMARIES = ("bf16", "int8", "pooled", "sketch")

METHODS = (
    *(methods.own("greedy", wire=wire) for wire in ("float32", "bf16", "int8")),
    *(methods.own("sgr", wire=wire) for wire in ("float32", "bf16", "int8")),
    *(methods.own("sgr", delta=delta) for delta in SUMMARIES),
    methods.own("sgr", wire="int8", delta="int8"),
    *(methods.one_f_one_b(methods.RANKS * factor) for factor in (1, 4)),
)

QUICK = (METHODS[3], METHODS[-2])

Row = dict[str, Any]
Count = tuple[int | None, int | None, int | None]
"""Of tensors, on the link forward, and on the link back; None where it cannot be counted."""


def count(work: Work, method: Method, *, text: str, link: bool) -> Row:
    """Bytes a batch.

    Args:
        work: what is trained.
        method: how.
        text: file for the data set ``text``.
        link: whether there can be a link; without, only tensors are counted, on this host.
    """
    short, long = (_run(work, method, steps=steps, text=text, link=link) for steps in (SHORT, LONG))
    tensors, forward, back = (_a_batch(*pair) for pair in zip(short, long, strict=True))
    if method.micro_batches is not None:
        tensors = 2.0 * work.x_bytes  # by its shapes: x forward, the gradient at x back
    return {
        "part": "bytes",
        "model": work.model,
        "batch_size": work.batch_size,
        "method": method.name,
        "tensor_bytes": tensors,
        "link_bytes_forward": forward,
        "link_bytes_back": back,
    }


def _run(work: Work, method: Method, *, steps: int, text: str, link: bool) -> Count:
    if not link:
        if method.micro_batches is not None:
            return None, None, None
        summary, _ = methods.train_own(None, work, method, steps=steps, text=text)
        return summary["stages"][0]["sent_bytes"], None, None
    with two_hosts(Shape(), offload=False) as hosts:
        sent = None
        if method.micro_batches is not None:
            methods.seconds_peer(hosts, work, method, steps=steps)
        else:
            summary, _ = methods.train_own(hosts, work, method, steps=steps, text=text)
            sent = summary["stages"][0]["sent_bytes"]
        return sent, hosts[0].sent_bytes(), hosts[1].sent_bytes()


def _a_batch(short: int | None, long: int | None) -> float | None:
    return None if short is None or long is None else (long - short) / (LONG - SHORT)
