"""LocalMixers of other sizes than those in the zoo."""

from pipelocal.models import Chain, Shape, local_mixer


def mixer(input_shape: Shape, classes: int) -> Chain:
    """Four blocks of 256 channels in 16 groups over 4x4 patches: about a tenth of M/8/16's compute."""
    return local_mixer(input_shape, classes, blocks=4, side=4, groups=16, width=256)


def small_mixer(input_shape: Shape, classes: int) -> Chain:
    """Four blocks of 64 channels in 8 groups over 2x2 patches."""
    return local_mixer(input_shape, classes, blocks=4, side=2, groups=8, width=64)
