"""Files of pretrained weights: what is read from them, what is refused, and how they are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipelocal.checkpoint.pretrained import Pretrained, open_pretrained
from pipelocal.errors import UserError
from pipelocal.models import Chain

NET = nn.Sequential(nn.Linear(4, 5000), nn.Linear(5000, 3))


def opened(path: Path) -> Pretrained:
    chain = Chain.from_sequential(NET, input_shape=(4,))
    return open_pretrained(path, chain, print)


def test_every_format_holds_the_same(tmp_path: Path) -> None:
    state = NET.state_dict()
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"a": 1}}, tmp_path / "in.ckpt")
    save_file(state, tmp_path / "other.safetensors")
    files = [opened(path) for path in sorted(tmp_path.iterdir())]
    assert len({file.fingerprint for file in files}) == 1
    assert [file.found for file in files] == ["its entry 'state_dict'", "", "", ""]
    for file in files:
        assert dict(file.shapes) == {n: tuple(v.shape) for n, v in state.items()}
        assert all(torch.equal(file.read(name), value) for name, value in state.items())


def test_the_fingerprint_is_of_names_shapes_and_values(tmp_path: Path) -> None:
    state = NET.state_dict()
    others = [
        {**state, "0.bias": state["0.bias"] + 1},
        {**state, "0.bias": state["0.bias"].double()},
        {("x" if name == "0.bias" else name): value for name, value in state.items()},
        {**state, "0.bias": state["0.bias"].reshape(2, -1)},
        {**state, "0.weight": state["0.weight"] * 1.001},
    ]
    found = set()
    for number, other in enumerate([state, *others]):
        torch.save(other, tmp_path / f"{number}.pt")
        found.add(opened(tmp_path / f"{number}.pt").fingerprint)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (NET, "holds more than tensors and plain values, which could run code"),
        ({"a": 1}, "holds no state dict: give a file of torch.save(model.state_dict(), ...)"),
        (torch.zeros(3), "holds no state dict"),
        (
            {"student": NET.state_dict(), "teacher": NET.state_dict()},
            r"holds several state dicts (student, teacher): save the one to start from by itself",
        ),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "x.pt")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"abcdefg", b"PK\x03\x04 and more", b"\x80\x02}q\x00."])
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        opened(tmp_path / name)
    assert "\n" not in str(error.value)


def test_files_that_were_cut_off(tmp_path: Path) -> None:
    torch.save(NET.state_dict(), tmp_path / "x.pt")
    save_file(NET.state_dict(), tmp_path / "x.safetensors")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="that is whole"):
            opened(path)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    save_file(NET.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not that of a run.*such as .*/model.safetensors"):
        opened(tmp_path)
