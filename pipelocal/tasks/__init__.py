"""Tasks: what outputs and targets mean, the loss between them, and the metrics."""

from pipelocal.tasks.classification import Classification
from pipelocal.tasks.task import Loss, Metric, Task

__all__ = ["Classification", "Loss", "Metric", "Task"]
