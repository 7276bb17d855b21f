"""qtorch's own C++ kernels as a back end.

They need a C++ compiler and ninja: qtorch compiles them at its first import, which takes about a minute. They round
float32 CPU tensors, and their stochastic rounding draws from a generator that no seed reaches: such a run is not
reproducible.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.formats import BlockFloat, FixedPoint, Float, Format


@lru_cache(maxsize=1)
def _kernels() -> Any:
    try:
        return importlib.import_module("qtorch.quant")
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            "backend='qtorch' compiles C++ at its first import and that failed: install a C++ compiler and "
            f"`pip install lowprec-eb[qtorch-kernels]`, or use backend='reference'. Cause: {error}"
        ) from error


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded by qtorch into ``out``. float32 only; ``seed`` and ``offset`` cannot reach qtorch's generator."""
    if x.dtype != torch.float32:
        raise ValueError(f"backend='qtorch' rounds float32 tensors only, got {x.dtype}; use backend='reference'")
    if fmt.blocks is not None:
        fmt.blocks.scale_shape(x.shape)  # raises if x lacks a dimension
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"backend='qtorch' has no rounding {rounding!r}; use backend='reference'")
    out.copy_(_rounded(x.contiguous(), fmt, rounding))


def _rounded(x: Tensor, fmt: Format, rounding: str) -> Tensor:
    quant = _kernels()
    match fmt:
        case BlockFloat(wl=wl, dim=int(dim), block=None):
            return quant.block_quantize(x, wl, dim, rounding)  # type: ignore[no-any-return]
        case FixedPoint(wl=wl, fl=fl, clamp=clamp, symmetric=symmetric):
            return quant.fixed_point_quantize(x, wl, fl, clamp, symmetric, rounding)  # type: ignore[no-any-return]
        case Float(specials="none", subnormals=True) if fmt.ties == "away" or rounding == "stochastic":
            return quant.float_quantize(x, fmt.exp, fmt.man, rounding)  # type: ignore[no-any-return]
    raise ValueError(
        f"backend='qtorch' has no {fmt!r} (it has block, fixed and floating point; the last without special codes and "
        "with ties away); use backend='reference'"
    )
