"""A model of timm, cut by the names of its submodules (`pip install '.[gallery]'`).

Any model of timm can be cut so; `print(model)` shows the names. Submodules that are not named belong to the
unit after them: here the stem to `maxpool`, the pooling to `fc`. The data are scikit-learn's digits,
enlarged to 32x32.

    python docs/gallery/timm_model.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/timm_model.py

Both print {"accuracy": 0.98}.
"""

import json

import pipelocal as pl
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

torch.manual_seed(0)  # the same weights, and the same split, on every rank
model = timm.create_model("resnet10t", in_chans=1, num_classes=10)  # or pretrained=True
net = pl.Chain.from_module(
    model,
    units=["maxpool", "layer1", "layer2", "layer3", "layer4", "fc"],
    input_shape=(1, 32, 32),
)

pixels, labels = (torch.from_numpy(part[:1000]) for part in load_digits(return_X_y=True))
images = nn.functional.interpolate(pixels.float().view(-1, 1, 8, 8) / 16 - 0.5, scale_factor=4)
train, test = random_split(TensorDataset(images, labels), [0.8, 0.2])

pipe = pl.Pipeline(
    net,
    stages=3,
    optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.05), lr=2e-3),
    schedule="cosine",
    clip_norm=1.0,
)
summary = pipe.fit(train, test, epochs=4, batch_size=50)
trained = pipe.module()  # the plain network, with timm's names of the weights
timm.create_model("resnet10t", in_chans=1, num_classes=10).load_state_dict(trained.state_dict())
print(json.dumps({"accuracy": round(summary["eval_accuracy"], 3)}))
