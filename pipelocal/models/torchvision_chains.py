"""torchvision's own classifiers as chains, under torchvision's names.

The modules and the parameter names are torchvision's, so state dicts are interchangeable. Only where
torchvision's ``forward`` does something between two modules does a unit use another module instead
(``nn.Flatten``, :class:`PatchTokens`, ...).

Every unit outputs ``[B, C, H, W]``, the vision transformer's ``[B, T, C]`` with the class token
first.

- ResNet: He et al. 2016, arXiv 1512.03385; torchvision puts a block's stride on its 3x3 convolution.
- VGG with BatchNorm: Simonyan and Zisserman 2015, arXiv 1409.1556.
- ViT: Dosovitskiy et al. 2021, arXiv 2010.11929.
- ConvNeXt: Liu et al. 2022, arXiv 2201.03545.
- Swin: Liu et al. 2021, arXiv 2103.14030.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import torchvision_start as start
from pipelocal.models.chain import Chain
from pipelocal.models.patch_tokens import ClassToken, PatchTokens
from pipelocal.models.unit import Shape, Unit
from pipelocal.system.torchvision import import_torchvision

Part = tuple[str, str | None, nn.Module]
"""Name, prefix and module of a unit, as in :class:`Unit`; the module is on the meta device."""

CLASSIFIER = "classifier"
"""Name of the classifier, after the last unit; its parameters keep torchvision's names."""

VIT_SMALL = {"num_layers": 7, "num_heads": 4, "hidden_dim": 256, "mlp_dim": 512}
"""The sizes of ViT-Lite-7 (Hassani et al. 2021, arXiv 2104.05704), designed for CIFAR's 32x32."""


def resnet(name: str, input_shape: Shape, classes: int) -> Chain:
    """``resnet18`` to ``resnet152``: the stem and each residual block are units. Accepts any image size."""
    _check_images(name, input_shape, least=1)

    def parts(model: Any) -> Iterator[Part]:
        yield "stem", "", _row(model, "conv1", "bn1", "relu", "maxpool")
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            for number, block in getattr(model, layer).named_children():
                yield f"{layer}.{number}", None, block
        yield CLASSIFIER, "", _row(model, "avgpool", nn.Flatten(1), "fc")

    return _chain(_constructor(name), "conv1", start.resnet, parts, input_shape, classes)


def vgg(name: str, input_shape: Shape, classes: int) -> Chain:
    """``vgg11_bn`` or ``vgg16_bn``: a unit is a convolution with its BatchNorm, ReLU and pooling.

    A unit is named after its convolution, such as ``features.4``. Images must be at least 32x32, for the
    five poolings.
    """
    _check_images(name, input_shape, least=32)

    def parts(model: Any) -> Iterator[Part]:
        groups: list[dict[str, nn.Module]] = []
        for number, module in model.features.named_children():
            if isinstance(module, nn.Conv2d):
                groups.append({})
            groups[-1][number] = module
        for group in groups:
            first = next(iter(group))
            yield f"features.{first}", "features.", nn.Sequential(OrderedDict(group))
        yield CLASSIFIER, "", _row(model, "avgpool", nn.Flatten(1), "classifier")

    return _chain(_constructor(name), "features.0", start.vgg, parts, input_shape, classes)


def convnext(name: str, input_shape: Shape, classes: int) -> Chain:
    """``convnext_tiny``: stem, blocks and downsamplings are units. Images must be at least 32x32.

    In training, blocks skip their branch for random samples (stochastic depth, Huang et al.
    2016, arXiv 1603.09382).
    """
    _check_images(name, input_shape, least=32)

    def parts(model: Any) -> Iterator[Part]:
        for unit, module, _ in _feature_units(model.features):
            yield unit, None, module
        yield CLASSIFIER, "", _row(model, "avgpool", "classifier")

    return _chain(_constructor(name), "features.0.0", start.convnext, parts, input_shape, classes)


def swin(name: str, input_shape: Shape, classes: int) -> Chain:
    """``swin_t``: patch embedding, blocks and patch mergings are units. Images must be at least 4x4.

    torchvision's modules output ``[B, H, W, C]``. A unit outputs ``[B, C, H, W]``, so that any head
    fits; within a stage these are views of the same memory. Stochastic depth is as in ConvNeXt.
    """
    _check_images(name, input_shape, least=4)

    def parts(model: Any) -> Iterator[Part]:
        permute = import_torchvision().ops.Permute
        channels_last, channels_first = permute([0, 2, 3, 1]), permute([0, 3, 1, 2])
        for unit, module, first in _feature_units(model.features):
            folder, _, own = unit.rpartition(".")
            row: dict[str, nn.Module] = {} if first else {"channels_last": channels_last}
            row |= {own: module, "channels_first": channels_first}
            yield unit, f"{folder}.", nn.Sequential(OrderedDict(row))
        last = ("norm", "permute", "avgpool", "flatten", "head")
        yield CLASSIFIER, "", _row(model, channels_last, *last)

    return _chain(_constructor(name), "features.0.0", start.swin, parts, input_shape, classes)


def vit(name: str, input_shape: Shape, classes: int) -> Chain:
    """``vit_b_16`` or ``vit_small``: the patch tokens and each encoder layer are units.

    Images must be square. ``vit_b_16`` uses patches of 16x16; ``vit_small`` of 4x4, or of 2x2 for
    images smaller than 16x16.
    """
    _check_images(name, input_shape, least=1)
    _, height, width = input_shape
    patch = 16 if name == "vit_b_16" else 4 if height >= 16 else 2
    if height != width or height % patch:
        raise UserError(
            f"model '{name}' wants square images whose side is a multiple of {patch}, but the data's "
            f"are {height}x{width}"
        )

    make = (
        partial(_constructor("VisionTransformer"), patch_size=patch, **VIT_SMALL)
        if name == "vit_small"
        else _constructor(name)
    )
    make = partial(make, image_size=height)

    def parts(model: Any) -> Iterator[Part]:
        encoder = model.encoder
        tokens = PatchTokens(
            model.conv_proj, model.class_token, encoder.pos_embedding, encoder.dropout
        )
        yield "tokens", "", tokens
        for layer, module in encoder.layers.named_children():
            yield f"encoder.layers.{layer}", None, module
        norm = nn.Sequential(OrderedDict(ln=encoder.ln))
        row = OrderedDict(encoder=norm, class_token=ClassToken(), heads=model.heads)
        yield CLASSIFIER, "", nn.Sequential(row)

    return _chain(make, "conv_proj", start.vit, parts, input_shape, classes)


def _chain(
    make: Callable[..., nn.Module],
    first: str,
    rule: start.Rule,
    parts: Callable[[Any], Iterator[Part]],
    input_shape: Shape,
    classes: int,
) -> Chain:
    """Build the chain of a torchvision model, whose constructor runs on the meta device.

    Args:
        make: the constructor.
        first: path of the convolution that takes the image.
        rule: draws its initial parameters.
        parts: splits the model; the last part is the classifier.
        input_shape: shape of one image.
        classes: number of classes.
    """
    with torch.device("meta"):
        model = make(num_classes=classes)
        conv = model.get_submodule(first)
        assert isinstance(conv, nn.Conv2d)
        if conv.in_channels != input_shape[0]:
            model.set_submodule(first, _with_channels(conv, input_shape[0]))
    units = [
        Unit(name=name, prefix=prefix, build=partial(start.drawn, module, rule))
        for name, prefix, module in parts(model)
    ]
    return Chain(
        units[:-1],
        classifier=units[-1],
        input_shape=input_shape,
        classes=classes,
        whole=lambda: copy.deepcopy(model).to_empty(device="cpu"),
    )


def _feature_units(features: nn.Sequential) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield name, module and whether it is the first, of the units of ConvNeXt and Swin.

    In both, the even entries of ``features`` are the stem and the downsamplings, the odd ones sequences
    of blocks.
    """
    for index, module in enumerate(features):
        if index % 2 == 0:
            yield f"features.{index}", module, index == 0
        else:
            for number, block in module.named_children():
                yield f"features.{index}.{number}", block, False


def _row(model: nn.Module, *members: str | nn.Module) -> nn.Sequential:
    """Put modules in sequence: some of the model's by name, and others without parameters."""
    return nn.Sequential(
        OrderedDict(
            (member, getattr(model, member))
            if isinstance(member, str)
            else (f"{type(member).__name__.lower()}_{position}", member)
            for position, member in enumerate(members)
        )
    )


def _constructor(name: str) -> Callable[..., Any]:
    return getattr(import_torchvision().models, name)  # type: ignore[no-any-return]


def _with_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return a convolution like ``conv`` for other image channels: torchvision's all take three."""
    size: Any = conv.kernel_size
    stride: Any = conv.stride
    padding: Any = conv.padding
    bias = conv.bias is not None
    return nn.Conv2d(channels, conv.out_channels, size, stride=stride, padding=padding, bias=bias)


def _check_images(name: str, input_shape: Shape, *, least: int) -> None:
    if len(input_shape) != 3:
        raise UserError(
            f"model '{name}' wants images [C, H, W], but the data's samples are {list(input_shape)}"
        )
    _, height, width = input_shape
    if min(height, width) < least:
        raise UserError(
            f"model '{name}' wants images of {least}x{least} at least, but the data's are "
            f"{height}x{width}"
        )
