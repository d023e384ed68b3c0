"""Next-token prediction: for each token of a sequence, which one follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.tasks.labels import (
    check_classes,
    check_labels,
    count,
    counted,
    known_classes,
    log_of,
    weighted_cross_entropy,
)
from pipelocal.tasks.task import Loss, Shape, Sums, Task


@dataclass(frozen=True, kw_only=True)
class NextToken(Task):
    """Cross entropy of logits ``[B, T, vocabulary]`` and tokens ``[B, T]``, int64, with perplexity.

    The data's targets are the inputs moved by one: target ``[:, t]`` is the token behind input ``[:, t]``.
    Figures are over the tokens of all batches, however many of a batch are padding.

    Args:
        vocabulary: number of different tokens; by default as the data or the model's own output says.
        ignore_index: token of padding, which counts neither in loss nor in metrics, such as -100; by default
            all tokens count.

    Raises:
        UserError: a value is out of range.
    """

    vocabulary: int | None = None
    ignore_index: int | None = None

    metrics = ("accuracy", "perplexity")

    def __post_init__(self) -> None:
        check_classes(self.vocabulary, name="vocabulary")

    @property
    def plain(self) -> bool:
        """Whether the loss is the plain mean cross entropy."""
        return self.ignore_index is None

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """See :class:`~pipelocal.tasks.task.Task`."""
        *shape, vocabulary = output_shape
        ignored = self.ignore_index
        check_labels(target, tuple(shape), vocabulary, ignore_index=ignored, what="next token")

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`."""
        own = made[-1] if made else None
        vocabulary = known_classes(self.vocabulary, info.classes, own, name="vocabulary")
        return (*info.target_shape, vocabulary)

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """See :class:`~pipelocal.tasks.task.Task`."""
        logits, tokens = output.flatten(0, -2), target.flatten()
        return weighted_cross_entropy(logits, tokens, ignore_index=self.ignore_index)

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """See :class:`~pipelocal.tasks.task.Task`."""
        mask, right = counted(target, self.ignore_index), output.argmax(-1) == target
        right = right if mask is None else right & mask
        return {"predictions": count(target, mask), "accuracy": right.sum()}

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        loss = float(sums["loss"] / sums["weight"])
        return {
            "accuracy": float(sums["accuracy"] / sums["predictions"]),
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
        }

    def votes(self, output: Tensor) -> Tensor:
        """Return the tokens' probabilities."""
        return output.softmax(-1)

    def from_votes(self, mean: Tensor) -> Tensor:
        """Return the logarithms of the probabilities."""
        return log_of(mean)
