"""Stacks of plain recurrent layers, tanh units with explicit matrices, for sequences of vectors.

::

    layer1..n    s_t = tanh(W D x_t + R E s_(t-1))        [B, T, I] -> [B, T, C]
    classifier   V D s_t, of every step or the last one   [B, T, C] -> [B, T, classes] or [B, classes]

D and E are buffers: the unit matrix, unless an objective decorrelates by them. There are no biases. Every
sequence starts with a zero state. An image ``[C, H, W]`` is read row by row, as H vectors of C * W.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.node_layer import Link, NodeLayer, NodePass, first_matrix
from pipelocal.models.unit import Shape, Unit

LAYERS = 4
WIDTH = 64


class TanhRecurrent(NodeLayer):
    """A recurrent layer of tanh units: ``[B, T, I]``, or images ``[B, C, H, W]``, to ``[B, T, units]``.

    Args:
        inputs: width I of a step.
        units: number of units.
        truncated: whether gradients end at the state of the step before.
    """

    decorrelation: Tensor
    state_decorrelation: Tensor

    def __init__(self, inputs: int, units: int, *, truncated: bool = False) -> None:
        super().__init__()
        self.weight = first_matrix(units, inputs)
        self.recurrent = first_matrix(units, units)
        self.register_buffer("decorrelation", torch.eye(inputs))
        self.register_buffer("state_decorrelation", torch.eye(units))
        self._truncated = truncated

    def perturbed(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, NodePass]:
        """See :class:`~pipelocal.models.node_layer.NodeLayer`."""
        inputs = F.linear(steps_of(x), self.decorrelation)
        driven = F.linear(inputs, self.weight)
        if noise is not None:
            driven = driven + noise
        received, states, recurring = list[Tensor](), list[Tensor](), list[Tensor]()
        for now in driven.unbind(1):
            if states:
                before = states[-1].detach() if self._truncated else states[-1]
                recurring.append(F.linear(before, self.state_decorrelation))
                now = now + F.linear(recurring[-1], self.recurrent)
            received.append(now)
            states.append(now.tanh())
        links = [Link(weight=self.weight, decorrelation=self.decorrelation, inputs=inputs)]
        if recurring:
            links.append(
                Link(
                    weight=self.recurrent,
                    decorrelation=self.state_decorrelation,
                    inputs=torch.stack(recurring, 1),
                )
            )
        return torch.stack(states, 1), NodePass(
            received=torch.stack(received, 1), links=tuple(links)
        )


class ReadOut(NodeLayer):
    """A linear map of every step, ``[B, T, C]`` to ``[B, T, classes]``, or the last, to ``[B, classes]``.

    Args:
        channels: width C of a step.
        classes: number of outputs.
        last: whether of the last step alone.
    """

    decorrelation: Tensor

    def __init__(self, channels: int, classes: int, *, last: bool) -> None:
        super().__init__()
        self.weight = first_matrix(classes, channels)
        self.register_buffer("decorrelation", torch.eye(channels))
        self._last = last

    def perturbed(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, NodePass]:
        """See :class:`~pipelocal.models.node_layer.NodeLayer`."""
        inputs = F.linear(x[:, -1:] if self._last else x, self.decorrelation)
        received = F.linear(inputs, self.weight)
        if noise is not None:
            received = received + noise
        link = Link(weight=self.weight, decorrelation=self.decorrelation, inputs=inputs)
        out = received.squeeze(1) if self._last else received
        return out, NodePass(received=received, links=(link,))


def steps_of(x: Tensor) -> Tensor:
    """Return images ``[B, C, H, W]`` as rows ``[B, H, C * W]``, and other tensors as they are."""
    return x.transpose(1, 2).flatten(2) if x.dim() == 4 else x


def rnn(
    input_shape: Shape,
    classes: int,
    *,
    last: bool = False,
    layers: int = LAYERS,
    width: int = WIDTH,
    truncated: bool = False,
) -> Chain:
    """Build recurrent layers of tanh units with a linear read-out.

    Args:
        input_shape: ``(T, I)``, or ``(C, H, W)`` of images.
        classes: number of outputs.
        last: whether the last step alone is read out.
        layers: number of layers.
        width: units of a layer.
        truncated: whether gradients end at the state of the step before, within each layer.

    Raises:
        UserError: the samples are not sequences of vectors.
    """
    if len(input_shape) not in (2, 3):
        raise UserError(
            f"model 'rnn' takes sequences (steps, channels) or images (channels, height, width), not "
            f"{input_shape}: choose another data set or model"
        )
    inputs = input_shape[-1] if len(input_shape) == 2 else input_shape[0] * input_shape[2]
    units = [
        Unit(
            name=f"layer{i + 1}",
            build=partial(TanhRecurrent, width if i else inputs, width, truncated=truncated),
        )
        for i in range(layers)
    ]
    classifier = Unit(name="classifier", build=partial(ReadOut, width, classes, last=last))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)
