"""InfoPro: early stages also keep what a decoder needs (Wang et al. 2021, arXiv 2101.10832).

A stage that minimises its own loss alone throws away what later stages would need. Here the auxiliary stages
minimise ``a * reconstruction + b * task``, with weights that change linearly over them; the last stage, whose
head is the classifier, has its task alone::

    stage              1           2     ...   K-1              K
    a, reconstruction  first             ...   last             0
    b, task            first             ...   last             1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.unit import Shape
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import LocalPass, Objective, Place, Relay
from pipelocal.objective.options import check_words

IMAGE = "image"
DECODER_CHANNELS = 12
"""Of the paper's decoder."""
SQUARED_GAIN = (9 * DECODER_CHANNELS) ** -0.5
"""Of what a decoder of images makes, where its error is squared: one over the root of the number of values
that each output sums. Unscaled, the error's curvature is some 40 for grey images, and training with momentum
diverges at a learning rate of 0.1."""
NARROWING = 4
"""The decoder of tokens and vectors is this many times narrower than what it decodes."""


@dataclass(frozen=True, kw_only=True)
class InfoPro(ForwardRecipe):
    """Reconstruction beside the task, more of it in early stages; its options.

    The defaults are our cheap form. The paper's for ResNet-32 in 4 stages: ``reconstruction=6
    last_reconstruction=1 task=0 last_task=2 decoder=full error=bce``.

    Args:
        target: what is reconstructed: the model's ``image``, which is relayed over the edges, or the
            stage's own ``input``, which costs no byte.
        reconstruction: weight of the reconstruction at the first stage.
        last_reconstruction: its weight at the last auxiliary stage.
        task: weight of the task's loss at the first stage. With 0 the head learns nothing there.
        last_task: its weight at the last auxiliary stage.
        decoder: of images: ``pooled`` (at the feature's own size, against the target's mean over each
            place) or ``full`` (the feature is enlarged to the target's size first).
        error: ``mse``, or ``bce``: binary cross entropy against the image, each channel scaled to 0 to 1
            over the batch.

    Raises:
        UserError: a weight is negative, or the options do not go together.
    """

    target: Literal["image", "input"] = "image"
    reconstruction: float = 1.0
    last_reconstruction: float = 0.0
    task: float = 0.3
    last_task: float = 1.0
    decoder: Literal["pooled", "full"] = "pooled"
    error: Literal["mse", "bce"] = "mse"

    def __post_init__(self) -> None:
        check_words(self)
        for name in ("reconstruction", "last_reconstruction", "task", "last_task"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(
                    f"InfoPro: {name}={getattr(self, name)}: give a number of at least 0"
                )
        if self.error == "bce" and self.target != "image":
            raise UserError("InfoPro: error=bce is for target=image: choose error=mse")

    def weights(self, number: int, stages: int) -> tuple[float, float]:
        """Return the weights of reconstruction and task of a stage."""
        last = stages - 1
        if number > last:
            return 0.0, 1.0
        share = (number - 1) / (last - 1) if last > 1 else 0.0
        return (
            (1 - share) * self.reconstruction + share * self.last_reconstruction,
            (1 - share) * self.task + share * self.last_task,
        )

    def check_stages(self, stages: int) -> None:
        """Refuse a single stage, and with two of them the weights of a second that reconstructs.

        Raises:
            UserError: the objective, or a weight, would do nothing.
        """
        if stages == 1:
            raise UserError(
                "InfoPro reconstructs in the stages before the last, and there is one stage: give --stages 2 "
                "or more, or choose --objective greedy"
            )
        lasts = ("last_reconstruction", "last_task")
        given = [name for name in lasts if getattr(self, name) != getattr(InfoPro, name)]
        if stages == 2 and given:
            raise UserError(
                f"InfoPro: {' and '.join(given)} would do nothing, as of 2 stages the first alone "
                f"reconstructs: leave it out, or give --stages 3 or more"
            )

    def relays(self, stages: int) -> Sequence[Relay]:
        """Have the image relayed up to the last stage that reconstructs it."""
        until = max((k for k in range(1, stages) if self.trains_beside(k, stages)), default=0)
        return (
            [Relay(name=IMAGE, of=0, until=until)] if self.target == "image" and until > 1 else []
        )

    def for_stage(self, place: Place) -> Objective:
        """Make the objective of a stage.

        Raises:
            UserError: nothing can be reconstructed from the stage's output.
        """
        reconstruction, task = self.weights(place.number, place.stages)
        if (reconstruction, task) == (0.0, 1.0):
            return Greedy()
        decoder = None if reconstruction == 0 else self.beside_head(place)
        if decoder is None and reconstruction > 0:
            return Greedy()
        return Reconstructing(self, reconstruction, task, decoder, stage=place.number)

    def trains_beside(self, number: int, stages: int) -> bool:
        """Return whether a stage reconstructs."""
        return self.weights(number, stages)[0] > 0

    def beside_head(self, place: Place) -> nn.Module | None:
        """Build a stage's decoder; None at a first stage whose samples cannot be reconstructed.

        Raises:
            UserError: nothing can be reconstructed from the stage's output.
        """
        made = place.output_shape
        wanted = place.sample_shape if self.target == "image" else place.input_shape
        if len(made) == len(wanted) == 3:
            gain = SQUARED_GAIN if self.error == "mse" else 1.0
            return MapDecoder(made[0], wanted, full=self.decoder == "full", gain=gain)
        if self.target == "image":
            raise UserError(
                f"InfoPro: stage {place.number} makes {list(made)} of samples {list(wanted)}, and only "
                f"images [C, H, W] are reconstructed of images: choose target=input"
            )
        if len(made) == len(wanted) == 2 and made[0] == wanted[0]:
            return narrow_decoder(made[1], wanted[1])
        if len(made) == 1 and len(wanted) > 0:
            return nn.Sequential(narrow_decoder(made[0], prod(wanted)), nn.Unflatten(1, wanted))
        later = any(self.trains_beside(k, place.stages) for k in range(2, place.stages))
        if place.number == 1 and later:
            return None  # such as an embedding of token numbers, or of an image
        mend = "choose another cut, or --objective greedy"
        if place.number == 1:
            mend = "give last_reconstruction above 0, and 3 stages or more, so that a later one reconstructs"
        raise UserError(
            f"InfoPro: stage {place.number} makes {list(made)} of inputs {list(wanted)}, which cannot be "
            f"reconstructed of it: {mend}"
        )


class Reconstructing(Greedy, nn.Module):
    """The weighted sum of the task's loss and the error of a decoder, which the stage's optimizer trains.

    Args:
        options: target and error.
        reconstruction: weight of the error.
        task: weight of the task's loss.
        decoder: decodes the target from the body's output; None where the weight is 0.
        stage: the stage's number; the image is the input of the first.
    """

    def __init__(
        self,
        options: InfoPro,
        reconstruction: float,
        task: float,
        decoder: nn.Module | None,
        *,
        stage: int,
    ) -> None:
        nn.Module.__init__(self)
        self._options, self._stage = options, stage
        self.weight, self.task_weight, self.decoder = reconstruction, task, decoder
        self.figure_names = () if decoder is None else ("reconstruction",)

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """See :class:`~pipelocal.objective.greedy.Greedy`."""
        task = self.task_weight * super().loss(local, out)
        if self.decoder is None:
            return task
        target = self._target(local)
        if not target.is_floating_point():
            raise UserError(
                f"InfoPro: inputs of {target.dtype} cannot be reconstructed: choose --objective greedy"
            )
        decoded = self.decoder(out.to(next(self.decoder.parameters()).dtype))
        error = reconstruction_error(
            decoded, target.to(decoded.dtype), binary=self._options.error == "bce"
        )
        self.figures["reconstruction"] = error.detach()
        return self.weight * error + task

    def _target(self, local: LocalPass) -> Tensor:
        if self._options.target == "input" or self._stage == 1:
            return local.x.detach()
        if IMAGE not in local.relayed:
            raise UserError(
                f"InfoPro: stage {self._stage} reconstructs the image, which is not relayed to it: give "
                f"InfoPro itself as the objective, or one that passes on its method relays(stages)"
            )
        return local.relayed[IMAGE]


class MapDecoder(nn.Module):
    """The paper's decoder without its sigmoid: 3x3 convolution to 12 channels, norm, ReLU, 3x3 convolution.

    Maps ``[B, C, h, w]`` to ``[B, C0, h, w]``, or to ``[B, C0, H, W]`` if ``full``.

    Args:
        channels: number of channels C.
        target: shape ``[C0, H, W]`` of one row of the target.
        full: whether the feature is first enlarged to the target's size, bilinearly with aligned corners.
        gain: what is made is multiplied by this.
    """

    def __init__(self, channels: int, target: Shape, *, full: bool, gain: float) -> None:
        super().__init__()
        self._gain = gain
        self._size = list(target[1:]) if full else None
        self.hidden = nn.Conv2d(channels, DECODER_CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(DECODER_CHANNELS)
        self.colours = nn.Conv2d(DECODER_CHANNELS, target[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self._size is not None:
            x = F.interpolate(x, self._size, mode="bilinear", align_corners=True)
        made: Tensor = self.colours(F.relu(self.norm(self.hidden(x))))
        return self._gain * made


def narrow_decoder(features: int, target: int) -> nn.Sequential:
    """Build the decoder of tokens and vectors, of LoPT's form (arXiv 2605.04913): linear, GELU, linear."""
    width = max(1, features // NARROWING)
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, target))


def reconstruction_error(decoded: Tensor, target: Tensor, *, binary: bool = False) -> Tensor:
    """Compute the mean error of what was decoded.

    Args:
        decoded: ``[B, ...]``; of images ``[B, C, h, w]``.
        target: ``[B, ...]``; images ``[B, C, H, W]`` are pooled to the decoded size.
        binary: whether it is the binary cross entropy of logits, with each channel of the target scaled to 0
            to 1 by its least and greatest value in the batch.
    """
    if binary:
        over = (0, *range(2, target.dim()))
        low, high = target.amin(over, keepdim=True), target.amax(over, keepdim=True)
        target = (target - low) / (high - low).clamp_min(1e-12)
    if target.dim() == 4:
        target = F.adaptive_avg_pool2d(target, (decoded.shape[2], decoded.shape[3]))
    return (F.binary_cross_entropy_with_logits if binary else F.mse_loss)(decoded, target)
