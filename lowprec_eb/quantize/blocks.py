"""Blocks of a tensor: reduce each to one number, and give each element its block's number."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowprec_eb.formats import Blocks

Reduction = Callable[[Tensor, tuple[int, ...]], Tensor]


def reduce_blocks(x: Tensor, blocks: Blocks, reduction: Reduction, fill: float | None = None) -> Tensor:
    """``reduction`` over each block; the result has the shape ``blocks.scale_shape(x.shape)``.

    A shorter last run is filled up with ``fill``, or with copies of its last element.
    """
    shape = blocks.scale_shape(x.shape)
    if x.numel() == 0:
        return x.new_zeros(shape)
    if blocks.size is not None and x.dim() > 0:
        runs = _runs(x, blocks.size, blocks.axis, fill)
        return reduction(runs, (-1,)).squeeze(-1).movedim(-1, blocks.axis)
    shared = tuple(d for d in range(x.dim()) if shape[d] == 1)
    return reduction(x, shared) if shared else x.clone()


def _runs(x: Tensor, size: int, axis: int, fill: float | None) -> Tensor:
    """(..., runs, size): the runs along ``axis``."""
    moved = x.movedim(axis, -1)
    missing = -moved.shape[-1] % size
    last = moved[..., -1:] if fill is None else torch.full_like(moved[..., -1:], fill)
    filled = torch.cat([moved, last.expand(*moved.shape[:-1], missing)], dim=-1)
    runs: Tensor = filled.unflatten(-1, (-1, size))
    return runs


def spread(scales: Tensor, blocks: Blocks, shape: torch.Size) -> Tensor:
    """Each block's number, broadcastable against a tensor of ``shape``."""
    if blocks.size is None or not shape:
        return scales
    axis = blocks.axis % len(shape)
    return scales.repeat_interleave(blocks.size, dim=axis).narrow(axis, 0, shape[axis])


def fit_given(scale: Tensor, blocks: Blocks, shape: torch.Size) -> Tensor:
    """A scale from the user in the shape that ``blocks`` asks for: one number, or one a block.

    Raises:
        ValueError: another number of scales.
    """
    wanted = blocks.scale_shape(shape)
    if scale.numel() == 1:
        return scale.reshape(()).expand(wanted)
    if scale.shape != wanted and scale.shape != (math.prod(wanted),):
        raise ValueError(
            f"scale: a tensor of shape {tuple(shape)} has scales of shape {wanted} in this format, "
            f"got {tuple(scale.shape)}; one number, or a vector of all, is fine too"
        )
    return scale.reshape(wanted)
