"""Text as windows of bytes: exact values, the split, the order, and what is refused."""

import bz2
import gzip
import lzma
import os
from pathlib import Path
from typing import cast

import pytest
import torch

from pipelocal.data import Batch, BatchStream, data_info, load_dataset
from pipelocal.data.text import TextDataset, TextSource
from tests.data.batches import same
from tests.data.errors import data_error

TINY = TextSource("tiny", 4)


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "book"
    path.write_bytes(content)
    return path


def _counting(folder: Path, size: int = 100) -> Path:
    return _file(folder, bytes(range(size)))


def test_info() -> None:
    for name, length in (("text", 128), ("text64", 64)):
        info = data_info(name)
        assert info.sample_shape == info.target_shape == (length,)
        assert (info.classes, info.sample_dtype) == (256, torch.int64)


def test_exact_windows_of_a_tiny_text(tmp_path: Path) -> None:
    """Of 100 bytes the last ten are the test part; 86 of the other 90 make 21 windows of 4."""
    data = TINY.load(_counting(tmp_path), 0)
    assert data.train_x.tolist()[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.train_y.tolist()[:2] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert data.train_x.shape == data.train_y.shape == (21, 4)
    assert data.test_x.tolist() == [[90, 91, 92, 93], [94, 95, 96, 97]]
    assert data.test_y.tolist() == [[91, 92, 93, 94], [95, 96, 97, 98]]


def test_windows_begin_elsewhere_in_every_epoch_and_never_reach_the_test_part(
    tmp_path: Path,
) -> None:
    data = TINY.load(_counting(tmp_path), 0)
    starts = set()
    for seed in range(50):
        x, y = data.training_part(seed)
        assert torch.equal(y, x + 1)
        assert torch.equal(x.flatten(), torch.arange(84) + x[0, 0])
        assert int(y.max()) < 90
        starts.add(int(x[0, 0]))
    assert starts == {0, 1, 2, 3}


def test_the_first_windows_alone(tmp_path: Path) -> None:
    """A window's worth is left over, so that epochs begin elsewhere here too."""
    few = TINY.load(_counting(tmp_path), 0).first(3)
    starts = set()
    for seed in range(50):
        x, y = few.training_part(seed)
        assert x.shape == y.shape == (3, 4)
        starts.add(int(x[0, 0]))
    assert starts == {0, 1, 2, 3}
    assert len(few.test_x) == 2


@pytest.mark.parametrize("size", range(50, 75))
def test_any_size_of_text_gives_whole_windows(tmp_path: Path, size: int) -> None:
    data = TINY.load(_counting(tmp_path, size), 0)
    assert len(data.test_x) >= 1
    for seed in range(20):
        x, y = data.training_part(seed)
        assert x.shape == y.shape == data.train_x.shape
        assert int(y.max()) < size - size // 10


def test_batches_are_tokens_as_they_stand(tmp_path: Path) -> None:
    """int64, not normalised, each with its label, memory of their own."""
    data = TINY.load(_file(tmp_path, bytes(range(156, 256))), 0)
    stream = BatchStream(data, batch_size=6, seed=0)
    assert stream.steps_per_epoch == 4
    batches = list(stream.train(0))
    assert [len(batch.ids) for batch in batches] == [6, 6, 6, 3]
    assert torch.cat([batch.ids for batch in batches]).sort().values.tolist() == list(range(21))
    (test,) = stream.test()
    for batch in (*batches, test):
        assert batch.x.dtype == batch.target.dtype == torch.int64
        assert batch.x.is_contiguous()
        assert batch.target.is_contiguous()
        assert torch.equal(batch.target, batch.x + 1)
    first = batches[0]
    assert torch.equal((first.x[:, 0] - first.x[0, 0]) // 4, first.ids - first.ids[0])
    assert test.x.tolist() == [[246, 247, 248, 249], [250, 251, 252, 253]]
    first.x.zero_()
    assert int(data.train_tokens.min()) == 156


def test_batches_depend_on_seed_epoch_and_step_alone(tmp_path: Path) -> None:
    data = TINY.load(_counting(tmp_path), 0)

    def batches(seed: int, epoch: int, start: int = 0) -> list[Batch]:
        return list(BatchStream(data, batch_size=6, seed=seed).train(epoch, start))

    assert same(batches(0, 1), batches(0, 1))
    assert same(batches(0, 1)[2:], batches(0, 1, start=2))
    assert not same(batches(0, 1), batches(0, 2))
    assert not same(batches(0, 1), batches(1, 1))


def test_a_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"b" * 100)
    (tmp_path / "a.txt").write_bytes(b"a" * 100)
    (tmp_path / "c.md").write_bytes(b"c" * 100)
    (tmp_path / "d.txt").mkdir()
    data = cast(TextDataset, load_dataset("text16", root=tmp_path, seed=0))
    assert bytes(data.train_tokens.tolist()) == b"a" * 100 + b"b" * 80


def test_hidden_files_of_a_folder_are_left_out_and_others_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Mac puts ._a.txt beside a.txt, which is no text; and it cares little for small letters."""
    (tmp_path / "a.txt").write_bytes(b"a" * 100)
    (tmp_path / "B.TXT").write_bytes(b"b" * 100)
    (tmp_path / "._a.txt").write_bytes(b"\xff" * 100)
    (tmp_path / ".DS_Store").touch()
    for number in range(7):
        (tmp_path / f"{number}.md").touch()
    data = cast(TextDataset, load_dataset("text16", root=tmp_path, seed=0))
    assert bytes(data.train_tokens.tolist()) == b"b" * 100 + b"a" * 80
    said = capsys.readouterr().err
    assert "left out: ._a.txt, 0.md, 1.md, 2.md, 3.md and 3 more\n" in said
    assert "DS_Store" not in said

    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.txt").write_bytes(b"a" * 200)
    load_dataset("text16", root=plain, seed=0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"text" * 100), "packed by gzip"),
        (bz2.compress(b"text" * 100), "packed by bzip2"),
        (lzma.compress(b"text" * 100), "packed by xz"),
        (b"PK\x03\x04" + b"-" * 400, "a zip archive"),
        (b"%PDF-1.7\n" + b"-" * 400, "a PDF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip's bytes tell the time
)
def test_what_is_packed_is_no_text(tmp_path: Path, content: bytes, what: str) -> None:
    file = _file(tmp_path, content)
    assert f"{file} is no text but {what}" in data_error("text16", file)
    file.rename(tmp_path / "a.txt")
    assert f"{tmp_path / 'a.txt'} is no text but {what}" in data_error("text16", tmp_path)


def test_unusable_roots(tmp_path: Path) -> None:
    assert "give --data-root PATH" in data_error("text", None)
    assert f"{tmp_path / 'no'} does not exist" in data_error("text", tmp_path / "no")
    assert f"{tmp_path} holds no *.txt files" in data_error("text", tmp_path)
    empty = _file(tmp_path, b"")
    assert f"{empty} is empty" in data_error("text", empty)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert f"{pipe} is neither a file nor a folder" in data_error("text", pipe)


def test_too_little_text(tmp_path: Path) -> None:
    short = _file(tmp_path, b"x" * 169)
    text = data_error("text16", short)
    assert "holds 169 bytes" in text
    assert "needs 170" in text
    assert len(load_dataset("text16", root=_file(tmp_path, b"x" * 170), seed=0).test_x) == 1
