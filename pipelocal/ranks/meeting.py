"""How the ranks of one attempt recognise each other in a store that remembers earlier attempts.

torchrun keeps one store over restarts, and with a changing number of nodes its own count of restarts
differs between them. So every rank brings a word of its own, and rank 0 answers with a list of those it
saw; who finds the own word there knows that it is spoken to, and not a rank of before::

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
    """A token that the ranks of this attempt share with no other.

    Args:
        store: shared by all ranks, perhaps with those of earlier attempts.
        rank: this one.
        size: number of ranks.
        timeout_s: how long to wait for the others.

    Raises:
        TimeoutError: some did not come.
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
    """The words of the ranks that have come, by rank; some may be of an earlier attempt."""
    there = (rank for rank in range(1, size) if store.check([f"hello/{rank}"]))
    return {str(rank): store.get(f"hello/{rank}").decode() for rank in there}
