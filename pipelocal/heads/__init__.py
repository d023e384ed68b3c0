"""Auxiliary heads: what turns a stage's output into logits for its local loss."""

from pipelocal.heads.build import (
    HEADS,
    HeadBuilder,
    build_head,
    call_head,
    check_output,
    takes_beside,
    takes_input,
)

__all__ = [
    "HEADS",
    "HeadBuilder",
    "build_head",
    "call_head",
    "check_output",
    "takes_beside",
    "takes_input",
]
