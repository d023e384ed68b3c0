"""The control plane: exchanges facts, records and failures over the store, never over data edges.

Everything is JSON. Every wait here checks whether another rank has failed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist

from pipelocal.errors import (
    STALLED,
    Interrupted,
    NotMet,
    Passing,
    PipelocalError,
    Refused,
    StageError,
    Terminated,
    UserError,
)
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.launcher import end_job
from pipelocal.ranks.lifeline import Lifeline
from pipelocal.ranks.membership import SECRET_BYTES
from pipelocal.ranks.who_hangs import RollCall
from pipelocal.ranks.world import World
from pipelocal.system.patience import Patience
from pipelocal.system.streams import say

WATCH_INTERVAL_S = 0.25
CAUSE_PATIENCE_S = 1.5
"""Seconds that a symptom (a lost connection) waits for another rank to report the cause."""

STORE_PATIENCE_S = 1.0
"""Seconds that an ending rank waits for the store to answer."""

STORE_LOST = "lost the control store: the rank or the agent that kept it is gone"

LAST_RESORT_S = 10.0
"""Seconds that a rank may take to end after another rank's failure before it is killed."""

FAILURE = "failure"


class ControlPlane:
    """One rank's view of the control plane. A thread of its own watches for failures.

    Args:
        world: the ranks and their store.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._store: dist.Store = world.store
        self.roll_call = RollCall(world.store, world.rank, world.size)
        self._posted = 0
        self._taken = [0] * world.size
        self._account: str | None = None
        self._refused = False
        """Whether the failure is due to user input, which another attempt cannot fix."""
        self.lost: StageError | None = None
        """The error that a neighbouring rank's process ended early, if one did."""
        self._lifeline: Lifeline | None = None
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="control", daemon=True)
        if world.size > 1:
            self._watcher.start()

    def put(self, key: str, value: Any) -> None:
        """Publish a fact; ``value`` is anything that JSON can hold.

        Raises:
            Interrupted: the store is gone.
        """
        with self._store_needed():
            self._store.set(key, json.dumps(value))

    def wait_for(self, key: str, *, timeout_s: float = math.inf) -> Any:
        """Return the fact under ``key``, once some rank has published it.

        Raises:
            Interrupted: another rank failed in the meantime, or the store is gone.
            NotMet: nobody published it in time.
        """
        patience = Patience(timeout_s)
        with self._store_needed():
            while not self._store.check([key]):
                self.check()
                if patience.over():
                    raise NotMet(
                        f"waited {timeout_s:g} s for another rank to say '{key}': it hangs or is too slow "
                        f"(--start-timeout sets the patience at the start of a training)"
                    )
                time.sleep(0.01)
            return json.loads(self._store.get(key))

    def take(self, key: str) -> Any:
        """Return a fact like :meth:`wait_for`, and delete it: nobody else may wait for it."""
        value = self.wait_for(key)
        with self._store_needed():
            self._store.delete_key(key)
        return value

    @contextmanager
    def _store_needed(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, PipelocalError):
                raise
            raise self.interruption(self._account or STORE_LOST) from error

    def watch_neighbours(self, names: dict[int, str], *, stage: int) -> None:
        """Watch the processes of neighbouring ranks, and notice at once when one is gone.

        Args:
            names: names for users of the ranks that this one talks to.
            stage: number of this rank's stage that talks to them, for the error.
        """

        def on_lost(rank: int) -> None:
            reason = f"lost the connection to {names[rank]}: its process is gone"
            self.lost = StageError(reason, stage=stage, symptom=True)

        def wait_for(key: str) -> Any:
            return self.wait_for(key, timeout_s=self.world.start_timeout_s)

        if self.world.rank == 0:
            self.put("secret", secrets.token_hex(SECRET_BYTES))
        self._lifeline = Lifeline(
            self.world.rank,
            names.keys(),
            secret=bytes.fromhex(wait_for("secret")),
            put=self.put,
            wait_for=wait_for,
            check=self.check,
            on_lost=on_lost,
            timeout_s=self.world.start_timeout_s,
        )

    def check(self) -> None:
        """Raise if another rank has reported a failure, or if a neighbour is gone.

        Raises:
            Interrupted: another rank failed.
            StageError: a neighbouring rank's process ended early; a symptom.
        """
        if self._account is not None:
            raise self.interruption(self._account)
        if self.lost is not None:
            raise self.lost

    def interruption(self, account: str) -> Interrupted:
        """Make the error that a rank raises because of another rank's failure."""
        return Refused(account) if self._refused else Interrupted(account)

    def fail(self, error: BaseException, *, grace_s: float = CAUSE_PATIENCE_S) -> tuple[str, bool]:
        """Report to all ranks that this one cannot continue; the first report given is everyone's reason.

        Returns:
            The report that counts, and whether it is this rank's own.
        """
        account = self._describe(error)
        refused = isinstance(error, UserError) and not isinstance(error, Passing)
        # A request to end has a cause, usually another rank's failure.
        symptom = isinstance(error, Terminated) or (isinstance(error, StageError) and error.symptom)
        try:
            try:
                won = self._settle(account, refused, symptom, grace_s)
            except Terminated:
                # Torchrun ends all ranks when it has lost one, so report at once.
                won = self._settle(account, refused, symptom, 0.0)
        except (RuntimeError, TimeoutError):
            won = account  # the store is gone, or its host cannot be reached
        self._account = won  # for the other threads of this rank, without delay
        if self.world.keeps_store:
            time.sleep(4 * WATCH_INTERVAL_S)  # the others must be able to read it
        return self._account, self._account == account

    def _settle(self, account: str, refused: bool, symptom: bool, grace_s: float) -> str:
        return breakable(
            lambda: self._agree(account, refused, symptom, grace_s),
            check=lambda: None,
            timeout_s=grace_s + STORE_PATIENCE_S,
        )

    def _agree(self, account: str, refused: bool, symptom: bool, grace_s: float) -> str:
        """Return the first report that any rank gave; this one if there is none yet."""
        if STALLED in account:
            known = partial(self._store.check, [FAILURE])
            account = f"{account}; {self.roll_call.ask(2 / 3 * grace_s, until=known)}"
        elif symptom:
            self._wait_for_cause(grace_s)
        return self._read(self._store.compare_set(FAILURE, "", json.dumps([account, refused])))

    def _read(self, failure: bytes) -> str:
        """Read the report in the store."""
        account, self._refused = json.loads(failure)
        return str(account)

    def _wait_for_cause(self, seconds: float) -> None:
        patience = Patience(seconds)
        while not self._store.check([FAILURE]) and not patience.over():
            time.sleep(0.02)

    def failure(self) -> str | None:
        """Return the report of the first failure, if there is one."""
        try:
            return self._read(self._store.get(FAILURE)) if self._store.check([FAILURE]) else None
        except RuntimeError:
            return self._account

    def post(self, record: dict[str, Any]) -> None:
        """Send a record to rank 0."""
        self.put(f"record/{self.world.rank}/{self._posted}", record)
        self._posted += 1

    def take_records(self) -> list[dict[str, Any]]:
        """Return the records received since the last call, in each rank's order; for rank 0."""
        records = []
        for rank in range(self.world.size):
            while self._store.check([key := f"record/{rank}/{self._taken[rank]}"]):
                records.append(json.loads(self._store.get(key)))
                self._store.delete_key(key)
                self._taken[rank] += 1
        return records

    def leave(self, *, timeout_s: float = 30.0) -> None:
        """Wait until no rank needs the store any more, then stop watching.

        Args:
            timeout_s: seconds that rank 0, for which all others have waited, waits for them to leave.
        """
        size = self.world.size
        if size > 1:
            if self.world.rank == 0:
                self.put("goodbye", True)
                patience = Patience(timeout_s)
                while self._store.add("left", 0) < size - 1 and not patience.over():
                    self.check()
                    time.sleep(0.01)
            else:
                # Without a timeout: a failure of the last stages interrupts the wait.
                self.wait_for("goodbye")
                self.stop_watching()
                self._store.add("left", 1)
        self.stop_watching()

    def stop_watching(self) -> None:
        """Stop the thread that watches for failures."""
        self._closing.set()
        if self._lifeline is not None and self._account is None and self.lost is None:
            self._lifeline.close()
        if self._watcher.is_alive():
            self._watcher.join(STORE_PATIENCE_S)  # it may wait for a store that does not answer

    def _watch(self) -> None:
        lost_looks = 0
        while not self._closing.wait(WATCH_INTERVAL_S):
            try:
                if self._store.check([FAILURE]):
                    self._account = self._read(self._store.get(FAILURE))
                self.roll_call.answer()
            except RuntimeError:
                self._account = STORE_LOST
            if self._account is None and self.lost is not None:
                lost_looks += 1
                if lost_looks * WATCH_INTERVAL_S > 2 * CAUSE_PATIENCE_S:
                    self.fail(self.lost)  # the main thread has not: it waits where it cannot look
            if self._account is not None:
                break
        # Waits call check(), which ends the process. A wait that cannot, such as for a CUDA device
        # whose peer is gone, must not keep the process alive.
        patience = Patience(LAST_RESORT_S)
        while not patience.over():
            if self._closing.wait(WATCH_INTERVAL_S):
                return
        say(f"pipelocal: stopped, and not able to leave: {self._account}")
        if self._refused:
            end_job()
        os._exit(1)

    def _describe(self, error: BaseException) -> str:
        rank = f"rank {self.world.rank}, " if self.world.size > 1 else ""
        if isinstance(error, PipelocalError | Terminated):
            return f"{rank}{error}"
        if isinstance(error, KeyboardInterrupt):
            return f"{rank}interrupted by the user"
        return f"{rank}{type(error).__name__}: {error}"
