"""Options of data that do not go together, and tokens of a tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal.data import ArrayDataset, DataOptions
from pipelocal.data.opening import NamedData
from pipelocal.errors import UserError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data": "digits", "image_size": 32}, "--image-size 32: it is for --data imagefolder"),
    ({"data": "digits", "tokenizer": "t.json"}, "--tokenizer t.json: it is for --data text"),
    (
        {"data": "digits", "test_split": 0.1},
        "--test-split 0.1: data set 'digits' is split by itself",
    ),
    ({"data": "text16", "tokenizer": "none.json"}, "--tokenizer none.json"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_does_not_go_together(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 200)
    if options["data"] != "digits":
        options = {**options, "data_root": str(tmp_path)}
    with pytest.raises(UserError, match=said):
        NamedData(DataOptions(**options), 0).batches()


class Letters:
    """In place of the package: a token for each letter of a file's alphabet."""

    def __init__(self, path: str) -> None:
        self.alphabet = Path(path).read_text()

    @classmethod
    def from_file(cls, path: str) -> Letters:
        return cls(path)

    def get_vocab_size(self, *, with_added_tokens: bool) -> int:
        return len(self.alphabet) + with_added_tokens

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
        class Encoding:
            def __init__(self, ids: list[int]) -> None:
                self.ids = ids

        assert not add_special_tokens
        return [Encoding([self.alphabet.index(letter) for letter in text]) for text in texts]


def test_tokens_of_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text in pieces of whole lines, however long they are."""
    package = type(sys)("tokenizers")
    package.Tokenizer = Letters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokenizers", package)
    monkeypatch.setattr("pipelocal.data.tokenizer.CHUNK", 10)
    text = ("abc\n" * 5 + "aabbccaabbccaabbcc\n") * 20
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "t.json").write_text("\nabc")
    options = DataOptions(
        data="text16", data_root=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / "t.json")
    )
    data = NamedData(options, 0)
    assert data.info().classes == 5
    found = data.found
    assert isinstance(found, ArrayDataset)
    expected = torch.tensor(["\nabc".index(letter) for letter in text[:16]])
    assert torch.equal(found.train_x[0].long(), expected)
    assert torch.equal(found.train_y[0, :-1], found.train_x[0, 1:])


def test_a_real_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("a b c " * 100)
    options = {"data_root": str(tmp_path), "tokenizer": str(tmp_path / "t.json")}
    found = NamedData(DataOptions(data="text16", **options), 0).found  # type: ignore[arg-type]
    assert isinstance(found, ArrayDataset)
    assert found.train_x[0, :4].tolist() == [0, 1, 2, 0]
