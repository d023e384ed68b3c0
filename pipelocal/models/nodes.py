"""What a node of a traced graph is, by its examples."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

from torch import fx

from pipelocal.models.examples import both, example, is_container, is_size, kind_of


def takes_out(node: fx.Node) -> bool:
    """Return whether a node picks one of several results, as in ``x, _ = lstm(x)``."""
    if node.op != "call_function" or node.target not in (operator.getitem, getattr):
        return False
    source, picked = node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(picked, (int, str)):
        return False
    if both(source) is not None:
        return is_container(source)
    return node.target is operator.getitem and source.op == "call_module"


def makes_rows(node: fx.Node) -> bool:
    """Return whether a node makes a tensor of rows of a module's result that is none, as in ``h[-1]``."""
    tensors = [one for one in node.all_input_nodes if not is_size(one)]
    known = all(both(one) is not None and kind_of(one, "") is None for one in tensors)
    code = node.op in ("call_function", "call_method")
    return code and bool(tensors) and known and not any(one.op == "get_attr" for one in tensors)


def drop_idle(graph: fx.Graph, given: Collection[fx.Node]) -> None:
    """Remove what is unpacked and not used, as in ``x, _ = lstm(x)``, or only asked for, such as a shape."""
    for node in reversed(graph.nodes):
        idle = node.target is operator.getitem or (is_size(node) and example(node) is not None)
        if idle and not node.users and node not in given:
            graph.erase_node(node)


def replace_input(user: fx.Node, node: fx.Node, thing: Any) -> None:
    """Let a node use something else instead of another node."""
    user.args, user.kwargs = fx.map_arg(
        (user.args, user.kwargs), lambda one: thing if one is node else one
    )


def floats(node: fx.Node) -> bool:
    """Return whether a node makes a floating tensor, as far as is known."""
    kind = kind_of(node, "")
    return kind is None or kind.dtype.is_floating_point


def row_bytes(node: fx.Node) -> int:
    """Return the bytes of one row of a node's tensor; 0 if it is none of rows."""
    kind = kind_of(node, "")
    return 0 if kind is None else kind.bytes_per_row
