"""Where compiled kernels write: the caller's tensor, or one beside it that is copied afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def write(out: Tensor, x: Tensor, source: Tensor, refuses_nan: bool, kernels: Callable[[Tensor], None]) -> None:
    """Let ``kernels``, which read ``source``, write to a tensor that lies as it does, and have that in ``out``.

    ``source`` is ``x`` or a contiguous copy of it.
    """
    target = out if _at_once(out, x, source, refuses_nan) else torch.empty_like(source)
    if x.numel():
        kernels(target)
    if target is not out:
        out.copy_(target)
    elif not out.is_inference():
        torch.autograd.graph.increment_version(out)  # the kernels write behind torch's back


def _at_once(out: Tensor, x: Tensor, source: Tensor, refuses_nan: bool) -> bool:
    """Whether ``out`` may be written while ``x`` is read. What an error would leave half written must be no tensor of
    the caller's that overlaps ``x``."""
    if not (out.stride() == source.stride() or (out.is_contiguous() and source.is_contiguous())):
        return False
    if source is not x or out.data_ptr() == x.data_ptr():
        return not refuses_nan
    return abs(out.data_ptr() - x.data_ptr()) >= x.nbytes
