"""Every classification network of torchvision trains, evaluates, exports, and loads into its own class."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pipelocal
from pipelocal.config import EvaluateConfig, ExportConfig, TrainConfig
from pipelocal.config.training import train
from pipelocal.data import DATASETS, ArrayDataset, DataInfo, DatasetEntry
from pipelocal.models import Chain, Shape
from pipelocal.ranks.world import World
from pipelocal.results.evaluate import evaluate
from pipelocal.results.export import export
from pipelocal.system.torchvision import import_torchvision

UNITS = {
    "alexnet": r"features\.\d+|classifier",
    "convnext": r"features\.\d|classifier",
    "densenet": r"features\.(pool0|denseblock\d|transition\d|norm5)|classifier",
    "efficientnet": r"features\.\d|classifier",
    "googlenet": r"maxpool\d|inception\w\w|fc",
    "inception": r"maxpool\d|Mixed_\w\w|fc",
    "maxvit": r"stem|blocks\.\d|classifier",
    "mnasnet": r"layers\.(7|8|9|10|11|12|13|16)|classifier",
    "mobilenet": r"features\.\d+|classifier",
    "regnet": r"stem|trunk_output\.block\d|fc",
    "resne": r"layer\d\.\d+|fc",  # ResNet, ResNeXt and wide ones
    "wide_resnet": r"layer\d\.\d+|fc",
    "shufflenet": r"maxpool|stage\d|conv5|fc",
    "squeezenet": r"features\.\d+|classifier",
    "swin": r"features\.\d|head",
    "vgg": r"features\.\d+|classifier",
    "vit": r"encoder\.layers\.encoder_layer_\d+|heads",
}
"""Of each family, by the first letters of its names, which submodules are units."""

QUICK = ["densenet_small"]
LARGEST = 150_000_000
"""Parameters of a network that is trained here; of larger ones the chain is made, without memory."""

tv: Any = import_torchvision().models
SLOW = sorted(set(tv.list_models(module=tv)) - {*QUICK, "regnet_y_128gf"})
"""All others; not one of 645 million parameters whose constructor looks at values, so needs the memory."""


def side_of(name: str) -> int:
    """Length of a square image, the least that the networks of a family take, or nearly so."""
    sides = {"inception": 96, "maxvit": 224, "vit_h": 56}
    return next((side for start, side in sides.items() if name.startswith(start)), 64)


def author_s_own(name: str, classes: int) -> nn.Module:
    """The network as its author wrote it."""
    if name == "densenet_small":
        return tv.DenseNet(4, (2, 2, 2), 8, num_classes=classes)  # type: ignore[no-any-return]
    more: dict[str, Any] = {}
    if name.startswith(("googlenet", "inception")):
        more = {"aux_logits": False, "init_weights": False}
    elif name.startswith("vit"):
        more = {"image_size": side_of(name)}
    return getattr(tv, name)(num_classes=classes, **more)  # type: ignore[no-any-return]


def chain_of(name: str, shape: Shape, classes: int) -> Chain:
    model = author_s_own(name, classes)
    pattern = next(units for start, units in UNITS.items() if name.startswith(start))
    units = [path for path, _ in model.named_modules() if re.fullmatch(pattern, path)]
    return Chain.from_module(model, units=units, input_shape=shape, classes=classes)


def __getattr__(name: str) -> Any:
    """A function for ``--model`` by the name of each network."""
    if not hasattr(tv, name) and name not in QUICK:
        raise AttributeError(name)
    return lambda shape, classes: chain_of(name, shape, classes)


def images(side: int) -> DatasetEntry:
    """Noise of 10 classes: 8 images to train on and 4 to test on."""
    info = DataInfo(name=f"noise-{side}", sample_shape=(3, side, side), classes=10)
    x = torch.randn(12, 3, side, side, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 10
    return DatasetEntry(
        info,
        lambda _root, _seed: ArrayDataset(
            info=info,
            train_x=x[:8],
            train_y=y[:8],
            test_x=x[8:],
            test_y=y[8:],
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        ),
    )


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_the_zoo(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = images(side_of(name))
    if name in SLOW and tv.get_model_weights(name).DEFAULT.meta["num_params"] > LARGEST:
        with torch.device("meta"):
            chain = chain_of(name, entry.info.sample_shape, 10)
        assert len(chain.tried()[1]) == len(chain.units)
        return
    monkeypatch.setitem(DATASETS._entries, entry.info.name, entry)
    run, file = str(tmp_path / "run"), str(tmp_path / "model.pt")
    config = TrainConfig(
        model=f"{__name__}:{name}",
        data=entry.info.name,
        stages=3,
        batch_size=4,
        epochs=1,
        lr=0.001,
        out=run,
        plain=True,
    )
    train(config, World.alone(), stream=io.StringIO())
    assert evaluate(EvaluateConfig(run=run))["stages"][2]["loss"] > 0
    export(ExportConfig(run=run, to=file))
    own = author_s_own(name, 10).eval()
    own.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, *entry.info.sample_shape)
    with torch.no_grad():
        torch.testing.assert_close(own(x), pipelocal.load(run)(x))
