"""What a model takes: one tensor, or several that have names; and how it is called with them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.system.tensor_kind import TensorKind, dtype_name
from pipelocal.telemetry.formats import format_bytes

Inputs = Mapping[str, Tensor] | Sequence[TensorKind]
"""What a model of several inputs takes: a batch, by the names of its arguments, or kinds so named."""


def kinds_of(
    inputs: Inputs | None,
    input_shape: tuple[int, ...] | None,
    input_dtype: torch.dtype,
    *,
    name: str = "x",
) -> tuple[TensorKind, ...]:
    """Return the kinds of a model's inputs, as a user says them.

    Args:
        inputs: the inputs; None if there is one, of ``input_shape``.
        input_shape: shape of one sample, without the batch dimension.
        input_dtype: its dtype.
        name: the input's name, if it is only one.

    Raises:
        UserError: both are given, or none, or ``inputs`` is something else.
    """
    if (inputs is None) == (input_shape is None):
        raise UserError(
            "say what the model takes, once: input_shape= for one tensor, inputs= for several"
        )
    if input_shape is not None:
        return (TensorKind(name=name, shape=tuple(input_shape), dtype=input_dtype),)
    if isinstance(inputs, Mapping):
        for key, value in inputs.items():
            if not isinstance(value, Tensor) or value.dim() < 1:
                raise UserError(
                    f"inputs['{key}'] is {type(value).__name__}: give a batch of rows, a tensor [rows, ...], "
                    f"for each input"
                )
        kinds = tuple(
            TensorKind(name=key, shape=tuple(value.shape[1:]), dtype=value.dtype)
            for key, value in inputs.items()
        )
    else:
        kinds = tuple(inputs or ())
    if not kinds or not all(isinstance(kind, TensorKind) for kind in kinds):
        raise UserError(
            f"inputs={inputs!r}: give a batch of tensors by the names of the model's arguments, such as a "
            f"tokenizer makes, or a TensorKind for each"
        )
    return kinds


def check_inputs(inputs: Sequence[TensorKind], data: Sequence[TensorKind]) -> None:
    """Check that data are what a model takes.

    Args:
        inputs: what the model takes.
        data: what a sample of the data holds, without its target.

    Raises:
        UserError: they differ, in number, shape or dtype.
    """
    wanted, given = inputs[0], data[0]
    if wanted.shape != given.shape:
        raise UserError(
            f"the model is made for samples {list(wanted.shape)}, and the data has {list(given.shape)}: "
            f"{_mend_of_shape(wanted, given)}"
        )
    if wanted.dtype != given.dtype:
        raise UserError(
            f"the model takes {wanted.dtype}, and the data has {given.dtype}: give "
            f"Chain.from_module(input_dtype={given.dtype})"
        )
    check_beside(inputs, data[1:])


def _mend_of_shape(wanted: TensorKind, given: TensorKind) -> str:
    """Return how samples of another shape can be mended; texts are padded."""
    if wanted.dtype == given.dtype == torch.int64 and len(wanted.shape) == len(given.shape) == 1:
        (length,) = wanted.shape
        return (
            f"pad all texts to one length, as a tokenizer does with padding='max_length', "
            f"max_length={length}, truncation=True"
        )
    return f"give samples of that shape, or Chain.from_module(input_shape={given.shape})"


def check_beside(inputs: Sequence[TensorKind], beside: Sequence[TensorKind]) -> None:
    """Check that data have a model's further inputs.

    Args:
        inputs: what the model takes.
        beside: what a sample of the data holds beside the main input.

    Raises:
        UserError: they do not, in number, shape or dtype.
    """
    wanted = [(kind.shape, kind.dtype) for kind in inputs[1:]]
    if wanted != [(kind.shape, kind.dtype) for kind in beside]:
        has = said(beside) if beside else "nothing"
        raise UserError(
            f"the model takes {said(inputs)}, but beside the first a sample of the data holds {has}: let the "
            f"data set return (({', '.join(kind.name for kind in inputs)}), target)"
        )


def said(kinds: Sequence[TensorKind]) -> str:
    """Describe tensors by names and rows."""
    return " and ".join(
        f"{kind.name} {list(kind.shape)} {dtype_name(kind.dtype)}" for kind in kinds
    )


def crossing_text(kinds: Sequence[TensorKind], inputs: Sequence[TensorKind]) -> str:
    """Describe what crosses a cut, with its bytes.

    Args:
        kinds: the tensors, main first.
        inputs: what the model takes.
    """
    given = {kind.name for kind in inputs}
    texts = []
    for place, kind in enumerate(kinds):
        dtype = "" if kind.dtype == torch.float32 else f" {dtype_name(kind.dtype)}"
        role = "skip" if kind.dtype.is_floating_point else "mask"
        role = "input" if kind.name in given else role
        texts.append(f"{kind.name} {list(kind.shape)}{dtype}" + (f" ({role})" if place else ""))
    return f"{', '.join(texts)}: {format_bytes(sum(kind.bytes_per_row for kind in kinds))} a row"


def first_argument(model: nn.Module) -> str:
    """Return the name of the first argument of a model's forward; ``"x"`` if it has none."""
    return next(iter(_arguments(model)), "x")


def call(model: Any, names: Sequence[str], values: Sequence[Any]) -> Any:
    """Call a model as its author does: by position where its inputs are its first arguments, else by name."""
    known = _arguments(getattr(model, "module", model))
    if known[: len(names)] == list(names) or not set(names) <= set(known):
        return model(*values)
    return model(**dict(zip(names, values, strict=True)))


def logits_of(result: object) -> object:
    """Return a model's logits: its result, or what is called so in a dict, as Hugging Face's return."""
    if isinstance(result, Mapping) and "logits" in result:
        return result["logits"]
    return result


def _arguments(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)
