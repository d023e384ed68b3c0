"""Sequences and recurrent models for the comparison of perturbation methods."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from pipelocal.data import ArrayDataset, DataInfo, load_dataset
from pipelocal.models.rnn import rnn

one_layer = partial(rnn, layers=1)
one_layer_truncated = partial(rnn, layers=1, truncated=True)
one_layer_last = partial(rnn, layers=1, last=True)
one_layer_last_truncated = partial(rnn, layers=1, last=True, truncated=True)
four_layers_last = partial(rnn, last=True)
four_layers_last_truncated = partial(rnn, last=True, truncated=True)

ROWS = 8
"""Of a digit, each a step of as many inputs."""

STEPS = 32
"""Of a window of the Mackey-Glass series."""
AHEAD = 15
STRIDE = 8
LENGTH = 5000
SETTLING = 500
TAU = 17
FINE = 10
"""Euler steps in a unit of time."""


def digits_every_step(_root: Path | None, seed: int) -> ArrayDataset:
    """The digits as 8 rows, with the label at every row."""
    digits = load_dataset("digits", root=None, seed=seed)
    return ArrayDataset(
        info=DataInfo(
            name="digits-every-step", sample_shape=(ROWS, ROWS), classes=10, target_shape=(ROWS,)
        ),
        train_x=digits.train_x.squeeze(1),
        train_y=digits.train_y[:, None].expand(-1, ROWS).contiguous(),
        test_x=digits.test_x.squeeze(1),
        test_y=digits.test_y[:, None].expand(-1, ROWS).contiguous(),
        mean=digits.mean * ROWS,
        std=digits.std * ROWS,
    )


def mackey_glass(_root: Path | None, _seed: int) -> ArrayDataset:
    """Windows of the Mackey-Glass series; targets lie ahead of what is seen, unlike in the released code.

    Training windows are from the first four fifths of the series; no window of the test touches them.
    """
    series = mackey_glass_series()
    starts = torch.arange(0, LENGTH - STEPS - AHEAD + 1, STRIDE)
    windows = torch.stack([series[start : start + STEPS + AHEAD] for start in starts.tolist()])
    x, y = windows[:, :STEPS, None], windows[:, AHEAD:, None]
    split = 4 * LENGTH // 5
    train, test = starts + STEPS + AHEAD <= split, starts >= split
    return ArrayDataset(
        info=DataInfo(
            name="mackey-glass",
            sample_shape=(STEPS, 1),
            classes=None,
            target_shape=(STEPS, 1),
            target_dtype=torch.float32,
        ),
        train_x=x[train].contiguous(),
        train_y=y[train].contiguous(),
        test_x=x[test].contiguous(),
        test_y=y[test].contiguous(),
        mean=(0.0,) * STEPS,
        std=(1.0,) * STEPS,
    )


def mackey_glass_series() -> torch.Tensor:
    """5,000 numbers of ``dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x``, of mean 0 and variance 1."""
    delay = TAU * FINE
    values = [1.2] * (delay + 1)
    for _ in range((LENGTH + SETTLING) * FINE):
        then = values[-1 - delay]
        values.append(values[-1] + (0.2 * then / (1 + then**10) - 0.1 * values[-1]) / FINE)
    series = torch.tensor(values[-LENGTH * FINE :: FINE], dtype=torch.float64)
    return ((series - series.mean()) / series.std()).float()


def persistence() -> float:
    """Mean squared error on the test part of the last value seen, in place of a prediction."""
    data = mackey_glass(None, 0)
    return float((data.test_y - data.test_x).square().mean())
