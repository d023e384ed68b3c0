"""The contract of an edge, on which both ends agree once, before the first batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.system.tensor_kind import TensorKind, dtype_name
from pipelocal.transport.header import Kind
from pipelocal.transport.packing import Packing, packing_of, row_bytes

ANNOUNCED_BYTES = 16 * 1024
"""Most bytes of a row that travels within the frame of the header on every wire."""

TRAIN_TARGET = "train target"
"""Name of the targets of training batches, where they differ in kind from those of evaluation."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """How a float32 tensor is packed on the wire."""

    form: str
    """A name in :data:`~pipelocal.transport.packing.PACKINGS`."""
    shape: tuple[int, ...]
    """Shape of one row in the stages, before packing."""
    channels_last: bool
    """Whether it is an image that is channels last in memory."""

    @cached_property
    def packing(self) -> Packing:
        """Return the packing."""
        return packing_of(self.form, self.shape, channels_last=self.channels_last)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One tensor of a batch."""

    name: str
    shape: tuple[int, ...]
    """Shape of one row on the wire, without the batch dimension."""
    dtype: str
    """Name of the dtype on the wire, such as ``float32``."""
    kinds: tuple[str, ...]
    """Names of the kinds of batch that carry the message."""
    packed: Packed | None = None
    """How the tensor is packed; None if it is sent unchanged."""
    announced: bool = False
    """Whether the tensor is small, int64, and sent along with the header on every wire."""
    late: bool = False
    """Whether the tensor is made after the others, which do not wait for it."""

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        """The dtype on the wire as a torch dtype."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @cached_property
    def bytes_per_row(self) -> int:
        """Bytes of one row on the wire."""
        return prod(self.shape) * self.torch_dtype.itemsize

    def pack(self, tensor: Tensor) -> Tensor:
        """Pack a stage's tensor ``[rows, ...]`` for the wire: ``[rows, *shape]``."""
        return tensor if self.packed is None else self.packed.packing.encode(tensor)

    def unpack(self, data: Tensor) -> Tensor:
        """Unpack the next stage's tensor ``[rows, ...]``; it may share memory with ``data``."""
        return data if self.packed is None else self.packed.packing.decode(data)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The ordered messages of an edge.

    Announced tensors come first, within the frame of the header, because separate transfers would cost
    more than their bytes; so do those behind them, up to a size that the wire sets
    (:class:`~pipelocal.transport.frame.FrameLayout`). ``delta`` comes last, because it is computed last::

        TRAIN      [header ids target] x x1 ...
        RECONCILE  [header ids target] x x1 ... delta
        EVALUATE   [header     target] x x1 ... votes     if they do not cost more than x

    ``x1`` and so on lie beside ``x``: skips, masks and positions that a later stage uses. An edge back, which
    there is only where an objective or a head declares it, carries a tensor of a training batch, or weights
    after an UPDATE.
    """

    source: int
    """Number of the sending stage."""
    target: int
    """Number of the receiving stage: the next one; or the one before, of what flows back."""
    max_rows: int
    messages: tuple[Message, ...]

    def bytes_of(self, name: str) -> int:
        """Return the bytes of one row of a message; 0 if there is no such message."""
        return sum(message.bytes_per_row for message in self.messages if message.name == name)

    @property
    def batch_bytes(self) -> int:
        """Return the bytes of all messages of a full batch, which the receiving end must hold."""
        return self.max_rows * sum(message.bytes_per_row for message in self.messages)

    def of_kind(self, kind: Kind) -> list[Message]:
        """Return the messages that follow a header of this kind, in order."""
        return [message for message in self.messages if kind.name in message.kinds]

    def to_json(self) -> dict[str, Any]:
        """Return the contract as plain types."""
        return asdict(self)

    def check_equal(self, theirs: Mapping[str, Any], *, own_end: str, other_end: str) -> None:
        """Compare with the other end's :meth:`to_json`.

        Raises:
            UserError: they differ; names both sides and what differs.
        """
        ours = _as_lists(self.to_json())
        if ours == theirs:
            return
        differing = [key for key in ours if ours[key] != theirs.get(key)]
        raise UserError(
            f"edge {self.source} -> {self.target}: the two ends disagree on {', '.join(differing)}: "
            f"{own_end} has {[ours[key] for key in differing]}, "
            f"{other_end} has {[theirs.get(key) for key in differing]}; "
            f"start every rank with the same options and the same version of pipelocal"
        )


def names_beside(count: int) -> tuple[str, ...]:
    """Return the names of the messages beside ``x``."""
    return tuple(f"x{place}" for place in range(1, count + 1))


def edge_contract(
    *,
    source: int,
    x: Sequence[TensorKind],
    target: TensorKind,
    output_shape: Sequence[int],
    max_rows: int,
    train_target: TensorKind | None = None,
    form: str = "float32",
    channels_last: bool = False,
    delta_shape: Sequence[int] | None = None,
    delta_dtype: torch.dtype = torch.float32,
    votes: bool | None = None,
    relayed: Sequence[TensorKind] = (),
) -> Contract:
    """Make the contract of the edge from stage ``source`` to the next.

    Args:
        source: number of the sending stage.
        x: its output; what lies beside the first tensor is sent as it is.
        target: the targets of evaluation, and of training.
        output_shape: shape of one row of a head's output.
        max_rows: number of rows in a full batch.
        train_target: the targets of training batches, if they are of another kind.
        form: packing of the output, a name in :data:`~pipelocal.transport.packing.PACKINGS`; an output
            that is not float32 is sent as it is.
        channels_last: whether images ``[C, H, W]`` are sent and received channels last in memory.
        delta_shape: shape of one row of delta as sent; None if delta is not sent.
        delta_dtype: dtype of delta as sent.
        votes: whether evaluations send the sum of the heads' votes; None to send it if it takes no more
            bytes than the output.
        relayed: outputs of earlier stages that the objective has passed on.
    """
    main, *beside = x
    train, evaluate = ("TRAIN", "RECONCILE"), ("EVALUATE",)
    both = (*train, *evaluate)
    packed = _packed(main, form, channels_last=channels_last)
    messages = [
        Message(name="ids", shape=(), dtype="int64", kinds=train, announced=True),
        _target("target", target, both if train_target is None else evaluate),
        *([] if train_target is None else [_target(TRAIN_TARGET, train_target, train)]),
        Message(
            name="x",
            shape=main.shape if packed is None else packed.packing.shape,
            dtype=dtype_name(main.dtype if packed is None else packed.packing.dtype),
            kinds=both,
            packed=packed,
        ),
    ]
    messages += [
        Message(name=name, shape=kind.shape, dtype=dtype_name(kind.dtype), kinds=both)
        for name, kind in zip(names_beside(len(beside)), beside, strict=True)
    ]
    messages += [
        Message(name=kind.name, shape=kind.shape, dtype=dtype_name(kind.dtype), kinds=both)
        for kind in relayed
    ]
    # Sum of the heads' votes so far, from which the last stage gets the ensemble.
    ballot = Message(name="votes", shape=tuple(output_shape), dtype="float32", kinds=evaluate)
    x_bytes = sum(message.bytes_per_row for message in messages if message.name == "x")
    if ballot.bytes_per_row <= x_bytes if votes is None else votes:
        messages.append(ballot)
    if delta_shape is not None:
        messages.append(
            Message(
                name="delta",
                shape=tuple(delta_shape),
                dtype=dtype_name(delta_dtype),
                kinds=("RECONCILE",),
                late=True,
            )
        )
    return Contract(source=source, target=source + 1, max_rows=max_rows, messages=tuple(messages))


def contract_back(
    *,
    source: int,
    tensors: Sequence[TensorKind],
    max_rows: int = 1,
    after_update: bool = False,
    form: str = "float32",
    channels_last: bool = False,
) -> Contract:
    """Make the contract of the edge from stage ``source`` back to the one before.

    Args:
        source: number of the sending stage.
        tensors: what it sends, by name.
        max_rows: number of rows in a full batch; of weights, which are sent whole, one.
        after_update: whether they are weights, sent after an update and as they are; otherwise they are of a
            training batch.
        form: packing, as of what comes forward.
        channels_last: whether images ``[C, H, W]`` are sent and received channels last in memory.
    """
    messages = []
    for kind in tensors:
        packed = None if after_update else _packed(kind, form, channels_last=channels_last)
        messages.append(
            Message(
                name=kind.name,
                shape=kind.shape if packed is None else packed.packing.shape,
                dtype=dtype_name(kind.dtype if packed is None else packed.packing.dtype),
                kinds=("UPDATE",) if after_update else ("TRAIN", "RECONCILE"),
                packed=packed,
            )
        )
    return Contract(source=source, target=source - 1, max_rows=max_rows, messages=tuple(messages))


def sent_row_bytes(x: Sequence[TensorKind], form: str) -> int:
    """Return the bytes on the wire of one row of a stage's output; arguments as in :func:`edge_contract`."""
    main, *beside = x
    packed = _packed(main, form, channels_last=False)
    own = main.bytes_per_row if packed is None else row_bytes(packed.packing)
    return own + sum(kind.bytes_per_row for kind in beside)


def _packed(x: TensorKind, form: str, *, channels_last: bool) -> Packed | None:
    if x.dtype != torch.float32:
        return None
    packed = Packed(form=form, shape=x.shape, channels_last=channels_last and len(x.shape) == 3)
    return None if form == "float32" and not packed.channels_last else packed


def _target(name: str, kind: TensorKind, kinds: tuple[str, ...]) -> Message:
    return Message(
        name=name,
        shape=kind.shape,
        dtype=dtype_name(kind.dtype),
        kinds=kinds,
        announced=kind.dtype == torch.int64 and kind.bytes_per_row <= ANNOUNCED_BYTES,
    )


def _as_lists(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value]
    return value
