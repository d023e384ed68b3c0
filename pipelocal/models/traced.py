"""A chain from a model as its author wrote it: the submodules that are named, and the code between.

The model's forward is traced with ``torch.fx``, the named submodules being left whole. What lies
between them goes with the one that follows::

    forward:  relu, pool | block1 | reshape | block2 | mean | fc        units=["block1", "block2", "fc"]
    units:    [relu, pool, block1]  [reshape, block2]  [mean, fc]       fc is the classifier
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from pipelocal.errors import UserError


def split_module(model: nn.Module, names: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a model into one module for each name, which run in a row are the model.

    Args:
        model: takes one tensor and returns one; is left as it is.
        names: submodules in the order in which they are called, at least two.

    Returns:
        One tensor in and one out each. Parameters and buffers are copies, under the names that they
        have in ``model``; each is in one of the modules and no other.

    Raises:
        UserError: the names are not those of submodules, or not in order; the model is no chain of
            them; its code between them cannot be traced.
    """
    _check_names(model, names)
    # Copies, for tracing may leave constants in them.
    model, evaluating = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    graph = _trace(model, names)
    _check_same(model, graph, evaluating, _trace(evaluating, names))
    unit_of = _assign(graph, names)
    crossing = _what_crosses(graph, unit_of, names)
    pieces = []
    for index, name in enumerate(names):
        own = [node for node in graph.nodes if unit_of.get(node) == index]
        before = crossing[index - 1] if index else None
        pieces.append(_piece(model, own, before, crossing[index], name))
    _check_all_used(model, pieces)
    return pieces


class _Tracer(fx.Tracer):
    """Leaves the named submodules whole, whatever they do inside."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = set(names)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._names or super().is_leaf_module(
            m, module_qualified_name
        )


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
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


def _trace(model: nn.Module, names: Sequence[str]) -> fx.Graph:
    parameters = list(inspect.signature(model.forward).parameters.values())
    optional = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
    try:
        graph = _Tracer(names).trace(model, concrete_args=optional or None)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the code of {type(model).__name__} between its units cannot be traced ({reason}): put "
            f"what depends on values into a submodule and name that, or make a Chain of Units"
        ) from error
    first, *others = [node for node in graph.nodes if node.op == "placeholder"]
    for node in others:  # inputs at their defaults, of which only checks are left
        for user in list(node.users):
            if not user.users:
                graph.erase_node(user)
        if node.users:
            raise UserError(
                f"the forward of {type(model).__name__} takes '{first.target}' and '{node.target}': "
                f"units pass on a single tensor"
            )
        graph.erase_node(node)
    return graph


def _check_same(model: nn.Module, graph: fx.Graph, evaluating: nn.Module, other: fx.Graph) -> None:
    """Refuse code between the units that tracing would fix as it is in training."""
    for one, two in zip(graph.nodes, other.nodes, strict=False):
        same = str(one.target) == str(two.target) and str((one.args, one.kwargs)) == str(
            (two.args, two.kwargs)
        )
        if not same:
            raise UserError(
                f"between its units {type(model).__name__} does something else in training than in "
                f"evaluation ('{one.name}'): use a module for it, such as nn.Dropout"
            )
        if one.op == "get_attr" and not _equal(_attribute(model, one), _attribute(evaluating, two)):
            raise UserError(
                f"between its units {type(model).__name__} makes a tensor that is not the same every "
                f"time ('{one.name}'): use a submodule for it"
            )


def _equal(one: object, two: object) -> bool:
    return not isinstance(one, Tensor) or not isinstance(two, Tensor) or torch.equal(one, two)


def _attribute(model: nn.Module, node: fx.Node) -> object:
    value: object = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _assign(graph: fx.Graph, names: Sequence[str]) -> dict[fx.Node, int]:
    """The unit of every node but the input and the output."""
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
    unit_of: dict[fx.Node, int] = {}
    index = 0
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        unit_of[node] = min(index, len(names) - 1)
        if node.op == "call_module" and str(node.target) in names:
            index += 1
    for node in graph.nodes:
        if node.op == "get_attr":  # a parameter lies where it is used, not where it is read
            unit_of[node] = min((unit_of.get(user, index) for user in node.users), default=0)
    return unit_of


def _what_crosses(
    graph: fx.Graph, unit_of: dict[fx.Node, int], names: Sequence[str]
) -> list[fx.Node]:
    """What leaves each unit for the next: one node; of the last, the model's output."""
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    if not isinstance(result, fx.Node):
        raise UserError("the model returns more than one tensor: it must return logits only")
    crossing = []
    for index in range(len(names) - 1):
        nodes = [
            node
            for node in graph.nodes
            if unit_of.get(node, -1) <= index
            and node.op != "output"
            and any(unit_of.get(user, len(names)) > index for user in node.users)
        ]
        if len(nodes) != 1:
            raise UserError(
                f"the model is no chain between '{names[index]}' and '{names[index + 1]}': "
                f"{' and '.join(map(_describe, nodes))} are used behind it, but one tensor can be "
                f"passed on: leave '{names[index]}' out of the units, and it goes with "
                f"'{names[index + 1]}'"
            )
        if unit_of.get(nodes[0]) != index:
            raise UserError(f"what unit '{names[index]}' makes is not used: leave it out")
        crossing.append(nodes[0])
    return [*crossing, result]


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input '{node.target}'"
    if node.op == "call_module":
        return f"the output of '{node.target}'"
    return f"'{node.target}'" if node.op == "get_attr" else f"'{node.name}'"


def _piece(
    model: nn.Module, own: Iterable[fx.Node], before: fx.Node | None, result: fx.Node, name: str
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
    return fx.GraphModule(model, graph, class_name=name.rpartition(".")[2].title())


def copy_of_piece(piece: nn.Module, saved: Collection[str]) -> nn.Module:
    """A piece with tensors of its own.

    Args:
        piece: one of those that :func:`split_module` returns.
        saved: names in the state dict of the model; other buffers, such as constants, are left out of
            the copy's state dict, though a ``GraphModule`` takes them in.
    """
    copied = copy.deepcopy(piece)
    for path, buffer in list(copied.named_buffers()):
        if path not in saved:
            owner, _, name = path.rpartition(".")
            copied.get_submodule(owner).register_buffer(name, buffer, persistent=False)
    return copied


def _check_all_used(model: nn.Module, pieces: Sequence[nn.Module]) -> None:
    used = {name for piece in pieces for name in piece.state_dict()}
    unused = [name for name in model.state_dict() if name not in used]
    if unused:
        raise UserError(
            f"{', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}: the model's forward does "
            f"not use this: remove it, since no stage would hold it"
        )
