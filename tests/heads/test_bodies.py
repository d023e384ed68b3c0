"""What is exported, the bodies and the model's own classifier, has nothing of any head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.heads import HEADS
from tests.heads.test_downstream import BYTES, CPU, IMAGES


@pytest.mark.parametrize(
    ("model", "head"),
    [
        *(("resnet8", head) for head in HEADS),
        *(("gpt", head) for head in ("linear", "mlp", "downstream=0", "twin=all:next")),
    ],
)
def test_a_body_is_the_same_with_every_head(model: str, head: str) -> None:
    """Its weights at the start, their names in the exported network, and no tensor of it is the head's."""
    info = BYTES if model == "gpt" else IMAGES
    blueprint = blueprint_of(TrainConfig(model=model, head=head, stages=2), info=info)
    body, auxiliary = blueprint.build_parts(1, device=CPU)
    cut = blueprint.cuts[0]
    alone = blueprint.chain.build(cut.start, cut.stop, seed=0)
    values = blueprint.chain.whole_state(body, cut.start, cut.stop)
    for name, value in blueprint.chain.whole_state(alone, cut.start, cut.stop).items():
        assert torch.equal(value, values[name])
    whole = blueprint.chain.build_whole(seed=0).state_dict()
    assert {name: whole[name].shape for name in values} == {n: v.shape for n, v in values.items()}
    assert not _places(body) & _places(auxiliary)


def _places(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.state_dict().values()}
