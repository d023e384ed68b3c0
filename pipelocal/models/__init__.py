"""Models as chains of named units, and the registry of built-in models.

A user's model is named ``package.module:function`` (or ``path/to/file.py:function``). The
function is called with ``(input_shape, classes)`` and returns a :class:`Chain` or an
``nn.Sequential`` whose last child is the classifier; :meth:`Chain.from_module` makes a chain from any
other module.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import torchvision_chains
from pipelocal.models.allconv import allconv
from pipelocal.models.chain import Chain
from pipelocal.models.gpt import gpt
from pipelocal.models.local_mixer import local_mixer
from pipelocal.models.mlp import mlp
from pipelocal.models.recurrent import recurrent
from pipelocal.models.resnet import resnet
from pipelocal.models.rnn import rnn
from pipelocal.models.unit import Shape, Unit
from pipelocal.references import Source, is_reference, plain_name, users_code
from pipelocal.registry import Registry
from pipelocal.seeding import seeded

ModelBuilder = Callable[[Shape, int], Chain]
"""Called with the shape of one sample and the number of classes."""

MODELS: Registry[ModelBuilder] = Registry("model", takes="input_shape, classes")
MODELS.register("mlp")(mlp)
MODELS.register("allconv")(allconv)
for _depth in (8, 20, 32, 110):
    MODELS.register(f"resnet{_depth}")(partial(resnet, _depth))
for _family, _names in (
    (torchvision_chains.resnet, ("resnet18", "resnet50", "resnet101", "resnet152")),
    (torchvision_chains.vgg, ("vgg11_bn", "vgg16_bn")),
    (torchvision_chains.vit, ("vit_b_16", "vit_small")),
    (torchvision_chains.convnext, ("convnext_tiny",)),
    (torchvision_chains.swin, ("swin_t",)),
):
    for _name in _names:
        MODELS.register(_name)(partial(_family, _name))
for _name, _blocks, _side, _groups, _width in (
    ("local-mixer", 4, 8, 16, 512),
    ("local-mixer-m-1-16", 1, 1, 16, 512),
    ("local-mixer-s-1-1", 1, 1, 1, 256),
):
    MODELS.register(_name)(
        partial(local_mixer, blocks=_blocks, side=_side, groups=_groups, width=_width)
    )
MODELS.register("gpt")(gpt)
MODELS.register("gpt-math")(partial(gpt, math=True))
MODELS.register("lstm")(partial(recurrent, nn.LSTM))
MODELS.register("gru")(partial(recurrent, nn.GRU))
MODELS.register("rnn")(rnn)
MODELS.register("rnn-last")(partial(rnn, last=True))


def build_chain(name: str, *, input_shape: Shape, classes: int, seed: int) -> Chain:
    """Build the chain called ``name`` in the registry, or by the user's function ``module:function``.

    Raises:
        UserError: there is no such model, or the user's function cannot be imported or returns no chain.
    """
    builder = MODELS.get(name)
    if not is_reference(name):
        return builder(input_shape, classes)
    # An nn.Sequential draws its parameters here: every rank must draw the same, and so must a run that
    # spells the path of the file differently.
    with seeded(seed, "model", plain_name(name)), users_code("model", name):
        model: object = builder(input_shape, classes)
    if isinstance(model, nn.Sequential):
        return Chain.from_sequential(model, input_shape=input_shape, classes=classes)
    if isinstance(model, Chain):
        return model
    raise UserError(
        f"model '{name}' returned {type(model).__name__}: return an nn.Sequential, or a pipelocal Chain "
        f"(Chain.from_module makes one from any module and the names of its units)"
    )


def source_of(name: str) -> Source | None:
    """Return the code of a user's model, named or registered; None for a built-in model."""
    return Source.of_name(name) if is_reference(name) else Source.of_builder(MODELS.get(name))


__all__ = [
    "MODELS",
    "Chain",
    "ModelBuilder",
    "Shape",
    "Unit",
    "build_chain",
    "local_mixer",
    "source_of",
]
