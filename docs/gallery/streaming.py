"""A stream of data without a length, gone on with where training stopped.

The data set reads a file line by line, for ever, and says in ``state_dict`` where it is, so that nothing is
read again. Training stops after 70 batches, and goes on from its folder up to 120, to the figure of 120
batches without a stop. A run that Ctrl-C or a crash ended goes on by the same ``fit(..., out=...)``.

    python docs/gallery/streaming.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/streaming.py

Both print {"accuracy": 0.862, "without_a_stop": 0.862}.
"""

import json
import shutil
from pathlib import Path

import pipelocal as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import IterableDataset

FOLDER = Path("runs/streaming")
digits = list(zip(*load_digits(return_X_y=True), strict=True))
test = [(torch.tensor(pixels).float() / 16, label) for pixels, label in digits[1500:]]


class Lines(IterableDataset):
    """Samples from the lines of a file, from its beginning again at its end."""

    def __init__(self, file: Path) -> None:
        self.file, self.place = file, 0

    def __iter__(self):
        while True:
            with self.file.open() as lines:
                lines.seek(self.place)
                while line := lines.readline():
                    self.place = lines.tell()
                    *pixels, label = map(float, line.split())
                    yield torch.tensor(pixels) / 16, int(label)
            self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def train(batches: int, **going_on: str) -> float:
    """Train up to so many batches; the accuracy on 297 digits."""
    torch.manual_seed(0)  # the same weights on every rank
    layers = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(3)]
    pipe = pl.Pipeline(
        nn.Sequential(*layers, nn.Linear(64, 10)),
        stages=3,
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=2e-3),
    )
    stream = Lines(FOLDER / "digits.txt")
    summary = pipe.fit(stream, test, max_steps=batches, batch_size=50, **going_on)
    return round(summary["eval_accuracy"], 3)


FOLDER.mkdir(parents=True, exist_ok=True)
rows = (f"{' '.join(map(str, pixels))} {label}\n" for pixels, label in digits[:1500])
(FOLDER / "digits.txt").write_text("".join(rows))
shutil.rmtree(FOLDER / "run", ignore_errors=True)  # of an earlier trial; no rank is in fit yet
train(70, out=f"{FOLDER}/run")
figure = train(120, resume=f"{FOLDER}/run")
print(json.dumps({"accuracy": figure, "without_a_stop": train(120)}))
