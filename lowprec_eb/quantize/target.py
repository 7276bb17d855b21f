"""Where compiled kernels write: the caller's tensor, or one beside it that is copied afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def write(out: Tensor, x: Tensor, refuses_nan: bool, kernels: Callable[[Tensor], None]) -> None:
    """Let ``kernels``, which read ``x`` or a copy of it, write to a contiguous tensor, and have that in ``out``."""
    target = out if _at_once(out, x, refuses_nan) else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        kernels(target)
    if target is not out:
        out.copy_(target)
    elif not out.is_inference():
        torch.autograd.graph.increment_version(out)  # the kernels write behind torch's back


def _at_once(out: Tensor, x: Tensor, refuses_nan: bool) -> bool:
    """Whether ``out`` may be written while ``x`` is read. What an error would leave half written must be no tensor of
    the caller's that overlaps ``x``."""
    if not out.is_contiguous():
        return False
    if not x.is_contiguous() or out.data_ptr() == x.data_ptr():
        return not refuses_nan
    return abs(out.data_ptr() - x.data_ptr()) >= x.nbytes
