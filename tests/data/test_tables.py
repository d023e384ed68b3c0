"""Tables of numbers: which column is the target, what it means, and lines that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelocal import cli
from pipelocal.data import ArrayDataset, DataOptions, find_data
from pipelocal.errors import UserError


def table(root: Path, kind: str = "csv", **options: Any) -> ArrayDataset:
    found = find_data(DataOptions(data=kind, data_root=str(root), **options), 0)
    assert isinstance(found, ArrayDataset)
    return found


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_classes_and_values(tmp_path: Path) -> None:
    named = table(written(tmp_path, "a,target,b\n1,dog,2\n3,cat,4\n5,dog,6\n"))
    assert named.info.classes == 2
    assert named.train_y.tolist() == [1, 0, 1]
    assert named.train_x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert named.mean == (3.0, 4.0)
    assert len(named.test_x) == 0
    numbered = table(written(tmp_path, "1,2,0\n3,4,1\n5,6,1\n7,8,0\n"))
    assert (numbered.info.classes, numbered.info.target_dtype) == (2, torch.int64)
    values = table(written(tmp_path, "1,2,0.5\n3,4,1\n"))
    assert (values.info.classes, values.info.target_dtype) == (None, torch.float32)
    assert values.train_y.tolist() == [0.5, 1.0]
    counts = table(written(tmp_path, "1,2,17\n3,4,250\n5,6,3\n"))
    assert counts.info.classes is None


def test_test_parts(tmp_path: Path) -> None:
    written(tmp_path, "a,target\n1,x\n2,y\n", "train.csv")
    assert len(table(tmp_path).test_x) == 0
    written(tmp_path, "a,target\n3,y\n", "val.csv")
    assert table(tmp_path).test_y.tolist() == [1]
    rows = "".join(f"{i},{i % 2}\n" for i in range(50))
    parts = table(written(tmp_path, rows), test_split=0.2)
    assert len(parts.train_x) + len(parts.test_x) == 50
    assert 3 < len(parts.test_x) < 20


def test_arrays(tmp_path: Path) -> None:
    x, y = np.random.rand(6, 3, 4, 4), np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", x=x, target=y)
    images = table(tmp_path / "a.npz", "npz")
    assert images.info.sample_shape == (3, 4, 4)
    assert len(images.mean) == 3
    np.savez(tmp_path / "b.npz", x_train=x, y_train=x[:, 0, 0], x_test=x[:2], y_test=x[:2, 0, 0])
    values = table(tmp_path / "b.npz", "npz")
    assert values.info.target_shape == (4,)
    assert len(values.test_x) == 2


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values want a task that takes them; what is tested on is a share of the rows."""
    rows = "".join(f"{i / 40},{i % 3},{i / 20}\n" for i in range(40))
    path = written(tmp_path, rows)
    command = f"train --data csv --data-root {path} --model mlp --stages 2 --epochs 2 --plain"
    command += " --lr 0.01 --batch-size 9"
    assert cli.run([*command.split(), "--out", str(tmp_path / "no")]) == 2
    assert (
        "are numbers: say what is to be learnt, with --task regression" in capsys.readouterr().err
    )
    more = ["--task", "regression", "--test-split", "0.2", "--out", str(tmp_path / "run")]
    assert cli.run([*command.split(), *more]) == 0
    assert "r2" in capsys.readouterr().out


WRONG = {
    "1,2\nx,3\n": "no finite number",
    "a,b\n1,2\n1,2,3\n": "line 3: 3 columns where there are 2",
    "a,b\n1,nan\nnan,2\n": "line 2: the target is nan: mend or remove it",
    "a,b\nnan,1\n1,2\n": "line 2: 'nan' is no finite number",
    "a,b\n": "holds no row",
    "a\n1\n": "has one column",
    "a,b\n1,\n": "line 2: the target is empty",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_lines(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=WRONG[text]):
        table(written(tmp_path, text))


def test_wrong_files(tmp_path: Path) -> None:
    def error(root: Path, kind: str = "csv", **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            table(root, kind, **options)
        return str(caught.value)

    assert "does not exist" in error(tmp_path / "none.csv")
    assert "train.csv is missing" in error(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    assert "truncated or corrupt" in error(tmp_path / "bad.npz", "npz")
    np.savez(tmp_path / "c.npz", images=np.zeros(3))
    assert "holds images: give arrays x and target" in error(tmp_path / "c.npz", "npz")
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), target=np.zeros(4))
    assert "target float64 [4]" in error(tmp_path / "d.npz", "npz")
    written(tmp_path, "a,target\n1,x\n2,y\n", "train.csv")
    written(tmp_path, "a,target\n1,z\n", "test.csv")
    assert "class 'z' is in no training sample" in error(tmp_path)
    assert "there are test data in" in error(tmp_path, test_split=0.5)
