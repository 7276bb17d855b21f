"""The back end for CUDA: kernels in Triton that read and write each element once; blocks beyond a tile are read twice.

It rounds float32, bfloat16 and float16 tensors with the bits of :mod:`lowprec_eb.quantize.reference`, and waits for the
device only where the meaning asks for it: to refuse a NaN (``nan="error"``) and to check scales that the user gave.
With ``TRITON_INTERPRET=1`` triton runs the kernels on the CPU, slowly: for tests.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.formats import Format, is_affine
from lowprec_eb.quantize import reference
from lowprec_eb.quantize.scales import find_scales
from lowprec_eb.quantize.target import write
from lowprec_eb.quantize.triton_backend.launches import COLUMNS, MEASURED_ROWS, MEASURED_TILES, TILE, Launch, launch

_GIVEN = 0


@lru_cache(maxsize=1)
def _obstacle() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def plan_for(x: Tensor, fmt: Format, rounding: str) -> Launch | str:
    """How this back end rounds ``x`` to ``fmt``; a text says why it cannot."""
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on CUDA, the tensor is on {x.device}"
    return _obstacle() or launch(fmt, rounding, x.shape, x.dtype)


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded to ``fmt`` into ``out``, which may be ``x`` itself.

    Raises:
        ValueError: :func:`plan_for` has no plan; a NaN with ``nan="error"``.
    """
    made = plan_for(x, fmt, rounding)
    if isinstance(made, str):
        raise ValueError(f"backend='triton' cannot round this: {made}; use backend='reference' or 'auto'")
    follow(made, x, fmt, seed, offset, given, out)


def follow(
    made: Launch, x: Tensor, fmt: Format, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """:func:`quantize` with its plan."""

    source = x.contiguous()

    def kernels(target: Tensor) -> None:
        with _on(x.device):
            _round(made, source, fmt, seed, offset, given, target)

    write(out, x, source, made.refuses_nan, kernels)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else contextlib.nullcontext()


def _round(
    made: Launch, x: Tensor, fmt: Format, seed: Tensor | None, offset: int, given: list[Tensor], target: Tensor
) -> None:
    kernels: Any = importlib.import_module("lowprec_eb.quantize.triton_backend.kernels")
    choices = made.choices
    scales = zeros = tensor = x  # of no meaning, where there are none
    if given or is_affine(fmt):
        found = _known_scales(x, fmt, given)
        scales, zeros = found[0].contiguous(), found[-1].contiguous()
        tensor = found[-1]
        choices = choices | {"RULE": _GIVEN}
    else:
        if fmt.tensor_scale_bits:
            tensor = _largest(kernels, x, 1, x.numel(), made.wide)
        if made.scales:
            scales = _largest_of_blocks(kernels, made, x)
    damaged = torch.zeros(1, dtype=torch.int32, device=x.device) if made.refuses_nan else x
    tiles = made.tiles
    kernels.round_tiles[(tiles.programs,)](
        *(x, target, scales, zeros, tensor, x if seed is None else seed, damaged, offset),
        *(tiles.rows, tiles.length, tiles.size, tiles.blocks, tiles.inner, tiles.across),
        *(made.given_numbers if given else made.numbers),
        **choices,
        LAYOUT=tiles.layout,
        PAIRED=tiles.even and offset % 2 == 0,
        WIDE=made.wide,
        R=tiles.height,
        W=tiles.width,
        num_warps=8 if tiles.height * tiles.width > TILE else 4,
        enable_fp_fusion=False,  # a fused multiply-add would round once where the reference rounds twice
    )
    if made.refuses_nan and bool(damaged):
        reference.refuse_nan(x, fmt)


def _known_scales(x: Tensor, fmt: Format, given: list[Tensor]) -> tuple[Tensor, ...]:
    """The user's scales, or an affine format's, which torch finds."""
    if given:
        like = x.new_empty((), dtype=torch.float32).expand(x.shape)
        return reference.given_scales(given, fmt, like)
    return find_scales(x.to(torch.float32), fmt)


def _largest_of_blocks(kernels: Any, made: Launch, x: Tensor) -> Tensor:
    """Patterns of the largest finite magnitudes of blocks that do not fit into one tile."""
    tiles = made.tiles
    if tiles.layout != COLUMNS:
        return _largest(kernels, x, made.scales, tiles.inner, made.wide)
    largest = torch.zeros(made.scales, dtype=torch.int32, device=x.device)
    loops = max(1, MEASURED_ROWS // tiles.height)
    programs = -(-tiles.rows // (tiles.height * loops)) * tiles.across
    kernels.measure_columns[(programs,)](
        *(x, largest, tiles.rows, tiles.length, tiles.inner, tiles.across),
        WIDE=made.wide,
        R=tiles.height,
        W=tiles.width,
        LOOPS=loops,
    )
    return largest


def _largest(kernels: Any, x: Tensor, cells: int, inner: int, wide: bool) -> Tensor:
    """Patterns of the largest finite magnitudes of rows of ``inner`` elements, which take turns in ``cells``."""
    largest = torch.zeros(cells, dtype=torch.int32, device=x.device)
    across = -(-inner // (TILE * MEASURED_TILES))
    programs = x.numel() // inner * across
    kernels.measure_rows[(programs,)](x, largest, cells, inner, across, WIDE=wide, W=TILE, LOOPS=MEASURED_TILES)
    return largest
