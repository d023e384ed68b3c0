"""Finds out which rank hangs, by asking every rank for which other rank it waits.

::

    rank 0 ---waits for---> rank 1 <---waits for--- rank 2 <---waits for--- rank 3
                            (silent)                                        asks

A process that is stopped, or whose host is gone, does not answer. If all answer, the hung rank is the one
that waits for nobody: it is busy with something. Only rank numbers are sent, over the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch.distributed as dist

from pipelocal.system.patience import Patience

QUESTION = "roll call"
POLL_S = 0.05


class RollCall:
    """One rank's part in finding the hung rank.

    Args:
        store: shared by all ranks.
        rank: this rank.
        size: number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._waits_for: int | None = None
        self._answered = False

    def waits(self, peer: int, waiting: bool) -> None:
        """Record that this rank starts, or stops, waiting for another."""
        self._waits_for = peer if waiting else None

    def answer(self) -> None:
        """Answer if another rank asks; called repeatedly by a thread that never waits for another rank.

        Raises:
            RuntimeError: the store is gone.
        """
        if not self._answered and self._store.check([QUESTION]):
            self._store.set(_key(self._rank), json.dumps(self._waits_for))
            self._answered = True

    def ask(self, seconds: float, *, until: Callable[[], bool]) -> str:
        """Ask all ranks, and say which one hangs.

        Args:
            seconds: seconds to wait for the answers.
            until: returns True once the answers are no longer needed.

        Raises:
            RuntimeError: the store is gone.
        """
        patience = Patience(seconds)
        self._store.set(QUESTION, "1")
        while not patience.over() and not until():
            if all(self._store.check([_key(rank)]) for rank in range(self._size)):
                break
            time.sleep(POLL_S)
        return describe(self._answers(), self._size)

    def _answers(self) -> dict[int, int | None]:
        there = (rank for rank in range(self._size) if self._store.check([_key(rank)]))
        return {rank: json.loads(self._store.get(_key(rank))) for rank in there}


def describe(answers: dict[int, int | None], size: int) -> str:
    """Describe what the answers mean.

    Args:
        answers: by rank, the rank that it waits for; None if it waits for nobody.
        size: number of ranks.
    """
    silent = [rank for rank in range(size) if rank not in answers]
    if silent:
        return f"{_listed(silent)} not answer: stopped, or cut off"
    busy = [rank for rank, waits_for in answers.items() if waits_for is None]
    if busy:
        return f"all ranks answer, and {_listed(busy)} not wait for another"
    return "all ranks answer, and wait for each other"


def _listed(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} does"
    return f"ranks {', '.join(map(str, ranks))} do"


def _key(rank: int) -> str:
    return f"roll call/{rank}"
