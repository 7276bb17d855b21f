"""The formats that `quantizers.py` measures, and what others offer for each of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measuring import library
from torch import Tensor

import lowprec_eb as lp
from lowprec_eb.formats import Format

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A format, the bounds of its speed (nearest, stochastic), and how plain torch and qtorch round to it."""

    name: str
    fmt: Format
    times_copy: tuple[float, float]
    plain: Callable[[Tensor, bool], Tensor]
    qtorch: Callable[[Any, Tensor, str], Tensor] | None = None
    faster_than_qtorch: tuple[float, float] = (20.0, 25.0)
    scale: float | None = None

    def bound(self, elements: int, rounding: str) -> float:
        """Multiple of copy_'s time; a small tensor's has the cost of a call in it."""
        pair = self.times_copy if elements >= 1_000_000 else (6.0, 10.0)
        return pair[rounding == "stochastic"]


# ---- plain torch operations --------------------------------------------------------------------------------------


def _whole(steps: Tensor, stochastic: bool) -> Tensor:
    return steps.add_(torch.rand_like(steps)).floor_() if stochastic else steps.round_()


def _plain_fixed(x: Tensor, stochastic: bool) -> Tensor:
    return _whole(x * 16, stochastic).clamp_(-128, 127).mul_(1 / 16)


def _plain_int(scale: float | None, x: Tensor, stochastic: bool) -> Tensor:
    step = x.abs().amax() / 127 if scale is None else scale
    return _whole(x / step, stochastic).clamp_(-127, 127).mul_(step)


def _exponent(x: Tensor) -> Tensor:
    """2 to the exponent of each magnitude."""
    return (x.view(torch.int32) & 0x7F800000).view(torch.float32)


def _plain_block(dim: int | None, x: Tensor, stochastic: bool) -> Tensor:
    largest = x.abs().amax() if dim is None else x.abs().amax(1 - dim, keepdim=True)
    step = _exponent(largest) / 64
    return _whole(x / step, stochastic).clamp_(-127, 127).mul_(step)


def _plain_float(x: Tensor, stochastic: bool) -> Tensor:
    step = _exponent(x).clamp_(min=2.0**-6).mul_(2.0**-3)
    return _whole(x / step, stochastic).mul_(step).clamp_(-448, 448)


def _plain_mx(x: Tensor, stochastic: bool) -> Tensor:
    blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    scale = _exponent(blocks.abs().amax(-1, keepdim=True)) / 256
    rounded = _plain_float(blocks / scale, stochastic).mul_(scale)
    return rounded.flatten(-2)[..., : x.shape[-1]]


INT8_SCALE = 0.03
CASES = (
    Case(
        "fixed8",
        lp.FixedPoint(8, 4),
        (1.5, 3.0),
        _plain_fixed,
        lambda quant, x, rounding: quant.fixed_point_quantize(x, 8, 4, True, False, rounding),
    ),
    Case("int8, given scale", lp.Int(8), (1.5, 3.0), partial(_plain_int, INT8_SCALE), scale=INT8_SCALE),
    Case(
        "fp8_e4m3",
        lp.FP8_E4M3,
        (1.5, 3.0),
        _plain_float,
        lambda quant, x, rounding: quant.float_quantize(x, 4, 3, rounding),
    ),
    Case(
        "block8, dim 0",
        lp.BlockFloat(8, 0),
        (2.5, 3.0),
        partial(_plain_block, 0),
        lambda quant, x, rounding: quant.block_quantize(x, 8, 0, rounding),
        (12.0, 25.0),
    ),
    Case(
        "block8, whole tensor",
        lp.BlockFloat(8),
        (2.5, 3.0),
        partial(_plain_block, None),
        lambda quant, x, rounding: quant.block_quantize(x, 8, -1, rounding),
        (12.0, 25.0),
    ),
    Case("int8", lp.Int(8), (2.5, 3.0), partial(_plain_int, None)),
    Case("mxfp8_e4m3", lp.MXFP8_E4M3, (3.0, 4.5), _plain_mx),
)


# ---- other libraries ---------------------------------------------------------------------------------------------


LIBRARIES = ("qtorch.quant", "brevitas.nn", "torchao.prototype.mx_formats.mx_tensor", "gfloat")


def others(case: Case, rounding: str, x: Tensor) -> Iterator[tuple[str, Call]]:
    """What else rounds float32 tensors to this format, by name."""
    yield "plain torch", lambda: case.plain(x, rounding == "stochastic")
    by_qtorch, quant = case.qtorch, library("qtorch.quant")
    if by_qtorch is not None and quant is not None:
        yield "qtorch", lambda: by_qtorch(quant, x, rounding)
    if rounding == "nearest":
        yield from _nearest_only(case, x)


def _nearest_only(case: Case, x: Tensor) -> Iterator[tuple[str, Call]]:
    if case.name == "int8, given scale":
        yield "fake_quantize", lambda: torch.fake_quantize_per_tensor_affine(x, INT8_SCALE, 0, -127, 127)
    if case.name == "int8" and (brevitas := library("brevitas.nn")) is not None:
        layer = brevitas.QuantIdentity(bit_width=8).eval()
        yield "brevitas", lambda: layer(x)
    if case.name == "mxfp8_e4m3" and (torchao := library("torchao.prototype.mx_formats.mx_tensor")) is not None:
        padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32))
        to_mx = torchao.MXTensor.to_mx
        yield "torchao", lambda: to_mx(padded, torch.float8_e4m3fn, 32).dequantize(torch.float32)
    if case.name == "fp8_e4m3" and (gfloat := library("gfloat")) is not None:
        numbers, fmt = x.numpy(), importlib.import_module("gfloat.formats").format_info_ocp_e4m3
        yield "gfloat", lambda: gfloat.round_ndarray(fmt, numbers, gfloat.RoundMode.TiesToEven, True)
