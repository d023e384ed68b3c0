"""When a stage stops training and only feeds the next one: ``--freeze-stage``."""

from __future__ import annotations

import re

from pipelocal.errors import UserError

LEAST_GAIN = 0.01
"""An epoch whose mean training loss is not below the best one by this share has not improved."""

PATIENCE = 3
"""Such epochs in a row that make a plateau, where nothing else is said."""


class Freezing:
    """Says when one stage is to be frozen.

    Args:
        after: training batches after which; None for on a plateau.
        patience: epochs in a row without improvement that make a plateau.
    """

    def __init__(self, *, after: int | None, patience: int) -> None:
        self._after = after
        self._patience = patience
        self._best = float("inf")
        self._waited = 0

    @property
    def from_start(self) -> bool:
        """Whether the stage never trains, so that its head is never more than drawn."""
        return self._after == 0

    def state_dict(self) -> dict[str, float]:
        """What it has seen so far."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._best, self._waited = state["best"], int(state["waited"])

    def due(self, steps: int, epoch_loss: float | None) -> bool:
        """Asked before every training batch.

        Args:
            steps: batches that the stage was trained on.
            epoch_loss: mean training loss of the epoch that has just ended; None within one.
        """
        if self._after is not None:
            return steps >= self._after
        if epoch_loss is None:
            return False
        if epoch_loss < self._best * (1 - LEAST_GAIN):
            self._best, self._waited = epoch_loss, 0
        else:
            self._waited += 1
        return self._waited >= self._patience


def parse_freezing(text: str, *, stages: int) -> dict[int, Freezing]:
    """From text such as ``1:500,2:plateau,3:plateau=5``, by the stage's number.

    Args:
        text: stages with the batch after which each is frozen, or ``plateau``, with or without the patience
            of a :class:`Freezing`.
        stages: how many there are.

    Raises:
        UserError: it is no such list, there is no such stage, one is named twice, a patience is 0, or no
            stage would ever train.
    """
    found: dict[int, Freezing] = {}
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*:\s*(?:(\d{1,12})|plateau(?:=(\d{1,12}))?)\s*", word)
        if match is None:
            raise UserError(
                f"--freeze-stage {text}: give stages with the batch after which each is frozen, or "
                f"plateau, such as 1:500,2:plateau,3:plateau=5 (numbers of at most 12 digits)"
            )
        stage = int(match[1])
        if not 1 <= stage <= stages:
            raise UserError(
                f"--freeze-stage {text}: there is no stage {stage}, stages are 1 to {stages}"
            )
        if stage in found:
            raise UserError(f"--freeze-stage {text}: stage {stage} is named twice, name it once")
        patience = PATIENCE if match[3] is None else int(match[3])
        if patience < 1:
            raise UserError(
                f"--freeze-stage {text}: a plateau of {patience} epochs is none: give at least 1"
            )
        after = None if match[2] is None else int(match[2])
        found[stage] = Freezing(after=after, patience=patience)
    if len(found) == stages and all(each.from_start for each in found.values()):
        raise UserError(
            f"--freeze-stage {text}: no stage is left to train: leave one out, or freeze it later"
        )
    return found
