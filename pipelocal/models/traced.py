"""Cuts a model as its author wrote it into the named submodules and the code between them.

The model's forward is traced with ``torch.fx``, down to the named submodules. Code between them becomes
part of the submodule that follows::

    forward:  relu, pool | block1 | reshape | block2 | mean | fc        units=["block1", "block2", "fc"]
    units:    [relu, pool, block1]  [reshape, block2]  [mean, fc]       fc is the classifier
"""

from __future__ import annotations

import copy
import difflib
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import fx, nn

from pipelocal.errors import UserError
from pipelocal.models.tracing import kind_of_result, trace


def split_module(model: nn.Module, names: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a model into one module per name, whose sequence computes the same as the model.

    Args:
        model: takes one tensor and returns one; it is not changed.
        names: submodules in the order in which they are called, at least two.

    Returns:
        The modules, each with one tensor in and one out. Parameters and buffers are copies, under their
        names in ``model``; each belongs to exactly one of the modules.

    Raises:
        UserError: the names are not those of submodules, or not in order; the model is not a chain
            of them; its code between them cannot be traced.
    """
    _check_names(model, names)
    graph, held = trace(model, names)
    unit_of = _assign(graph, names)
    crossing = _what_crosses(graph, unit_of, names)
    pieces = []
    for index, name in enumerate(names):
        own = [node for node in graph.nodes if unit_of.get(node) == index]
        before = crossing[index - 1] if index else None
        pieces.append(_piece(held, own, before, crossing[index], name))
    _check_all_used(model, pieces)
    return pieces


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"Chain.from_module takes an nn.Module, not a {type(model).__name__}")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"units={names!r}: give a list of names of submodules")
    known = [name for name, _ in model.named_modules() if name]
    if len(names) < 2:
        raise UserError(
            f"units={list(names)}: name at least two submodules, the last of which is the classifier"
        )
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise UserError(f"units: {type(model).__name__} has no submodule '{name}'{hint}")
        outer = [other for other in names if name.startswith(f"{other}.")]
        if outer:
            raise UserError(f"units: '{name}' lies within '{outer[0]}': name one of them")
        if list(names).count(name) > 1:
            raise UserError(f"units: '{name}' is named twice")


def _assign(graph: fx.Graph, names: Sequence[str]) -> dict[fx.Node, int]:
    """Return the unit of every node except the input and the output."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:  # unpacked, as in x, _ = lstm(x)
            graph.erase_node(node)
    called = [
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module" and str(node.target) in names
    ]
    for name in names:
        if called.count(name) != 1:
            times = "not called" if name not in called else f"called {called.count(name)} times"
            raise UserError(f"units: '{name}' is {times} by the model's forward: it must be once")
    if called != list(names):
        raise UserError(
            f"units: the model calls them in the order {', '.join(called)}: name them in that order"
        )
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) in names and not node.users:
            raise UserError(f"what unit '{node.target}' makes is not used: leave it out")
    unit_of: dict[fx.Node, int] = {}
    index = 0
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        unit_of[node] = min(index, len(names) - 1)
        if node.op == "call_module" and str(node.target) in names:
            index += 1
    returned = set()
    for node in graph.nodes:
        if node.op == "get_attr":  # a parameter belongs to the unit that uses it
            unit_of[node] = min((unit_of.get(user, index) for user in node.users), default=0)
        elif node.op == "call_module" and str(node.target) in names:
            returned.add(node)
        elif _takes_out(node) and node.args[0] in returned:  # only tensors can be passed on
            returned.add(node)
            unit_of[node] = unit_of[node.args[0]]
    return unit_of


def _takes_out(node: fx.Node) -> bool:
    """Return whether a node is ``something[number]``, which picks one of several results."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _what_crosses(
    graph: fx.Graph, unit_of: dict[fx.Node, int], names: Sequence[str]
) -> list[fx.Node]:
    """Return the one node that each unit passes to the next; for the last, the model's output."""
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    if kind := kind_of_result(graph):
        raise UserError(f"the model returns a {kind}: it must return one tensor, the logits")
    last = len(names) - 1
    crossing = [
        [
            node
            for node in graph.nodes
            if unit_of.get(node, -1) <= index
            and node.op != "output"
            and any(unit_of.get(user, len(names)) > index for user in node.users)
        ]
        for index in range(last)
    ]
    crossing.append([result])
    for index, nodes in enumerate(crossing):
        if len(nodes) > 1:
            # The next place where a single tensor is alive; after the last unit there is one.
            to = next(i for i in range(index, len(names)) if len(crossing[i]) == 1)
            left_out = " and ".join(f"'{name}'" for name in names[index:to])
            mend = f"leave {left_out} out of the units, to go with '{names[to]}'"
            raise UserError(
                f"the model is no chain between '{names[index]}' and '{names[index + 1]}': "
                f"{' and '.join(map(_describe, nodes))} are used behind it, but one tensor can be "
                f"passed on: {mend if index or to < last else 'there is no place to cut this model'}"
            )
        if not nodes or unit_of.get(nodes[0]) != index:
            raise UserError(f"what unit '{names[index]}' makes is not used: leave it out")
    return [nodes[0] for nodes in crossing]


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input '{node.target}'"
    if node.op == "call_module":
        return f"the output of '{node.target}'"
    if node.op == "get_attr":
        return f"'{node.target}'"
    # The tracer made up this name, so report what the model's author knows.
    seen = [node]
    for one in seen:
        if one is node or one.op in ("call_function", "call_method"):
            seen += [before for before in one.all_input_nodes if before not in seen]
    sources = [_describe(one) for one in seen if one.op not in ("call_function", "call_method")]
    return f"'{node.name}' (of {', '.join(sources)})" if sources else f"'{node.name}'"


def _piece(
    held: dict[str, Any],
    own: Iterable[fx.Node],
    before: fx.Node | None,
    result: fx.Node,
    name: str,
) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    copies: dict[fx.Node, fx.Node] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        from_outside = node is before or (before is None and node.op == "placeholder")
        return x if from_outside else copies[node]

    for node in own:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copy_of(result))
    return fx.GraphModule(held, graph, class_name=name.rpartition(".")[2].title())


def copy_of_piece(piece: nn.Module, saved: Collection[str]) -> nn.Module:
    """Copy a piece, with its own tensors.

    Args:
        piece: a module returned by :func:`split_module`.
        saved: names in the state dict of the model; other buffers, such as constants, are left out of
            the copy's state dict, although a ``GraphModule`` includes them.
    """
    copied = copy.deepcopy(piece)
    for path, buffer in list(copied.named_buffers()):
        if path not in saved:
            owner, _, name = path.rpartition(".")
            copied.get_submodule(owner).register_buffer(name, buffer, persistent=False)
    return copied


def _check_all_used(model: nn.Module, pieces: Sequence[nn.Module]) -> None:
    tensors = model.state_dict(keep_vars=True)
    used = {name for piece in pieces for name in piece.state_dict()}
    unused = [name for name in tensors if name not in used]
    for name in unused:
        for other in used & tensors.keys():
            if tensors[other] is tensors[name]:
                raise UserError(
                    f"'{name}' is '{other}' under a second name: give it one name, since units hold "
                    f"what the model's forward uses"
                )
    if unused:
        raise UserError(
            f"{', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}: the model's forward does "
            f"not use this: remove it, since no stage would hold it"
        )
