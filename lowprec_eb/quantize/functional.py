"""Rounding, encoding and decoding tensors."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowprec_eb.formats import Format, as_format
from lowprec_eb.quantize import codes, operator
from lowprec_eb.quantize.arguments import (
    CLAMPED_GRADIENTS,
    DTYPES,
    ROUNDINGS,
    bits_tensor,
    check_choice,
    check_out,
    check_tensor,
    gradient_key,
    offset_tensor,
    scale_tensors,
    stochastic_key,
)
from lowprec_eb.quantize.autograd import PLAIN, GradientRule, may_need_gradient, straight_through

Rounding = Literal["nearest", "nearest_away", "stochastic", "toward_zero"]
ClampedGradient = Literal["pass", "zero"]
Scale = float | Tensor | tuple[Tensor, Tensor]
CODE_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
BACKEND_NAMES: tuple[str, ...] = tuple(operator.BACKENDS)


def quantize(
    x: Tensor,
    fmt: Any,
    rounding: Rounding = "nearest",
    *,
    seed: int | Tensor | None = None,
    offset: int | Tensor = 0,
    scale: Scale | None = None,
    bits: float | Tensor | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
    clamped_gradient: ClampedGradient = "pass",
    gradient_format: Any = None,
    gradient_rounding: Rounding = "nearest",
) -> Tensor:
    """Round every element of ``x`` to a number that ``fmt`` can hold.

    Args:
        x: dense floating-point tensor of any shape.
        fmt: a format of :mod:`lowprec_eb.formats`, its name, or a qtorch number. None leaves the values as they are,
            for a ``gradient_format`` alone.
        rounding: ``"nearest"`` (ties as the format says, to even by default), ``"nearest_away"`` (ties away from
            zero), ``"toward_zero"``, or ``"stochastic"`` (away from zero with a probability equal to the distance from
            the neighbour nearer to zero in steps, so the expectation is ``x``, to within ``2 ** -24`` steps; under a
            scale that is no power of two to within ``2 ** -22`` times the code).
        seed: stochastic rounding's key: an integer or a 0-d int64 tensor. None draws one from torch's default
            generator.
        offset: global index of element 0, so that the shards of a tensor round as the whole would.
        scale: of :class:`Int` and :class:`ScaledFloat`, instead of one found from ``x``: a number, one a block, or a
            pair (scale, zero point) of an affine format and (block scales, tensor scale) of a two-level one. The
            gradient w.r.t. the first is that of LSQ.
        bits: instead of the format's own number of bits, rounded to a whole number; may require a gradient (of
            :class:`Int`, :class:`BlockFloat`, and :class:`FixedPoint` in an unchanged range).
        backend: ``"reference"`` (plain torch), ``"fast"`` (compiled, on the CPU), ``"triton"`` (on CUDA), ``"qtorch"``
            (its C++ kernels) or ``"auto"``; :func:`backend_for` says which one ``"auto"`` takes.
        out: where to write; may be ``x`` itself. Not with a gradient.
        clamped_gradient: ``"zero"`` stops the gradient of elements beyond the range of their block.
        gradient_format, gradient_rounding: the format that the gradient w.r.t. ``x`` is rounded to; None: none.

    Returns:
        A tensor of the same shape, dtype, device and memory layout. Its gradient is the straight-through estimate.

    Raises:
        ValueError: an argument is not what it must be; the format has a dimension ``x`` lacks, no scale or no bits to
            give, or no code for a NaN that ``x`` holds (``nan="error"``).
    """
    number = None if fmt is None else as_format(fmt)
    _check(x, rounding, backend)
    rule = _gradient_rule(x, clamped_gradient, gradient_format, gradient_rounding)
    if number is None:
        _check_gradient_only(rule, scale is not None or bits is not None or out is not None)
    key = stochastic_key(seed, x.device) if rounding == "stochastic" and number is not None else None
    scales = [] if number is None else scale_tensors(scale, number, x.device)
    start, width = offset_tensor(offset), bits_tensor(bits)
    learned = (x, *scales) if width is None else (x, width, *scales)
    if out is not None:
        check_out(x, out, learned)
        operator.round_into(out, x, cast(Format, number), rounding, key, start, scales, width, backend)
        return out
    if number is not None and not (torch.is_grad_enabled() and may_need_gradient(learned)):
        return operator.rounded(x, number, rounding, key, start, scales, width, backend)
    other = gradient_key(seed, x.device) if rule.fmt is not None and rule.rounding == "stochastic" else None
    first, second = (*scales, None, None)[:2]
    arguments = (x, number, rounding, key, start, width, backend, rule, other, first, second)
    return straight_through(*arguments)


def quantize_(x: Tensor, fmt: Any, rounding: Rounding = "nearest", **options: Any) -> Tensor:
    """:func:`quantize` in place: ``quantize(x, ..., out=x)``."""
    return quantize(x, fmt, rounding, out=x, **options)


def encode(
    x: Tensor,
    fmt: Any,
    rounding: Rounding = "nearest",
    *,
    seed: int | Tensor | None = None,
    offset: int | Tensor = 0,
    scale: Scale | None = None,
    bits: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """The integer codes of ``x``'s elements and the scales of its blocks; neither has a gradient.

    Returns:
        codes (x's shape): signed integers for fixed point, block float and symmetric integers; unsigned for affine
        ones; bit patterns (sign, exponent, mantissa from the top) for floats. Of 16 bits they are int16 of the same
        pattern; with ``bits`` given, int32. One code an element, whatever its bits; :meth:`Format.storage_bits` tells
        the packed size.
        scales: None for formats without; float32 of the shape that broadcasts over slices, or with the block axis
        shortened. ``codes * scales`` are the values of block float (whose scales here are its steps) and symmetric
        integers. An affine format gives (scale, zero point), a two-level one (block scales, tensor scale).

    Raises:
        ValueError: as :func:`quantize`; a value has no code (a NaN or infinity that the format has none for).
    """
    number = as_format(fmt)
    _check(x, rounding, "auto")
    key = stochastic_key(seed, x.device) if rounding == "stochastic" else None
    scales = [part.detach() for part in scale_tensors(scale, number, x.device)]
    width = bits_tensor(bits)
    start = offset_tensor(offset)
    width = None if width is None else width.detach()
    encoded, *found = operator.encode(x.detach(), repr(number), rounding, key, start, scales, width)
    if len(found) == 2:
        return encoded, (found[0], found[1])
    return encoded, found[0] if found else None


def decode(
    encoded: Tensor,
    scales: Tensor | tuple[Tensor, Tensor] | None,
    fmt: Any,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values of :func:`encode`'s codes and scales: ``decode(*encode(x, fmt), fmt)`` equals ``quantize(x, fmt)``.

    Raises:
        ValueError: the types of codes and values, or the shapes of scales, are not those of ``fmt``. Codes out of its
            range are not looked for.
    """
    number = as_format(fmt)
    if not isinstance(encoded, Tensor) or encoded.dtype not in CODE_DTYPES:
        raise ValueError("codes: must be an integer tensor as lp.encode gives it")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: must be a floating-point type of 16, 32 or 64 bits, got {dtype}")
    parts = () if scales is None else tuple(scales) if isinstance(scales, tuple | list) else (scales,)
    wanted = codes.scale_shapes(encoded.shape, number)
    found = [tuple(part.shape) if isinstance(part, Tensor) else part for part in parts]
    if found != wanted:
        raise ValueError(f"scales: {number!r} and codes of shape {tuple(encoded.shape)} need {wanted}, got {found}")
    return codes.decode(encoded, parts, number, dtype)


def _check(x: Tensor, rounding: str, backend: str) -> None:
    check_tensor(x)
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("backend", backend, BACKEND_NAMES)


def _gradient_rule(x: Tensor, clamped: str, fmt: Any, rounding: str) -> GradientRule:
    if clamped == "pass" and fmt is None and rounding == "nearest":
        return PLAIN
    check_choice("clamped_gradient", clamped, CLAMPED_GRADIENTS)
    check_choice("gradient_rounding", rounding, ROUNDINGS)
    if fmt is None and rounding != "nearest":
        raise ValueError(f"gradient_rounding={rounding!r} needs a gradient_format")
    number = None if fmt is None else as_format(fmt)
    if number is not None and number.blocks is not None:
        number.blocks.scale_shape(x.shape)  # raises if x lacks a dimension
    return GradientRule(clamped, number, rounding)


def _check_gradient_only(rule: GradientRule, values_are_meant: bool) -> None:
    if rule.fmt is None:
        raise ValueError("not a number format: None; it leaves the values as they are, and needs a gradient_format")
    if rule.clamped != "pass" or values_are_meant:
        raise ValueError(
            "fmt=None leaves values as they are: scale, bits, out and clamped_gradient have no meaning then"
        )


def backend_for(x: Tensor, fmt: Any) -> tuple[str, str]:
    """The back end that ``backend="auto"`` takes for this tensor and format, and why."""
    return operator.backend_for(x, as_format(fmt))
