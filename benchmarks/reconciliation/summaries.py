"""What the forms of delta keep of it, on the gradients of a network in training."""

from __future__ import annotations

import statistics
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.objective.delta_encoding import SUMMARIES, Summary
from pipelocal.ranks.host import set_up_host
from pipelocal.seeding import derive_seed

MODEL, STAGES, ROWS = "resnet20", 4, 64
SKETCHES = (64, 256, 1024)
PAIR = tuple[Tensor, Tensor]


def compare_summaries(*, steps: int) -> list[dict[str, Any]]:
    """A row for every form and head, means over the edges.

    Args:
        steps: training batches before the gradients are looked at.
    """
    rows = []
    set_up_host(1)
    for head in ("linear", "conv"):
        pairs = gradients_at_edges(head, steps)
        for form in SUMMARIES:
            for size in SKETCHES if form == "sketch" else (0,):
                found = [_compare(form, size, edge, *pair) for edge, pair in enumerate(pairs)]
                rows.append(
                    {
                        "kind": "summary",
                        "form": f"{form} {size}" if size else form,
                        "head": head,
                        **{key: statistics.fmean(one[key] for one in found) for key in found[0]},
                    }
                )
    return rows


def gradients_at_edges(head: str, steps: int) -> list[PAIR]:
    """eta and delta of one batch at each edge, per sample ``[B, ...]``."""
    config = TrainConfig(model=MODEL, stages=STAGES, head=head, objective="greedy", batch_size=ROWS)
    blueprint = blueprint_of(config)
    device = torch.device("cpu")
    stages = [
        blueprint.build_stage(number, device=device, total_steps=steps + 1)
        for number in range(1, STAGES + 1)
    ]
    data = load_dataset(config.data, root=None, seed=0)
    stream = BatchStream(data, batch_size=ROWS, seed=0, drop_last=True)
    etas: list[Tensor] = []
    deltas: list[Tensor] = []
    for step in range(steps + 1):
        epoch, position = divmod(step, stream.steps_per_epoch)
        batch = next(iter(stream.train(epoch, start=position)))
        x = batch.x
        for stage in stages:
            if step == steps:
                leaf = x.clone().requires_grad_()
                loss = stage.replay_loss(stage.replay_body(leaf), batch.target)
                etas.append(torch.autograd.grad(loss, leaf)[0] * ROWS)
            result = stage.step(x, batch.target)
            x = result.output
            if step == steps:
                deltas.append(result.output_gradient * ROWS)
    return list(zip(etas[1:], deltas[:-1], strict=True))


def _compare(form: str, size: int, edge: int, eta: Tensor, delta: Tensor) -> dict[str, float]:
    shape = tuple(delta.shape[1:])
    summary = SUMMARIES.get(form)(shape, size or 1, derive_seed(0, "delta", edge))
    message = summary.encode(delta)
    compared = cosine_similarity(
        summary.reduce(eta).flatten(1), summary.decode(message).flatten(1), dim=1
    )
    true = cosine_similarity(eta.flatten(1), delta.flatten(1), dim=1)
    back = _back(summary, message, delta)
    return {
        "bytes_per_sample": prod(summary.shape) * summary.dtype.itemsize,
        "share_of_full": prod(summary.shape) * summary.dtype.itemsize / (4 * prod(shape)),
        "cosine_to_delta": float(cosine_similarity(back, delta.flatten(1), dim=1).mean()),
        "cosine_error": float((compared - true).abs().mean()),
        "compared_cosine": float(compared.mean()),
        "true_cosine": float(true.mean()),
    }


def _back(summary: Summary, message: Tensor, delta: Tensor) -> Tensor:
    """What the message says of delta, ``[B, F]``: of a projection, its transpose's image."""
    decoded = summary.decode(message)
    if decoded.shape == delta.shape:
        return decoded.flatten(1)
    # The projection is linear: its transpose is the gradient of < reduce(z), message >.
    z = torch.zeros_like(delta, requires_grad=True)
    (back,) = torch.autograd.grad((summary.reduce(z) * message).sum(), z)
    return back.flatten(1)
