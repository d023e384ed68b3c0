"""Belief propagation for dense labels, beside networks without it, in two stages that learn locally.

Every pixel of a noisy mosaic of four images is labelled: background, or what kind of thing it belongs to. The
networks are those of label_networks.py; ``frozen`` is ``potts`` whose stage 1 is that of the trained
``unary`` and stays as it is. Without --data-root the images are scikit-learn's digits, and it takes
seconds.

    python docs/gallery/belief_propagation/run.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/belief_propagation/run.py
    python docs/gallery/belief_propagation/run.py --data-root DIR --count 2000 --epochs 8 --json bp.json

The first two print the share of pixels with the right label, after a training that is too short to tell
the networks apart:
{"unary": 0.585, "potts": 0.57, "edges": 0.581, "deeper": 0.575, "frozen": 0.566, "levels": 0.568}
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

import label_networks
import pipelocal as pl
import torch
from label_mosaics import make
from torch import nn

NETWORKS = ("unary", "potts", "edges", "deeper", "frozen", "levels")
BATCH = 32


def network(name: str, given: argparse.Namespace, unary: nn.Module | None) -> pl.Pipeline:
    """Return an untrained network in two stages; ``frozen`` begins with stage 1 of the trained ``unary``."""
    side = 16 if given.data_root is None else 56
    form = "potts" if name == "frozen" else name
    torch.manual_seed(given.seed)  # the same weights on every rank
    net = getattr(label_networks, form)((1, side, side), label_networks.LABELS)
    if name == "frozen":
        assert unary is not None
        weights = unary.state_dict()
        stage_1 = {key: weights[key] for key in weights if key.startswith(("conv1.", "conv2."))}
        net.load_state_dict(stage_1, strict=False)
    return pl.Pipeline(
        net,
        cut=[label_networks.CUTS[form]],
        task=pl.tasks.Segmentation(classes=label_networks.LABELS),
        head=label_networks.LevelHead if form == "levels" else "linear",
        objective=pl.Greedy(),
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=given.lr),
        schedule="cosine",
        freeze_stage="1:0" if name == "frozen" else None,
        seed=given.seed,
    )


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Return what is reported of a training: shares from 0 to 1, seconds."""
    found = {name: summary["eval"][name] for name in ("pixel_accuracy", "mean_iou")}
    seconds = summary["seconds"] / summary["steps"]
    return {**found, "seconds_a_batch": seconds}


def main() -> None:
    """Train the networks one after the other, on the same batches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, help="folder with FashionMNIST/raw; else digits")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--noise", type=float, default=0.6, help="its standard deviation")
    parser.add_argument("--count", type=int, default=256, help="mosaics to train on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args()
    if (
        "frozen" in given.networks
        and "unary" not in given.networks[: given.networks.index("frozen")]
    ):
        parser.error("--networks frozen takes stage 1 of unary: name unary before it")

    data = functools.partial(
        make, given.data_root, noise=given.noise, count=given.count, seed=given.seed
    )
    results, unary = {}, None
    for name in given.networks:
        pipe = network(name, given, unary)
        summary = pipe.fit(
            data, epochs=given.epochs, batch_size=BATCH, evaluate_every=given.epochs, progress=False
        )
        results[name] = figures(summary)
        if name == "unary":
            unary = pipe.module()
        if os.environ.get("RANK", "0") == "0":
            shown = "  ".join(f"{key} {value:.3f}" for key, value in results[name].items())
            print(f"{name:8}{shown}", flush=True)
    if given.json is not None and os.environ.get("RANK", "0") == "0":
        settings = {key: str(value) for key, value in vars(given).items()}
        given.json.write_text(json.dumps({"settings": settings, "networks": results}, indent=2))
    print(json.dumps({name: round(each["pixel_accuracy"], 3) for name, each in results.items()}))


if __name__ == "__main__":
    main()
