"""A folder of images: torchvision's ResNet-18 with augmentation by transforms.v2 and MixUp.

Give a folder with train/CLASS/*.png and val/CLASS/*.png, and a smaller rate and more epochs with it. Without
one, a thousand of scikit-learn's digits are written into a temporary folder as such a folder.

    python docs/gallery/image_folder.py [FOLDER]
    torchrun --standalone --nproc-per-node 2 docs/gallery/image_folder.py [FOLDER]

Without a folder both print {"accuracy": 0.975}.
"""

import json
import sys
import tempfile
from pathlib import Path

import pipelocal as pl
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

SIZE = 32


def write_digits(folder: Path) -> None:
    """Write digits as PNG files, 800 to train on and 200 to evaluate on."""
    pixels, labels = load_digits(return_X_y=True)
    for number, (pixel, label) in enumerate(zip(pixels[:1000], labels[:1000], strict=True)):
        path = folder / ("val" if number % 5 == 0 else "train") / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixel * 15.9).astype("uint8").reshape(8, 8)).save(path)


def train_on(folder: Path) -> dict[str, float]:
    """Train on a folder of images; the figure."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    augmented = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.7, 1.0)), *to_tensor])
    plain = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *to_tensor])
    train = ImageFolder(folder / "train", transform=augmented)
    test = ImageFolder(folder / "val", transform=plain)
    torch.manual_seed(0)  # the same weights on every rank
    model = torchvision.models.resnet18(num_classes=len(train.classes))
    net = pl.Chain.from_module(
        model,
        units=["maxpool", "layer1", "layer2", "layer3", "layer4", "fc"],
        input_shape=(3, SIZE, SIZE),
    )
    pipe = pl.Pipeline(
        net,
        cut=["layer3"],
        task=pl.tasks.Classification(classes=len(train.classes)),
        optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.05), lr=2e-3),
        schedule="cosine",
    )
    summary = pipe.fit(train, test, epochs=3, batch_size=50, mixup=0.2)
    return {"accuracy": round(summary["eval_accuracy"], 3)}


if len(sys.argv) > 1:
    print(json.dumps(train_on(Path(sys.argv[1]))))
else:
    with tempfile.TemporaryDirectory() as made:
        write_digits(Path(made))
        print(json.dumps(train_on(Path(made))))
