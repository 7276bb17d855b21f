import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowprec_eb.tasks.augment import crop, flip, random_coins, random_corners


def slow_crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """One image and one pixel at a time; what lies outside the image is 0."""
    samples, _, height, width = images.shape
    out = torch.zeros_like(images)
    for n in range(samples):
        for i in range(height):
            for j in range(width):
                row, column = i + int(top[n]) - padding, j + int(left[n]) - padding
                if 0 <= row < height and 0 <= column < width:
                    out[n, :, i, j] = images[n, :, row, column]
    return out


def images_like(samples: int, channels: int, height: int, width: int) -> Tensor:
    """Pixels that are all different from 0, so that padding shows."""
    generator = torch.Generator().manual_seed(samples)
    return torch.randint(1, 256, (samples, channels, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
    padding=st.integers(1, 3),
    data=st.data(),
)
def test_crop_equals_the_slow_reference(shape: tuple[int, int, int, int], padding: int, data: st.DataObject) -> None:
    images = images_like(*shape)
    corners = st.lists(st.integers(0, 2 * padding), min_size=shape[0], max_size=shape[0])
    top, left = torch.tensor(data.draw(corners)), torch.tensor(data.draw(corners))
    result = crop(images, padding, top, left)
    assert result.dtype == torch.uint8
    assert torch.equal(result, slow_crop(images, padding, top, left))


def test_crop_at_the_centre_is_the_identity() -> None:
    images = images_like(3, 3, 5, 7)
    centre = torch.full((3,), 2)
    assert torch.equal(crop(images, 2, centre, centre), images)


def test_flip_mirrors_only_the_chosen_images() -> None:
    images = images_like(4, 2, 3, 5)
    chosen = [True, False, False, True]
    expected = torch.stack([torch.flip(x, [2]) if c else x for x, c in zip(images, chosen, strict=True)])
    result = flip(images, torch.tensor(chosen))
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)


def test_random_crop_reaches_every_corner_evenly() -> None:
    image = images_like(1, 1, 4, 4)
    result = crop(image.expand(4500, 1, 4, 4), 1, *random_corners(4500, 1, torch.Generator().manual_seed(0)))
    counts = []
    for top in range(3):
        for left in range(3):
            expected = slow_crop(image, 1, torch.tensor([top]), torch.tensor([left]))
            counts.append(int((result == expected).flatten(1).all(1).sum()))
    assert sum(counts) == 4500  # each result is one of the nine crops
    assert all(abs(count - 500) < 5 * 21.1 for count in counts)  # 5 standard deviations of Binomial(4500, 1/9)


def test_random_flip_flips_half() -> None:
    image = images_like(1, 1, 2, 3)
    result = flip(image.expand(4000, 1, 2, 3), random_coins(4000, torch.Generator().manual_seed(0)))
    kept = (result == image).flatten(1).all(1)
    mirrored = (result == image.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * 31.7


@pytest.mark.parametrize("seed", [0, 7])
def test_same_generator_state_same_result_and_global_state_untouched(seed: int) -> None:
    images = images_like(8, 3, 6, 6)
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(seed)
        corners, coins = random_corners(8, 2, generator), random_coins(8, generator)
        runs.append(flip(crop(images, 2, *corners), coins))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, images_like(8, 3, 6, 6))  # not changed in place
