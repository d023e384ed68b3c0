"""In fresh processes: what a process has once imported cannot be imported anew."""

import os
import subprocess
import sys

import pytest
import torch

from pipelocal import _torchvision


def run_fresh(code: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_models_datasets_and_transforms_work() -> None:
    run_fresh(
        """
import sys
import torch
from pipelocal._torchvision import import_torchvision
torchvision = import_torchvision()
assert torchvision is import_torchvision() is sys.modules["torchvision"]
image, _ = torchvision.datasets.FakeData(2, (3, 40, 40), num_classes=3)[0]
crop = torchvision.transforms.v2.RandomCrop(32)(image)
x = torchvision.transforms.v2.functional.to_image(crop)[None].float()
assert torchvision.models.resnet18(num_classes=3).eval()(x).shape == (1, 3)
"""
    )


def test_nothing_is_declared_where_the_operators_exist() -> None:
    # Operators that are there already stand for the compiled ones of an ordinary install.
    run_fresh(
        """
import torch
from pipelocal import _torchvision
try:
    import torchvision
except RuntimeError:
    _torchvision._forget_half_imported()
    mine = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _torchvision._SCHEMAS:
        mine.define(schema)
_torchvision.import_torchvision()
assert not _torchvision._declarations
"""
    )


@pytest.mark.parametrize(
    ("cuda", "message"),
    [("13.0", "operator torchvision::nms does not exist"), (None, "something else")],
)
def test_other_failures_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, message: str
) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(_torchvision, "_import_parts", fail)
    with pytest.raises(RuntimeError, match=message):
        _torchvision.import_torchvision()
