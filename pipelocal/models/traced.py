"""Cuts a model as its author wrote it into the named submodules and the code between them.

The model's forward is traced with ``torch.fx``, down to the named submodules. Code between them becomes
part of the submodule that follows::

    forward:  relu, pool | block1 | reshape | block2 | mean | fc        units=["block1", "block2", "fc"]
    units:    [relu, pool, block1]  [reshape, block2]  [mean, fc]       fc is the classifier
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torch import fx, nn

from pipelocal.errors import UserError
from pipelocal.models.copying import copy_of
from pipelocal.models.crossing import Cuts
from pipelocal.models.in_place import PART
from pipelocal.models.nodes import drop_idle, makes_rows, takes_out
from pipelocal.models.tracing import kind_of_result, trace
from pipelocal.system.tensor_kind import TensorKind


class Piece(NamedTuple):
    """One unit, with the code before it."""

    name: str
    module: fx.GraphModule
    """Takes and returns a tensor, or a tuple of tensors if there are several."""
    passes: tuple[str, ...]
    """Names of the tensors that it returns, its own first."""
    state: frozenset[str]
    """Names of all tensors of the model but constants, which each unit has for itself."""


def split_module(
    model: nn.Module, names: Sequence[str], inputs: Sequence[TensorKind]
) -> list[Piece]:
    """Cut a model into one module per name, whose sequence computes the same as the model.

    Args:
        model: returns one tensor, or a dict with ``"logits"``; it is not changed.
        names: submodules in the order in which they are called, at least two.
        inputs: what the model takes, by the names of its arguments.

    Returns:
        The modules. Parameters and buffers are copies, under their names in ``model``; each belongs to
        exactly one of the modules.

    Raises:
        UserError: the names are not those of submodules, or not in order; what passes from one to the
            next cannot be sent; the model's code between them cannot be traced.
    """
    _check_names(model, names)
    graph, held, written = trace(model, names, inputs)
    state = frozenset(model.state_dict()) | written
    if kind := kind_of_result(graph):
        raise UserError(f"the model returns a {kind}: it must return one tensor, the logits")
    given = _inputs(graph, inputs)
    unit_of = _assign(graph, names, given)
    crossing = Cuts(graph, unit_of, names, given, held=held, state=state).found()
    pieces = []
    before: Sequence[fx.Node] = list(given)
    for index, name in enumerate(names):
        own = [node for node in graph.nodes if unit_of.get(node) == index]
        passed = crossing[index]
        module = _piece(held, own, before, list(passed), name)
        pieces.append(Piece(name, module, tuple(passed.values()), state))
        before = list(passed)
    _check_all_used(model, [piece.module for piece in pieces])
    return pieces


def _inputs(graph: fx.Graph, inputs: Sequence[TensorKind]) -> dict[fx.Node, str]:
    """Return the nodes of the model's inputs, in order, with their names."""
    (x,) = graph.find_nodes(op="placeholder")
    if len(inputs) == 1:
        return {x: str(x.target)}
    found = {node.args[1]: node for node in x.users if node.target is operator.getitem}
    return {found[at]: kind.name for at, kind in enumerate(inputs)}


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


def _assign(
    graph: fx.Graph, names: Sequence[str], given: Collection[fx.Node]
) -> dict[fx.Node, int]:
    """Return the unit of every node but the inputs; the output is of the last."""
    drop_idle(graph, given)
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
        if node.op == "placeholder" or node in given:
            continue
        unit_of[node] = min(index, len(names) - 1)
        if node.op == "call_module" and str(node.target) in names:
            index += 1
    for node in graph.nodes:
        if node.op == "get_attr":  # a parameter belongs to the unit that uses it
            unit_of[node] = min((unit_of.get(user, index) for user in node.users), default=0)
        elif (takes_out(node) or makes_rows(node)) and node not in given:
            # Only tensors of rows can be passed on.
            unit_of[node] = max(unit_of[before] for before in node.all_input_nodes)
    return unit_of


def _piece(
    held: dict[str, Any],
    own: Iterable[fx.Node],
    before: Sequence[fx.Node],
    results: Sequence[fx.Node],
    name: str,
) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    copies: dict[fx.Node, fx.Node] = {}
    if len(before) == 1:
        copies[before[0]] = x
    else:
        for place, node in enumerate(before):
            copies[node] = graph.create_node(
                "call_function", operator.getitem, (x, place), name=PART
            )
    for node in own:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda other: copies[other])
            copies[node].meta.clear()  # holds what was only for the trace
    made = tuple(copies[node] for node in results)
    graph.output(made if len(made) > 1 else made[0])
    return _Traced(held, graph, class_name=name.rpartition(".")[2].title())


class _Traced(fx.GraphModule):
    """A unit with the code before it."""

    @property
    def takes_beside(self) -> bool:
        """Whether it takes a tuple of tensors, if it is a head; an attribute would be lost by a copy."""
        return any(node.name.startswith(PART) for node in self.graph.nodes)


def copy_of_piece(piece: nn.Module, saved: Collection[str]) -> nn.Module:
    """Copy a piece, with its own tensors.

    Args:
        piece: a module returned by :func:`split_module`.
        saved: names in the state dict of the model; other buffers, such as constants, are left out of
            the copy's state dict, although a ``GraphModule`` includes them.
    """
    copied = copy_of(piece)
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
