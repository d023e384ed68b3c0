"""Traces a model's forward to a ``torch.fx`` graph, or says why it cannot be traced.

A graph records what the code did when it was traced. Code that may behave differently at other times is
refused.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipelocal.errors import UserError
from pipelocal.models.copying import copy_of
from pipelocal.models.inputs import call, logits_of
from pipelocal.models.proxies import ExampleTracer
from pipelocal.seeding import states_of_draws
from pipelocal.system.tensor_kind import TensorKind


def trace(
    model: nn.Module, whole: Sequence[str], inputs: Sequence[TensorKind]
) -> tuple[fx.Graph, dict[str, Any], set[str]]:
    """Trace what a model's forward does with its inputs.

    Args:
        model: the model; it is not changed.
        whole: names of submodules to keep as one node each, as are modules that contain none of them.
        inputs: kinds of the tensors that it takes, by the names of its arguments.

    Returns:
        The graph, and copies of the modules and tensors that it refers to, under their names in
        ``model``; constants created by its forward get new names. And the names of the buffers that are
        written while it runs.

    Raises:
        UserError: the code between the submodules cannot be traced, or does not always behave as
            traced.
    """
    # Copies, because tracing runs the code between the units, which may change the model.
    training, evaluating = copy_of(model).train(), copy_of(model).eval()
    generators = states_of_draws()
    root, graph, written = _trace(training, whole, inputs)
    other_root, other_graph, also_written = _trace(evaluating, whole, inputs)
    _check_results(type(model).__name__, graph, other_graph)
    _check_same(root, graph, other_root, other_graph)
    _check_modes(root, graph, training=True)
    _check_modes(other_root, other_graph, training=False)
    if states_of_draws() != generators:
        raise UserError(
            f"between its units {type(model).__name__} draws a random number that tracing would fix: "
            f"put it into a submodule"
        )
    names = {name.removeprefix(_PREFIX) for name in written | also_written}
    return graph, _rename(root, graph), names


class _Call(nn.Module):
    """Calls the model as users do: with its hooks, and with further arguments at their defaults."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, x: Any) -> object:
        several = len(self._names) > 1
        values = [x[at] for at in range(len(self._names))] if several else [x]
        return logits_of(call(self.model, self._names, values))


_PREFIX = "model."


class _Tracer(ExampleTracer):
    """Traces only into modules that contain a named submodule; all others may run any code."""

    proxy_buffer_attributes = True  # trace code that reads or writes buffers, like any other

    def __init__(self, root: _Call, whole: Sequence[str], inputs: Sequence[TensorKind]) -> None:
        super().__init__(inputs, root)
        self._model = type(root.model).__name__
        self._names = {_PREFIX + name for name in whole}
        self._contexts = _contexts()
        self.failed_in = ""
        """Path of the innermost module whose code could not be traced."""

    def is_leaf_module(self, _: nn.Module, module_qualified_name: str) -> bool:
        inner = f"{module_qualified_name}."
        return not any(name.startswith(inner) for name in self._names)

    def numbers(self, root: nn.Module) -> set[tuple[str, float]]:
        """Return the attributes that are numbers of the modules whose code is traced, with their values."""
        return {
            (f"{path}.{name}".removeprefix(_PREFIX), value)
            for path, module in root.named_modules()
            if not self.is_leaf_module(module, path)
            for name, value in vars(module).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def call_module(self, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().call_module(m, *args, **kwargs)
        except Exception:
            known = not self.examples.running and m in (self.submodule_paths or {})
            self.failed_in = self.failed_in or (self.path_of_module(m) if known else "")
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if _contexts() != self._contexts:  # a graph has no contexts
            raise UserError(
                f"between its units {self._model} uses torch.no_grad, autocast or the like, which "
                f"tracing would lose ('{node.name.removeprefix('model_')}'): put it into a submodule"
            )
        return node


def _contexts() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), *autocast


def _trace(
    model: nn.Module, whole: Sequence[str], inputs: Sequence[TensorKind]
) -> tuple[_Call, fx.Graph, set[str]]:
    """Return what was traced, its graph, and what is written; names begin with ``_PREFIX``."""
    kind = type(model).__name__
    names = [one.name for one in inputs]
    try:
        signature = inspect.signature(model.forward)
        if set(names) <= set(signature.parameters):
            signature.bind(**dict.fromkeys(names))
        else:
            signature.bind(*names)
    except (TypeError, ValueError) as error:
        given = "one tensor" if len(names) < 2 else ", ".join(names)
        raise UserError(
            f"the forward of {kind} cannot be called with {given} ({error}): give Chain.from_module("
            f"inputs=) a tensor, or its TensorKind, for each of its arguments that it needs, by name"
        ) from error
    root = _Call(model, names)
    tracer = _Tracer(root, whole, inputs)
    before = tracer.numbers(root)
    try:
        graph = tracer.traced(root)
        if (once := tracer.numbers(root)) != before:
            # A counter, or what is kept from the first call: a second one tells.
            again = _Tracer(root, whole, inputs)
            again.traced(root)
            if counted := sorted(name for name, _ in again.numbers(root) - once):
                raise UserError(
                    f"between its units {kind} counts in '{counted[0]}', which tracing would fix: put it "
                    f"into a submodule, or make a buffer of it there"
                )
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if "Cache'" in reason:
            reason += "; Hugging Face's models keep no cache with model.config.use_cache = False"
        raise UserError(
            f"the code of {kind} between its units cannot be traced ({reason})"
            f"{_place(error, tracer.failed_in)}: put what depends on values into a submodule, or name what "
            f"holds it instead of its parts"
        ) from error
    for name, buffer in root.named_buffers():
        if isinstance(buffer, fx.Proxy):
            raise UserError(
                f"between its units {kind} assigns to '{name.removeprefix(_PREFIX)}', which tracing "
                f"would lose: put it into a submodule"
            )
    for node in graph.find_nodes(op="placeholder"):
        node.target = names[0] if len(names) < 2 else node.target
    return root, graph, tracer.examples.written()


def _place(error: Exception, path: str) -> str:
    """Describe the innermost code outside torch.fx and its submodule; may be empty."""
    ours = (str(Path(fx.__file__).parent), str(Path(__file__).parent))
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)
    ]
    line = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    name = path.removeprefix(_PREFIX.removesuffix(".")).removeprefix(".")
    return line + (f" in '{name}'" if name else "")


def _check_results(kind: str, graph: fx.Graph, evaluating: fx.Graph) -> None:
    """Refuse a model that returns more than logits in training, such as those of further classifiers."""
    made = kind_of_result(graph)
    if made is not None and kind_of_result(evaluating) is None:
        raise UserError(
            f"{kind} returns more than logits in training ({made}): build it without its auxiliary outputs "
            f"(aux_logits=False in torchvision), since each stage has a head of its own"
        )


def kind_of_result(graph: fx.Graph) -> str | None:
    """Return the type of a model's result; None if that may be a tensor."""
    result = next(node.args[0] for node in graph.nodes if node.op == "output")
    if not isinstance(result, fx.Node):
        return type(result).__name__.removeprefix("immutable_")
    # A named tuple or a dataclass is traced as a call of its class.
    return result.target.__name__ if isinstance(result.target, type) else None


def _rename(root: _Call, graph: fx.Graph) -> dict[str, Any]:
    """Give all nodes the model's own names; return the modules and tensors by these names."""
    known = {name for name, _ in (*root.named_parameters(), *root.named_buffers())}
    held: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value, path = _attribute(root, node), str(node.target)
            if node.op == "call_module" or path in known:
                node.target = path.removeprefix(_PREFIX)
            else:  # a constant, which becomes a buffer without a name in the model
                node.target = f"_constant_{path.replace('.', '_')}"
            held[node.target] = value
    return held


def _check_same(root: _Call, graph: fx.Graph, evaluating: _Call, other: fx.Graph) -> None:
    """Refuse code between the units that behaves differently in evaluation than as traced in training."""
    kind = type(root.model).__name__
    for one, two in zip(graph.nodes, other.nodes, strict=False):
        same = str(one.target) == str(two.target) and str((one.args, one.kwargs)) == str(
            (two.args, two.kwargs)
        )
        if not same:
            raise UserError(
                f"between its units {kind} does something else in training than in "
                f"evaluation ('{one.name}'): use a module for it, such as nn.Dropout"
            )
        if one.op == "get_attr" and not _equal(_attribute(root, one), _attribute(evaluating, two)):
            raise UserError(
                f"between its units {kind} makes a tensor that is not the same every "
                f"time ('{one.name}'): use a submodule for it"
            )


def _check_modes(root: _Call, graph: fx.Graph, *, training: bool) -> None:
    """Refuse a model whose own ``train()`` changes modes of its parts, which units would not do."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            before = [part.training for part in module.modules()]
            module.train(training)
            if before != [part.training for part in module.modules()]:
                raise UserError(
                    f"{type(root.model).__name__}.train() does not treat all parts alike "
                    f"('{str(node.target).removeprefix(_PREFIX)}'), which units would lose: write "
                    f"that part's own train() so"
                )


def _equal(one: object, two: object) -> bool:
    return not isinstance(one, Tensor) or not isinstance(two, Tensor) or torch.equal(one, two)


def _attribute(root: nn.Module, node: fx.Node) -> object:
    value: object = root
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
