"""A module whose constructor is run without memory, and whose parts are then made one at a time.

The constructor runs once on the meta device, while every operation that makes or changes a tensor
is noted. To make a part, only the operations that its own parameters and buffers come from are run
again, on a real device. So a part starts exactly as the constructor would start it, whatever rules
that follows, and nothing else is ever held in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Deferred:
    """What ``construct`` makes, on the meta device, with the means to make parts of it for real.

    The constructor may draw random numbers, but must not look at a tensor's values, and must not
    depend on values that were given from Python (``torch.tensor(3)``), which meta tensors lose;
    :meth:`build` refuses what would have to be guessed.

    Args:
        construct: makes the module; called once, here.
    """

    def __init__(self, construct: Callable[[], nn.Module]) -> None:
        tape = _Tape()
        with torch.device("meta"), tape, _initialisers_noted_by(tape):
            self.module = construct()
        self._steps = tape.steps

    def build(self, part: nn.Module) -> nn.Module:
        """A copy of ``part`` with parameters and buffers of its own, drawn from torch's generator.

        On torch's default device, as for any module's constructor; on meta nothing is drawn.

        Args:
            part: a submodule of :attr:`module`, or a new module around some of them.
        """
        device = torch.get_default_device()
        if device.type == "meta":
            return copy.deepcopy(part)
        parameters = dict(part.named_parameters())
        buffers = dict(part.named_buffers())
        made = _replay(self._steps, [*parameters.values(), *buffers.values()], device)
        memo: dict[int, Any] = {}
        for (name, meta), real in zip((parameters | buffers).items(), made, strict=True):
            if _any_unset(real):
                raise RuntimeError(f"the constructor's value of '{name}' is not known")
            memo[id(meta)] = nn.Parameter(real, meta.requires_grad) if name in parameters else real
        return copy.deepcopy(part, memo)  # which takes a tensor's copy from the memo

    def unset(self, device: str = "cpu") -> nn.Module:
        """A copy of the whole module, to be filled from a state dict; draws nothing."""
        return copy.deepcopy(self.module).to_empty(device=device)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One operation of the constructor, with meta tensors for its arguments and results."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    reads: frozenset[int]
    """Storages of all its arguments."""
    writes: frozenset[int]
    """Storages that it changes or makes."""


class _Tape(TorchDispatchMode):
    """Notes the operations that make or change a storage; views need no note."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Holds all tensors, so that no two storages of one tape have the same address.
        self.steps: list[_Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        reads = frozenset(map(_storage, _tensors((args, kwargs))))
        changed = _tensors(
            [
                args[i] if i < len(args) else kwargs.get(argument.name)
                for i, argument in enumerate(func._schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
        )
        made = frozenset(map(_storage, _tensors(out))) - reads
        writes = made | frozenset(map(_storage, changed))
        if writes:
            self.steps.append(
                _Step(operation=func, args=args, kwargs=kwargs, out=out, reads=reads, writes=writes)
            )
        return out

    def note_initialiser(
        self, function: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Note a function of ``torch.nn.init`` as one operation, in place of running it."""
        storages = frozenset([_storage(tensor)])
        self.steps.append(
            _Step(
                operation=function,
                args=(tensor, *args),
                kwargs=kwargs,
                out=tensor,
                reads=storages,
                writes=storages,
            )
        )
        return tensor


# These return at once if their tensor is on meta, so the tape would not see them: their loops
# depend on what they draw (trunc_normal_ draws again what falls outside its bounds).
_SKIPPED_ON_META = ("trunc_normal_", "orthogonal_", "sparse_", "dirac_")


@contextmanager
def _initialisers_noted_by(tape: _Tape) -> Iterator[None]:
    functions = {name: getattr(nn.init, name) for name in _SKIPPED_ON_META}
    for name, function in functions.items():
        setattr(nn.init, name, partial(tape.note_initialiser, function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(nn.init, name, function)


def _replay(steps: Sequence[_Step], wanted: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Real tensors for the meta tensors ``wanted``; runs no step that has no part in them."""
    needed = set(map(_storage, wanted))
    taken: list[_Step] = []
    for step in reversed(steps):
        if not needed.isdisjoint(step.writes):
            taken.append(step)
            needed |= step.reads
    storages: dict[int, torch.UntypedStorage] = {}

    def real(value: Any) -> Any:
        if isinstance(value, torch.device):
            return device
        if not isinstance(value, Tensor):
            return value
        if _storage(value) not in storages:  # made where the tape does not see it
            items = value.untyped_storage().nbytes() // value.element_size()
            fresh = torch.empty(items, dtype=value.dtype, device=device)
            _mark_unset(fresh)
            storages[_storage(value)] = fresh.untyped_storage()
        return torch.empty(0, dtype=value.dtype, device=device).set_(
            storages[_storage(value)], value.storage_offset(), value.size(), value.stride()
        )

    with torch.no_grad():
        for step in reversed(taken):
            out = step.operation(*tree_map(real, step.args), **tree_map(real, step.kwargs))
            for meta, made in zip(_tensors(step.out), _tensors(out), strict=True):
                if _storage(meta) in storages:
                    continue
                assert made.stride() == meta.stride(), step.operation
                storages[_storage(meta)] = made.untyped_storage()
                if "empty" in str(step.operation):
                    _mark_unset(made)
        return [real(tensor) for tensor in wanted]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's storage object: meta tensors have no memory to go by."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _mark_unset(tensor: Tensor) -> None:
    """Fill with what no constructor leaves behind: NaN, or the least integer."""
    floating = tensor.is_floating_point() or tensor.is_complex()
    tensor.fill_(torch.nan if floating else _least(tensor.dtype))


def _any_unset(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return False
    if tensor.is_complex():
        return bool(tensor.isnan().any())
    least = tensor.min()  # NaN where there is one; unlike isnan() it needs no memory
    return bool(least.isnan() if tensor.is_floating_point() else least == _least(tensor.dtype))


def _least(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min


__all__ = ["Deferred"]
