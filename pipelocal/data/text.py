"""Any text as a sequence of bytes, or of a tokenizer's tokens, cut into windows, for language models.

The last tenth is the test part. A window of ``T`` tokens is a sample, and the same
window one byte later its labels::

    bytes    t h e _ c a t _ s a t ...
    sample   t h e _ | c a t _ | ...       T = 4
    labels   h e _ c | a t _ s | ...
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.options import DataOptions
from pipelocal.data.tokenizer import tokens_of, vocabulary_size
from pipelocal.errors import DataError
from pipelocal.system.streams import tell

VOCABULARY = 256
"""Tokens are bytes."""
DEFAULT_LENGTH = 128
OTHER_LENGTHS = (16, 32, 64, 256, 512, 1024)
TEST_SHARE = 10
"""One byte in so many is for testing."""
TEXT = ".txt"
"""How names of texts in a folder end, in capitals or not."""
SHOWN = 5
"""Names of files left out that are told."""
NO_TEXT = {
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ\0": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"PK\x03\x04": "a zip archive (as .docx and .epub are)",
    b"%PDF-": "a PDF",
    b"\0\x05\x16\x07": "what macOS keeps of a file beside it (AppleDouble)",
}
"""How files begin whose bytes say nothing of the text that people see in them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextDataset(ArrayDataset):
    """Windows of a text; in every epoch they begin at another place.

    ``train_x`` and ``train_y`` are the windows at the very beginning, as an example and for their
    number; training takes those of :meth:`training_part`.

    Attributes:
        train_tokens: ``[L]`` uint8 for bytes, int32 for a tokenizer's tokens, the whole training part.
    """

    train_tokens: Tensor

    def training_part(self, seed: int) -> tuple[Tensor, Tensor]:
        """Samples and labels ``[N, T]``, views of the text from a random place on."""
        count, length = self.train_x.shape
        generator = torch.Generator().manual_seed(seed)
        spare = len(self.train_tokens) - count * length  # at least 1: the last label
        start = int(torch.randint(min(spare, length), (), generator=generator))
        return _windows(self.train_tokens, start=start, count=count, length=length)

    def first(self, samples: int) -> Self:
        """So many windows, from the beginning of the text and a window's worth beyond them."""
        few = super().first(samples)
        return replace(few, train_tokens=self.train_tokens[: (samples + 1) * self.train_x.shape[1]])


@dataclass(frozen=True)
class TextSource:
    """Text by the length of its sequences.

    Attributes:
        name: the name in the registry.
        length: tokens in a sequence.
    """

    name: str
    length: int

    @property
    def info(self) -> DataInfo:
        """Sequences ``(T,)`` of bytes, each token's label the byte that comes next."""
        return self._info(VOCABULARY)

    def info_with(self, tokenizer: str | None) -> DataInfo:
        """The same for the tokens of a tokenizer's file."""
        return self.info if tokenizer is None else self._info(vocabulary_size(tokenizer))

    def _info(self, vocabulary: int) -> DataInfo:
        return DataInfo(
            name=self.name,
            sample_shape=(self.length,),
            classes=vocabulary,
            target_shape=(self.length,),
            sample_dtype=torch.int64,
        )

    def load(
        self, root: Path | None, _seed: int, options: DataOptions | None = None
    ) -> TextDataset:
        """The text at ``root``; the same parts for every seed.

        Raises:
            DataError: no text there, or too little of it.
            OSError: it cannot be read; ``load_dataset`` makes a DataError of it.
        """
        tokenizer = None if options is None else options.tokenizer
        tokens = self._read(root)
        if tokenizer is not None:
            tokens = tokens_of(bytes(tokens.numpy()), tokenizer, name=self.name)
        least = TEST_SHARE * (self.length + 1)
        if len(tokens) < least:
            raise DataError(
                f"data set '{self.name}': {root} holds {len(tokens)} "
                f"{'bytes' if tokenizer is None else 'tokens'}, but a test part of one "
                f"sequence of {self.length} needs {least}: give more text, or shorter sequences"
            )
        border = len(tokens) - len(tokens) // TEST_SHARE
        train_tokens, test_tokens = tokens[:border], tokens[border:]
        # A window's worth is left over, so that each epoch's windows can begin elsewhere.
        train_count = (len(train_tokens) - self.length) // self.length
        test_count = (len(test_tokens) - 1) // self.length
        train_x, train_y = _windows(train_tokens, start=0, count=train_count, length=self.length)
        test_x, test_y = _windows(test_tokens, start=0, count=test_count, length=self.length)
        return TextDataset(
            info=self.info_with(tokenizer),
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            mean=(),
            std=(),
            train_tokens=train_tokens,
        )

    def _read(self, root: Path | None) -> Tensor:
        """All bytes ``[L]`` uint8."""
        if root is None:
            raise DataError(
                f"data set '{self.name}' is read from files and nothing is downloaded: give "
                f"--data-root PATH with a text file, or a folder of *.txt files"
            )
        if root.is_dir():
            files = self._files(root)
        elif root.is_file():
            files = [root]
        elif root.exists():
            raise self._unusable(root, "is neither a file nor a folder")
        else:
            raise self._unusable(root, "does not exist")
        content = b"".join(self._content(path) for path in files)
        if not content:
            raise self._unusable(root, "is empty")
        return torch.from_numpy(np.frombuffer(content, np.uint8).copy())

    def _files(self, folder: Path) -> list[Path]:
        """The texts of a folder, in sorted order; tells which other files are left out."""
        there = sorted(path for path in folder.iterdir() if path.is_file())
        files = [path for path in there if _is_text(path)]
        if not files:
            raise self._unusable(folder, "holds no *.txt files")
        # What no user put there, such as .DS_Store, is nothing to be told of.
        others = [
            path.name
            for path in there
            if not _is_text(path) and (path.name[0] != "." or path.suffix.lower() == TEXT)
        ]
        if others:
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            tell(
                f"data set '{self.name}' reads the *.txt files of {folder} that are not hidden; left out: "
                f"{', '.join(others[:SHOWN])}{more}"
            )
        return files

    def _content(self, path: Path) -> bytes:
        content = path.read_bytes()
        for beginning, what in NO_TEXT.items():
            if content.startswith(beginning):
                raise DataError(
                    f"data set '{self.name}': {path} is no text but {what}: give --data-root PATH with the "
                    f"text itself"
                )
        return content

    def _unusable(self, root: Path, what: str) -> DataError:
        return DataError(
            f"data set '{self.name}': {root} {what}: give --data-root PATH with a text file, or a "
            f"folder of *.txt files"
        )


SOURCES = (
    TextSource("text", DEFAULT_LENGTH),
    *(TextSource(f"text{length}", length) for length in OTHER_LENGTHS),
)


def _is_text(path: Path) -> bool:
    """By its name: hidden files, among them those that macOS puts beside others, are none."""
    return path.suffix.lower() == TEXT and not path.name.startswith(".")


def _windows(tokens: Tensor, *, start: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Samples and labels ``[count, length]``, views of ``tokens`` ``[L]`` from ``start`` on."""
    end = start + count * length
    return tokens[start:end].view(count, length), tokens[start + 1 : end + 1].view(count, length)
