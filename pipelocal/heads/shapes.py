"""What the shapes of features and outputs say of a head: pooled or not, and of which dimensions."""

from __future__ import annotations

from torch import Tensor

from pipelocal.errors import UserError


def per_token(feature_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bool:
    """Return whether features are tokens ``[T, C]``, each with an output of its own."""
    return len(feature_shape) == 2 and len(output_shape) == 2


def are_maps(feature_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bool:
    """Return whether features and outputs are both maps, channels first."""
    return len(feature_shape) == 3 and len(output_shape) == 3


def channels_of(feature_shape: tuple[int, ...]) -> int:
    """Return C of features ``[C]``, tokens ``[T, C]`` or maps ``[C, ...]``."""
    return feature_shape[1] if len(feature_shape) == 2 else feature_shape[0]


def pooled_features(x: Tensor) -> Tensor:
    """Reduce to one vector per sample: ``[B, C]``, ``[B, T, C]`` or ``[B, C, ...]`` to ``[B, C]``."""
    if x.dim() == 2:
        return x
    return x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2)


def check_images(name: str, feature_shape: tuple[int, ...]) -> None:
    """Refuse features that are no images.

    Args:
        name: of the head, for the error.
        feature_shape: should be ``[C, H, W]``.

    Raises:
        UserError: they are others.
    """
    if len(feature_shape) != 3:
        raise UserError(
            f"head '{name}' wants features [C, H, W], but this stage makes {list(feature_shape)}: "
            f"choose --head linear"
        )
