"""How a model is run: memory layout, compiler, and how float32 products are computed on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def placed(model: nn.Module, device: str, channels_last: bool) -> nn.Module:
    """``model`` on ``device``, its 4-d weights in channels_last if that is asked for: the convolutions then give
    activations in that layout, whatever that of the images."""
    if not channels_last:
        return model.to(device)
    found: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has none
    return found


def compiled(model: nn.Module) -> nn.Module:
    """``model`` through torch.compile, a graph for each batch size (an epoch has at most two)."""
    found: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]  # it is a module
    return found


@contextmanager
def float32_products(tf32: bool | None) -> Iterator[None]:
    """Whether matrix products and convolutions of float32 on CUDA may round their operands to TF32 (10 bits of
    significand); None leaves torch's flags. Afterwards they are as they were."""
    if tf32 is None:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
