"""LocalMixer, an MLP-Mixer for local losses (Ren et al. 2023, arXiv 2210.03310, figures 1 and 2).

::

    block 1       patches > norm, linear, norm, ReLU > norm, linear in groups, norm, ReLU
    block 2, ...  norm, mixing of tokens, norm, ReLU > norm, linear, norm, ReLU
                  > norm, linear in groups, norm, plus what the block is given, ReLU
    classifier    norm of each group, mean over the patches, linear

Norms have no parameters, and around layers in groups they are of each group, so that what a block makes in
one patch and group depends on its last layers there alone. Each block is a unit. The paper counts the
parameters with a head for each block and one more readout; here the last block's head is the readout.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.mixing import (
    GroupedLayerNorm,
    GroupedLinear,
    Patches,
    Residual,
    TokenMean,
    TokenMixing,
    he_normal,
)
from pipelocal.models.unit import Shape, Unit


def local_mixer(
    input_shape: Shape, classes: int, *, blocks: int, side: int, groups: int, width: int
) -> Chain:
    """Build a LocalMixer.

    Args:
        input_shape: images ``[C, H, W]``.
        classes: width of the logits.
        blocks: number of blocks.
        side: patches along each side of an image.
        groups: groups of channels.
        width: number of channels.

    Raises:
        UserError: the samples are no images, or cannot be divided so.
    """
    if len(input_shape) != 3 or any(size % side for size in input_shape[1:]):
        raise UserError(
            f"local-mixer: samples {list(input_shape)}: give images [C, H, W] whose sides are multiples of "
            f"{side}, its patches along a side, or a model of fewer (local-mixer-m-1-16 has one)"
        )
    if width % groups:
        raise UserError(f"local-mixer: {width} channels do not fall into {groups} groups")
    channels, height, breadth = input_shape
    inputs = channels * (height // side) * (breadth // side)
    first = Unit(name="block1", build=partial(_first, inputs, side, groups, width))
    others = [
        Unit(name=f"block{number}", build=partial(_block, side * side, groups, width))
        for number in range(2, blocks + 1)
    ]
    classifier = Unit(name="classifier", build=partial(_classifier, groups, width, classes))
    return Chain([first, *others], classifier=classifier, input_shape=input_shape, classes=classes)


def _first(inputs: int, side: int, groups: int, width: int) -> nn.Module:
    return nn.Sequential(Patches(side), *_channels(inputs, groups, width), nn.ReLU())


def _block(tokens: int, groups: int, width: int) -> nn.Module:
    norm = GroupedLayerNorm
    mixing = (norm(), TokenMixing(tokens, tokens), norm(), nn.ReLU())
    return nn.Sequential(Residual(*mixing, *_channels(width, groups, width)), nn.ReLU())


def _channels(inputs: int, groups: int, width: int) -> list[nn.Module]:
    norm = GroupedLayerNorm
    linear = nn.Linear(inputs, width)
    he_normal(linear.weight)
    nn.init.zeros_(linear.bias)
    grouped = GroupedLinear(width, width, groups)
    return [norm(), linear, norm(), nn.ReLU(), norm(groups), grouped, norm(groups)]


def _classifier(groups: int, width: int, classes: int) -> nn.Module:
    return nn.Sequential(GroupedLayerNorm(groups), TokenMean(), nn.Linear(width, classes))
