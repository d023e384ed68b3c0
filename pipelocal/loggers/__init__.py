"""Loggers: take what a run records, such as for TensorBoard; they never change or end the run."""

from pipelocal.loggers.logger import LoggedRun, Logger, Record
from pipelocal.loggers.registry import LOGGERS

__all__ = ["LOGGERS", "LoggedRun", "Logger", "Record"]
