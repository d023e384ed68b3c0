"""The Python interface."""

from pipelocal.api.pipeline import Pipeline

__all__ = ["Pipeline"]
