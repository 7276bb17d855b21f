"""Memory for tensors that live no longer than one product.

A fresh buffer for every rounded operand costs more than the rounding: the system hands out its pages one by one. On a
GPU torch keeps its memory, so this is for the CPU.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_LARGEST = 1 << 28  # bytes that are kept, for each place and dtype


class Scratch(threading.local):
    """Buffers by place, each as large as the largest tensor that was put there, and reused by the next one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, place: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """A tensor of x's shape, strides and dtype (if none is given), that is good until the next one for ``place``.

        None if x is not dense, not on the CPU, or too large to be kept.
        """
        memory = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        dtype = dtype or x.dtype
        if (
            not x.is_cpu
            or x.numel() * dtype.itemsize > _LARGEST
            or not (x.is_contiguous() or x.is_contiguous(memory_format=memory))
        ):
            return None
        buffer = self._buffers.get((place, dtype))
        if buffer is None or buffer.numel() < x.numel():
            with torch.inference_mode(False):
                buffer = self._buffers[place, dtype] = torch.empty(x.numel(), dtype=dtype)
        return buffer.as_strided(x.shape, x.stride())


scratch = Scratch()
