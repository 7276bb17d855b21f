"""Random crops and flips of uint8 image batches, on whichever device holds them.

All images of a batch are moved at once by indexing. Random numbers are drawn apart, on the generator's own device: a
CPU generator gives the same augmentation on every accelerator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Cut an H x W window out of each image after padding all four sides with `padding` zeros (black).

    images: (N, C, H, W); top, left: (N,) int64, the window's corner in the padded image, each in 0 .. 2 * padding.
    Returns (N, C, H, W) of the same dtype.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=images.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=images.device)  # (N, W)
    return _gather(padded, rows, columns)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left-right the images (N, C, H, W) whose entry in `flipped` (N,) bool is true; same shape and dtype."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_corners(samples: int, padding: int, generator: torch.Generator) -> Tensor:
    """Corners for `crop`, (2, N) int64, drawn uniformly: each image moves by -padding .. +padding pixels each way."""
    return torch.randint(0, 2 * padding + 1, (2, samples), generator=generator, device=generator.device)


def random_coins(samples: int, generator: torch.Generator) -> Tensor:
    """(N,) bool, each true with probability 1/2."""
    return torch.randint(0, 2, (samples,), generator=generator, device=generator.device).bool()


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[n, c, i, j] = images[n, c, rows[n, i], columns[n, j]]."""
    samples, channels = images.shape[:2]
    n = torch.arange(samples, device=images.device)[:, None, None, None]
    c = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[n, c, rows[:, None, :, None], columns[:, None, None, :]]
