"""Stands in for tensors while code is traced, and answers what it asks about sizes.

``torch.fx`` alone refuses ``len(x.shape)``, ``if x.shape[1] == 3``, ``range(x.size(1))`` and
``torch.arange(x.size(1))``. All of these follow from the inputs' kinds; what is not the same for any number
of rows is refused here as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode

from pipelocal.models.examples import Examples, Unknown, example, fixed
from pipelocal.system.tensor_kind import TensorKind


class ExampleTracer(fx.Tracer):
    """Traces with an example value of everything; see :class:`~pipelocal.models.examples.Examples`."""

    def __init__(self, inputs: Sequence[TensorKind], root: nn.Module) -> None:
        super().__init__()
        self.examples = Examples(inputs, root)

    def traced(self, root: nn.Module) -> fx.Graph:
        """Trace a module's forward."""
        with _MakesTensors(self.examples), _infos_traced(self):
            return self.trace(root)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand in for a node's result."""
        return _Proxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record one step, and follow it with the examples."""
        proxy = super().create_proxy(*args, **kwargs)
        self.examples.follow(proxy.node)
        return proxy

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call, unless an example runs, or the module is only made by the code that is traced."""
        own = m not in (self.submodule_paths or {}) and not [*m.parameters(), *m.buffers()]
        if self.examples.running or own:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record the use of a parameter, unless an example runs."""
        if self.examples.running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer ``if`` about sizes."""
        try:
            return bool(fixed(obj.node))
        except Unknown:
            return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Take apart what is known to be a tuple, or the like."""
        try:
            value = example(obj.node)
        except Unknown:
            return super().iter(obj)
        if not isinstance(value, (tuple, list)):
            return super().iter(obj)
        return (obj[at] for at in range(len(value)))  # type: ignore[index]


class _Proxy(fx.Proxy):
    def __getattr__(self, k: str) -> Attribute:
        return _Attribute(self, k)

    def __len__(self) -> int:
        try:
            value = example(self.node)
        except Unknown:
            return super().__len__()
        return len(value) if isinstance(value, (tuple, list)) else super().__len__()

    def __index__(self) -> int:
        try:
            return operator.index(fixed(self.node))
        except Unknown as error:
            raise TypeError("a number that depends on the number of rows, or on values") from error

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "pow",
    "mod",
    "and",
    "or",
    "xor",
    "matmul",
):
    # torch.fx alone takes x += y for x = x + y, which others who hold x would not see.
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Attribute(Attribute, _Proxy):
    """An attribute, such as a shape; becomes a step of the trace where it is used and not called."""


class _MakesTensors(TorchFunctionMode):
    """Records calls that make a tensor of a size or of another tensor's device, such as ``torch.arange``."""

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self._examples = examples

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._examples.running:
            return func(*args, **kwargs)
        found: list[fx.Proxy] = []
        map_aggregate(
            (args, kwargs),
            lambda one: found.append(one) if isinstance(one, fx.Proxy) else None,
        )
        if not found:
            return func(*args, **kwargs)
        return fx.Proxy.__torch_function__(func, (), args, kwargs)


@contextmanager
def _infos_traced(tracer: ExampleTracer) -> Iterator[None]:
    """Record ``torch.finfo(x.dtype)`` as well."""
    kept = torch.finfo, torch.iinfo

    def recorded(info: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if any(isinstance(one, fx.Proxy) for one in args):
                return tracer.create_proxy("call_function", info, args, {})
            return info(*args)

        return call

    torch.finfo, torch.iinfo = (recorded(info) for info in kept)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.finfo, torch.iinfo = kept  # type: ignore[misc]
