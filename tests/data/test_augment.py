import pytest
import torch
from torch import Tensor

from pipelocal.data.augment import PADDING, crop_flip, random_crop_flip


def crop_flip_slowly(image: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """One image ``[C, H, W]``, pixel by pixel from the definition."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row = row + top - PADDING
            source_column = (width - 1 - column if mirrored else column) + left - PADDING
            if 0 <= source_row < height and 0 <= source_column < width:
                out[:, row, column] = image[:, source_row, source_column]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_window_is_the_one_of_the_definition(dtype: torch.dtype) -> None:
    choices = [(t, x, m) for t in range(9) for x in range(9) for m in (False, True)]
    images = torch.randint(1, 256, (len(choices), 2, 5, 7)).to(dtype)
    out = crop_flip(
        images,
        top=torch.tensor([top for top, _, _ in choices]),
        left=torch.tensor([left for _, left, _ in choices]),
        mirrored=torch.tensor([mirrored for _, _, mirrored in choices]),
    )
    assert out.dtype == dtype
    assert out.is_contiguous()
    for image, got, choice in zip(images, out, choices, strict=True):
        assert torch.equal(got, crop_flip_slowly(image, *choice))


def test_every_window_is_drawn_and_all_alike() -> None:
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 6, 6)
    choices = [(t, x, m) for t in range(9) for x in range(9) for m in (False, True)]
    number = {crop_flip_slowly(image, *c).numpy().tobytes(): i for i, c in enumerate(choices)}
    assert len(number) == len(choices)
    count = 100 * len(choices)
    out = random_crop_flip(image.expand(count, 1, 6, 6), seed=5)
    drawn = torch.tensor([number[one.numpy().tobytes()] for one in out]).bincount(
        minlength=len(choices)
    )
    # Chi squared with 161 degrees of freedom: mean 161, standard deviation 18.
    assert float(((drawn - 100) ** 2 / 100).sum()) < 161 + 5 * 18
    assert int(drawn.min()) > 50


def test_the_seed_decides() -> None:
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    first = random_crop_flip(images, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, random_crop_flip(images, seed=1))
    assert not torch.equal(first, random_crop_flip(images, seed=2))
