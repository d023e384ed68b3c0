"""Auxiliary heads: what turns a stage's output into logits for its local loss.

Each form has a file: ``linear``, ``mlp``, ``conv``, ``dgl``, and ``downstream`` with its twins, for which
``rows`` chooses the units, and of which ``guided`` draws the classifier; ``auto`` chooses among them.
``names`` has the names with a depth, and ``build`` the registry and what is done with every head: it is
built, tried and called. ``shapes`` and ``maps`` are what forms share.
"""

from pipelocal.heads.auto import auto
from pipelocal.heads.build import (
    HEADS,
    build_head,
    call_head,
    check_output,
    takes_beside,
    takes_input,
)
from pipelocal.heads.conv import conv
from pipelocal.heads.dgl import dgl
from pipelocal.heads.downstream import Downstream, downstream
from pipelocal.heads.guided import guided
from pipelocal.heads.linear import linear
from pipelocal.heads.mlp import mlp
from pipelocal.heads.names import HeadBuilder

__all__ = [
    "HEADS",
    "Downstream",
    "HeadBuilder",
    "auto",
    "build_head",
    "call_head",
    "check_output",
    "conv",
    "dgl",
    "downstream",
    "guided",
    "linear",
    "mlp",
    "takes_beside",
    "takes_input",
]
