"""What is learnt: what an output and a target are, the loss between them, and what is counted."""

from pipelocal.tasks.classification import Classification
from pipelocal.tasks.task import Loss, Metric, Task

__all__ = ["Classification", "Loss", "Metric", "Task"]
