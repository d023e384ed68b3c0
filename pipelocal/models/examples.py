"""Follows a trace with example values: what each step of a model makes of 2, and of 3 rows.

A trace alone does not know what it is about. With examples it knows shapes and dtypes, so that code may ask
for them, and it is known what passes over a cut. They are computed on the meta device, which has no values; a
module that needs values is run for real.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from pipelocal.seeding import seeded
from pipelocal.system.tensor_kind import TensorKind

ROWS = (2, 3)
"""Two numbers of rows, so that one can tell what depends on them."""

_KEY, _CHANGED, _FAILED = "examples", "changed", "failed"
_SIZES = (
    *(bool, int, float, str, slice, type(None)),
    *(torch.dtype, torch.device, torch.finfo, torch.iinfo),
)


class Unknown(Exception):
    """Raised where a value cannot be known while a model is being traced."""


class Examples:
    """Computes the example values of one trace, node by node.

    Args:
        inputs: what the model takes.
        root: holds the modules and tensors that the graph refers to; it is not changed.
    """

    def __init__(self, inputs: Sequence[TensorKind], root: nn.Module) -> None:
        self._root = root
        self._inputs = inputs
        self._made: list[tuple[fx.Node, list[Tensor], list[int]]] = []
        # Made before the trace, which slows everything that modules do.
        kept = {id(p): nn.Parameter(_on_meta(p), p.requires_grad) for p in root.parameters()}
        kept |= {id(buffer): _on_meta(buffer) for buffer in root.buffers()}
        self._on_meta = copy.deepcopy(root, kept).to("meta")
        self._buffers = {n: (b, b._version) for n, b in self._on_meta.named_buffers()}
        self._real: set[str] = set()
        self._perhaps: set[str] = set()
        self.running = False
        """Whether the code that runs now is that of an example, and not what is being traced."""

    def follow(self, node: fx.Node) -> None:
        """Compute the values of a node; it has none if it, or one that it needs, cannot be run."""
        for before in node.all_input_nodes:
            if before.op == "get_attr" and _KEY not in before.meta:
                self.follow(before)
        if any(_KEY not in before.meta for before in node.all_input_nodes):
            self._give_up(node)
            return
        taken = [t for before in node.all_input_nodes for t in _tensors(before.meta[_KEY][0])]
        versions = _versions(taken)
        self.running = True
        try:
            with torch.no_grad(), seeded(0, "trial"):
                values = tuple(self._value(node, place) for place in range(len(ROWS)))
        except (
            Exception
        ) as error:  # whatever a user's code may raise; units are tried out again later
            node.meta[_FAILED] = " ".join(str(error).split())
            self._give_up(node)
            return
        finally:
            self.running = False
        node.meta[_KEY] = values
        if _versions(taken) != versions:
            node.meta[_CHANGED] = [other for other, t, known in self._made if _versions(t) != known]
            self._made = [(other, t, _versions(t)) for other, t, _ in self._made]
        made = _tensors(values[0])
        self._made.append((node, made, _versions(made)))

    def _give_up(self, node: fx.Node) -> None:
        """Take it that a step whose values are not known writes whatever it might."""
        if node.op == "call_module":
            self._real.add(str(node.target))
        self._perhaps |= {str(one.target) for one in node.all_input_nodes if one.op == "get_attr"}

    def written(self) -> set[str]:
        """Return the names of the buffers that the model writes, as far as is known: others are constants."""
        now = dict(self._on_meta.named_buffers())
        inside = {
            name
            for name, (buffer, version) in self._buffers.items()
            if now.get(name) is not buffer
            or buffer._version != version
            or any(name.startswith(f"{path}.") for path in self._real)
        }
        between = {
            str(node.target)
            for user, *_ in self._made
            for node in changed_by(user)
            if node.op == "get_attr"
        }
        return inside | between | self._perhaps

    def _value(self, node: fx.Node, place: int) -> Any:
        if node.op == "placeholder":
            made = tuple(
                torch.empty((ROWS[place], *kind.shape), dtype=kind.dtype, device="meta")
                for kind in self._inputs
            )
            return made if len(made) > 1 else made[0]
        if node.op == "get_attr":
            return _on_meta(_attribute(self._root, str(node.target)))
        args, kwargs = fx.map_arg(
            (node.args, dict(node.kwargs)), lambda other: other.meta[_KEY][place]
        )
        try:
            with torch.device("meta"):
                return self._call(node, args, kwargs, meta=True)
        except Exception:
            if node.op != "call_module":  # what follows from values is not known
                raise
            self._real.add(str(node.target))
            args, kwargs = map_aggregate((args, kwargs), _for_real)
            made = self._call(node, args, kwargs, meta=False)
            if not all(tensor.shape[:1] == (ROWS[place],) for tensor in _tensors(made)) or (
                _size_like(made)
            ):
                raise Unknown(node.name) from None
            return map_aggregate(made, _on_meta)

    def _call(self, node: fx.Node, args: Any, kwargs: Any, *, meta: bool) -> Any:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self._module(str(node.target), meta=meta)(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _module(self, path: str, *, meta: bool) -> nn.Module:
        """Return a copy of a module that may be run without effects on the model."""
        if meta:
            return self._on_meta.get_submodule(path)
        module = self._root.get_submodule(path)
        return copy.deepcopy(module, {id(p): p for p in module.parameters()})


def example(node: fx.Node) -> Any:
    """Return a node's value for the smaller number of rows.

    Raises:
        Unknown: it could not be run.
    """
    if _KEY not in node.meta:
        raise Unknown(node.name)
    return node.meta[_KEY][0]


def both(node: fx.Node) -> tuple[Any, Any] | None:
    """Return a node's values for both numbers of rows; None if they are not known."""
    found: tuple[Any, Any] | None = node.meta.get(_KEY)
    return found


def failed(node: fx.Node) -> str | None:
    """Return why a node has no values, if it was the one that could not be run."""
    reason: str | None = node.meta.get(_FAILED)
    return reason


def changed_by(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose tensors a node changes in place."""
    return list(node.meta.get(_CHANGED, ()))


def is_size(node: fx.Node) -> bool:
    """Return whether a node is known to be no tensor but a size, a dtype or the like, without effects."""
    values = both(node)
    return values is not None and _size_like(values[0])


def is_container(node: fx.Node) -> bool:
    """Return whether a node is known to hold several things, such as tensors."""
    values = both(node)
    return values is not None and not isinstance(values[0], Tensor) and not _size_like(values[0])


def kind_of(node: fx.Node, name: str) -> TensorKind | None:
    """Return the kind of a node's tensor; None if it is none, or its first dimension is not that of rows."""
    values = both(node)
    if values is None or not all(isinstance(value, Tensor) for value in values):
        return None
    shapes = [tuple(value.shape) for value in values]
    if any(shape[:1] != (rows,) for shape, rows in zip(shapes, ROWS, strict=True)):
        return None
    if shapes[0][1:] != shapes[1][1:]:
        return None
    return TensorKind(name=name, shape=shapes[0][1:], dtype=values[0].dtype)


def fixed(node: fx.Node) -> Any:
    """Return the value of a size or the like, which code may ask for.

    Raises:
        Unknown: it is a tensor, is not known, or is another for 2 than for 3 rows.
    """
    values = both(node)
    if values is None or not _size_like(values[0]) or str(values[0]) != str(values[1]):
        raise Unknown(node.name)
    return values[0]


def _size_like(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_size_like(one) for one in value)
    return isinstance(value, _SIZES)


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [tensor for one in value for tensor in _tensors(one)]
        if isinstance(value, (tuple, list))
        else []
    )


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(value, device="meta", requires_grad=False)


def _for_real(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return torch.device("cpu") if value == torch.device("meta") else value
    if value.is_floating_point():
        return torch.randn(value.shape, dtype=value.dtype)
    return torch.zeros(value.shape, dtype=value.dtype)


def _attribute(root: nn.Module, path: str) -> object:
    value: object = root
    for part in path.split("."):
        value = getattr(value, part)
    return value
