"""Tokens of a Hugging Face tokenizer, read from its ``tokenizer.json``; needs the package ``tokenizers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelocal.errors import DataError, UserError

CHUNK = 1 << 20
"""Characters that are tokenized at once, up to the end of a line."""


def vocabulary_size(path: str) -> int:
    """Return the number of tokens that a tokenizer knows, added ones included.

    Raises:
        UserError: the file is no tokenizer, or the package is missing.
    """
    return int(_opened(path).get_vocab_size(with_added_tokens=True))


def tokens_of(text: bytes, path: str, *, name: str) -> Tensor:
    """Return the tokens ``[L]`` int32 of a text, without special ones at its ends.

    Args:
        text: in UTF-8.
        path: of the tokenizer's file.
        name: of the data set, for messages.

    Raises:
        UserError: see :func:`vocabulary_size`.
        DataError: the text is not in UTF-8.
    """
    tokenizer = _opened(path)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data set '{name}': its text is not in UTF-8 (byte {error.start}), which --tokenizer takes: "
            f"convert it, or leave --tokenizer out for bytes"
        ) from error
    encodings = tokenizer.encode_batch(_chunks(decoded), add_special_tokens=False)
    return torch.tensor([token for each in encodings for token in each.ids], dtype=torch.int32)


def _chunks(text: str) -> list[str]:
    """Return the text in pieces of whole lines, so that a long one does not need memory all at once."""
    chunks, start = [], 0
    while start < len(text):
        end = text.rfind("\n", start, start + CHUNK) + 1
        end = end if end > start and start + CHUNK < len(text) else start + CHUNK
        chunks.append(text[start:end])
        start = end
    return chunks


def _opened(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"--tokenizer {path} needs the package tokenizers: pip install 'pipelocal[text]', or leave the "
            f"option out for bytes"
        ) from error
    if not Path(path).is_file():
        raise UserError(f"--tokenizer {path}: there is no such file: give a tokenizer.json")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--tokenizer {path} is no tokenizer ({reason}): give a tokenizer.json of Hugging Face"
        ) from error
