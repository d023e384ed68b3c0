"""In fresh processes: what a process has once imported cannot be imported anew."""

import os
import subprocess
import sys
from importlib.abc import Loader
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipelocal.system import torchvision as _torchvision


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
from pipelocal.system.torchvision import import_torchvision
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
import sys
import torch
try:
    import torchvision
except RuntimeError:
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
        del sys.modules[name]
    mine = torch.library.Library("torchvision", "FRAGMENT")
    from pipelocal.system import torchvision as _torchvision
    for schema in _torchvision._SCHEMAS:
        mine.define(schema)
from pipelocal.system import torchvision as _torchvision
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
    class Broken(Loader):
        def exec_module(self, module: ModuleType) -> None:
            assert module.__name__ == "torchvision"
            raise RuntimeError(message)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(RuntimeError, match=message):
        _torchvision._Loader(Broken()).exec_module(ModuleType("torchvision"))


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import torchvision", marks=pytest.mark.slow),
        "from torchvision import transforms",
    ],
)
def test_a_user_s_own_file_imports_it(tmp_path: Path, first: str) -> None:
    """Also where the package's own import comes second, and finds it there."""
    file = tmp_path / "own.py"
    file.write_text(
        f"{first}\nfrom torch import nn\nfrom torchvision.models import resnet18\n"
        "def net(shape, classes):\n"
        "    return nn.Sequential(resnet18(num_classes=8), nn.Linear(8, classes))\n"
    )
    run_fresh(
        f"""
import sys
from pipelocal.models import build_chain
assert "torchvision" not in sys.modules  # which would be slow for all others
chain = build_chain({f"{file}:net"!r}, input_shape=(3, 32, 32), classes=5, seed=0)
assert chain.shapes() == [(8,)]
from pipelocal.system.torchvision import import_torchvision
import torchvision
assert import_torchvision() is torchvision
import importlib.resources
assert importlib.resources.files("torchvision").is_dir()
"""
    )
