"""Regression on a table: how a disease of 442 patients progressed, from ten measurements of each.

The table is scikit-learn's diabetes set, which comes with it. A network in three stages learns a number; its
R2 on a fifth of the patients stands beside that of ridge regression.

    python docs/gallery/table.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/table.py

Both print {"r2": 0.358, "ridge_r2": 0.331}.
"""

import json

import pipelocal as pl
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

x, y = load_diabetes(return_X_y=True, scaled=False)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0)
scale = StandardScaler().fit(x_train)  # by the training part alone
x_train, x_test = scale.transform(x_train), scale.transform(x_test)
mean, std = y_train.mean(), y_train.std()


def rows(x, y) -> TensorDataset:
    return TensorDataset(torch.tensor(x).float(), torch.tensor((y - mean) / std).float())


torch.manual_seed(0)  # the same weights on every rank
net = nn.Sequential(
    nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Dropout(0.5)),
    nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.5)),
    nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.5)),
    nn.Linear(64, 1),
)
pipe = pl.Pipeline(
    net,
    stages=3,
    task=pl.tasks.Regression(),
    optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.1), lr=1e-3),
    schedule="cosine",
)
summary = pipe.fit(rows(x_train, y_train), rows(x_test, y_test), epochs=20, batch_size=32)

ridge = Ridge(alpha=1.0).fit(x_train, y_train).score(x_test, y_test)
print(json.dumps({"r2": round(summary["eval"]["r2"], 3), "ridge_r2": round(ridge, 3)}))
