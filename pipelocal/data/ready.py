"""A named data set whose samples are read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """Training and test data, as :class:`~pipelocal.data.own.OwnBatches` takes them.

    Attributes:
        name: of the data.
        train: training data.
        test: test data; None for none.
        classes: number of classes; None if targets are none, or nobody knows.
        workers: processes that load them by default.
        more: what else a run is to remember of the data, such as the names of the classes.
    """

    name: str
    train: Any
    test: Any = None
    classes: int | None = None
    workers: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def with_train(self, train: Any) -> Ready:
        """Return the same with other training data."""
        return replace(self, train=train)
