"""Auxiliary heads: what turns a stage's output into logits for its local loss."""

from pipelocal.heads.build import (
    HEADS,
    build_head,
    call_head,
    check_output,
    takes_beside,
    takes_input,
)
from pipelocal.heads.downstream import downstream
from pipelocal.heads.names import HeadBuilder

__all__ = [
    "HEADS",
    "HeadBuilder",
    "build_head",
    "call_head",
    "check_output",
    "downstream",
    "takes_beside",
    "takes_input",
]
