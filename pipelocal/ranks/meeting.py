"""Lets the ranks of one attempt recognise each other in a store that also holds earlier attempts.

torchrun keeps one store across restarts, and with a changing number of nodes its count of restarts differs
between nodes. So every rank publishes a random word, and rank 0 answers with the words that it saw; a rank
that finds its own word there knows that the answer is meant for this attempt::

    rank r   hello/r = word                              rank 0
                              ... sees words ...         round = {token, {r: word, ...}}
             finds its word   ack/token/r         --->   all have answered
"""

from __future__ import annotations

import json
import time
import uuid

import torch.distributed as dist

from pipelocal.system.patience import Patience

POLL_S = 0.01


def meet(store: dist.Store, rank: int, size: int, *, timeout_s: float) -> str:
    """Agree on a token that only the ranks of this attempt share.

    Args:
        store: shared by all ranks, possibly with those of earlier attempts.
        rank: this rank.
        size: number of ranks.
        timeout_s: seconds to wait for the others.

    Raises:
        TimeoutError: some ranks did not come.
    """
    patience = Patience(timeout_s)
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
    known: dict[str, str] | None = None
    while not patience.over():
        if rank > 0:
            token = _spoken_to(store, rank, word)
            if token is not None:
                store.set(f"ack/{token}/{rank}", "1")
                return token
        else:
            seen = _hellos(store, size)
            if seen != known:
                known = seen
                store.set("round", json.dumps({"token": word, "words": seen}))
            if all(store.check([f"ack/{word}/{other}"]) for other in range(1, size)):
                return word
        time.sleep(POLL_S)
    raise TimeoutError("not all ranks came")


def _spoken_to(store: dist.Store, rank: int, word: str) -> str | None:
    if not store.check(["round"]):
        return None
    now = json.loads(store.get("round"))
    return str(now["token"]) if now["words"].get(str(rank)) == word else None


def _hellos(store: dist.Store, size: int) -> dict[str, str]:
    """Return the words of the ranks that have come, by rank; some may be from an earlier attempt."""
    there = (rank for rank in range(1, size) if store.check([f"hello/{rank}"]))
    return {str(rank): store.get(f"hello/{rank}").decode() for rank in there}
