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
from pipelocal.transport.header import Kind
from pipelocal.transport.packing import Packing, packing_of

WIRE_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}
WIRE_DTYPES |= {"bfloat16": torch.bfloat16, "int8": torch.int8}


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
    """Whether the tensor is small, int64, and sent along with the header."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype on the wire as a torch dtype."""
        return WIRE_DTYPES[self.dtype]

    @property
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
    more than their bytes; ``delta`` comes last, because it is computed last::

        TRAIN      [header target ids] x
        RECONCILE  [header target ids] x  delta
        EVALUATE   [header target    ] x  votes     if they do not cost more than x
    """

    source: int
    """Number of the sending stage."""
    target: int
    """Number of the receiving stage; always ``source + 1``: nothing flows back."""
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


def edge_contract(
    *,
    source: int,
    feature_shape: Sequence[int],
    target_shape: Sequence[int],
    classes: int,
    max_rows: int,
    form: str = "float32",
    channels_last: bool = False,
    delta_shape: Sequence[int] | None = None,
    delta_dtype: torch.dtype = torch.float32,
    votes: bool | None = None,
) -> Contract:
    """Make the contract of the edge from stage ``source`` to the next.

    Args:
        source: number of the sending stage.
        feature_shape: shape of one row of its output.
        target_shape: shape of one row of the labels, ``()`` for one label per sample.
        classes: number of classes.
        max_rows: number of rows in a full batch.
        form: packing of the output, a name in :data:`~pipelocal.transport.packing.PACKINGS`.
        channels_last: whether images ``[C, H, W]`` are sent and received channels last in memory.
        delta_shape: shape of one row of delta as sent; None if delta is not sent.
        delta_dtype: dtype of delta as sent.
        votes: whether evaluations send the sum of the heads' class probabilities; None to send it if
            it takes no more bytes than the output.
    """
    feature, label = tuple(feature_shape), tuple(target_shape)
    train, evaluate = ("TRAIN", "RECONCILE"), ("EVALUATE",)
    both = (*train, *evaluate)
    x = Packed(form=form, shape=feature, channels_last=channels_last and len(feature) == 3)
    as_it_is = form == "float32" and not x.channels_last
    messages = [
        Message(name="target", shape=label, dtype="int64", kinds=both, announced=True),
        Message(name="ids", shape=(), dtype="int64", kinds=train, announced=True),
        Message(
            name="x",
            shape=x.packing.shape,
            dtype=_name_of(x.packing.dtype),
            kinds=both,
            packed=None if as_it_is else x,
        ),
    ]
    # Sum of the heads' class probabilities so far, from which the last stage gets the ensemble.
    ballot = Message(name="votes", shape=(*label, classes), dtype="float32", kinds=evaluate)
    if ballot.bytes_per_row <= messages[-1].bytes_per_row if votes is None else votes:
        messages.append(ballot)
    if delta_shape is not None:
        dtype = _name_of(delta_dtype)
        messages.append(
            Message(name="delta", shape=tuple(delta_shape), dtype=dtype, kinds=("RECONCILE",))
        )
    return Contract(source=source, target=source + 1, max_rows=max_rows, messages=tuple(messages))


def _name_of(dtype: torch.dtype) -> str:
    (name,) = (name for name, known in WIRE_DTYPES.items() if known == dtype)
    return name


def _as_lists(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value]
    return value
