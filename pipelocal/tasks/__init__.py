"""Tasks: what outputs and targets mean, the loss between them, and the metrics."""

from pipelocal.tasks.classification import Classification
from pipelocal.tasks.multi_label import MultiLabel
from pipelocal.tasks.next_token import NextToken
from pipelocal.tasks.regression import Regression
from pipelocal.tasks.segmentation import Segmentation
from pipelocal.tasks.supcon import SupCon
from pipelocal.tasks.task import Loss, LossFunction, Metric, Sums, Task

__all__ = [
    "Classification",
    "Loss",
    "LossFunction",
    "Metric",
    "MultiLabel",
    "NextToken",
    "Regression",
    "Segmentation",
    "Sums",
    "SupCon",
    "Task",
]
