"""Rounding tensors to number formats."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowprec_eb.formats import Format, Int, ScaledFloat, as_format, is_affine
from lowprec_eb.quantize import codes, operator
from lowprec_eb.quantize.autograd import PLAIN, GradientRule, StraightThrough
from lowprec_eb.quantize.random_bits import derive_seed, draw_seeds

Rounding = Literal["nearest", "nearest_away", "stochastic", "toward_zero"]
Scale = float | Tensor | tuple[Tensor, Tensor]
ROUNDINGS: tuple[str, ...] = ("nearest", "nearest_away", "stochastic", "toward_zero")
BACKEND_NAMES: tuple[str, ...] = ("auto", *operator.BACKENDS)


def quantize(
    x: Tensor,
    fmt: Any,
    rounding: Rounding = "nearest",
    *,
    seed: int | Tensor | None = None,
    offset: int | Tensor = 0,
    scale: Scale | None = None,
    bits: int | Tensor | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
    clamped_gradient: Literal["pass", "zero"] = "pass",
    gradient_format: Any = None,
    gradient_rounding: Rounding = "nearest",
) -> Tensor:
    """Round every element of ``x`` to a number that ``fmt`` can hold.

    Args:
        x: floating-point tensor of any shape.
        fmt: a format of :mod:`lowprec_eb.formats`, its name, or a qtorch number. None leaves the values as they are,
            for a ``gradient_format`` alone.
        rounding: ``"nearest"`` (ties as the format says, to even by default), ``"nearest_away"`` (ties away from
            zero), ``"toward_zero"``, or ``"stochastic"`` (away from zero with a probability equal to the distance from
            the neighbour nearer to zero in steps, to within ``2 ** -24``, so the expectation is ``x``).
        seed: stochastic rounding's key: an integer or a 0-d int64 tensor. None draws one from torch's default
            generator.
        offset: global index of element 0, so that the shards of a tensor round as the whole would.
        scale: of :class:`Int` and :class:`ScaledFloat`, instead of one found from ``x``: a number, one a block, or a
            pair (scale, zero point) of an affine format and (block scales, tensor scale) of a two-level one. Its
            gradient is that of LSQ.
        bits: instead of the format's own number of bits, rounded to a whole number; may require a gradient (of
            :class:`Int`, :class:`BlockFloat`, and :class:`FixedPoint` in an unchanged range).
        backend: ``"reference"`` (plain torch), ``"qtorch"`` (its C++ kernels) or ``"auto"`` (``"reference"``).
        out: where to write; may be ``x`` itself. Not with a gradient.
        clamped_gradient: ``"zero"`` stops the gradient of elements beyond the range of their block.
        gradient_format, gradient_rounding: the format that the gradient w.r.t. ``x`` is rounded to; None: none.

    Returns:
        A tensor of the same shape, dtype, device and memory layout. Its gradient is the straight-through estimate.

    Raises:
        ValueError: not a format, rounding, back end or floating-point tensor; the format has a dimension ``x`` lacks,
            no scale or no bits to give, or no code for a NaN that ``x`` holds (``nan="error"``).
    """
    if fmt is None:
        return _quantize_gradient(x, seed, backend, gradient_format, gradient_rounding)
    number = as_format(fmt)
    _check(x, number, rounding, backend)
    key = _key(seed, x.device) if rounding == "stochastic" else None
    chosen = "reference" if backend == "auto" else backend
    scales = _scales(scale, number, x)
    start, width = _integer(offset), _bits(bits)
    if out is not None:
        _check_out(x, out, (x, *scales, *_tensors(bits)))
        operator.quantize_out(x, repr(number), rounding, key, start, scales, width, chosen, out=out)
        return out
    if not torch.is_grad_enabled():
        result: Tensor = operator.quantize(x, repr(number), rounding, key, start, scales, width, chosen)
        return result
    rule, gradient_key = PLAIN, None
    if gradient_format is not None or clamped_gradient != "pass":
        rule = _gradient_rule(clamped_gradient, gradient_format, gradient_rounding)
        gradient_key = _gradient_key(seed, x.device) if gradient_rounding == "stochastic" else None
    arguments = (x, number, rounding, key, start, width, chosen, rule, gradient_key, *scales)
    return cast(Tensor, StraightThrough.apply(*arguments))  # type: ignore[no-untyped-call]


def _quantize_gradient(x: Tensor, seed: int | Tensor | None, backend: str, fmt: Any, rounding: Rounding) -> Tensor:
    if fmt is None:
        raise ValueError("not a number format: None; it leaves the values as they are, and needs a gradient_format")
    rule = _gradient_rule("pass", fmt, rounding)
    key = _gradient_key(seed, x.device) if rounding == "stochastic" else None
    chosen = "reference" if backend == "auto" else backend
    arguments = (x, None, "nearest", None, None, None, chosen, rule, key)
    return cast(Tensor, StraightThrough.apply(*arguments))  # type: ignore[no-untyped-call]


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
    bits: int | Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """The integer codes of ``x``'s elements and the scales of its blocks.

    Returns:
        codes (x's shape): signed integers for fixed point, block float and symmetric integers; unsigned for affine
        ones; bit patterns (sign, exponent, mantissa from the top) for floats. Of 16 bits they are int16 of the same
        pattern. One code an element, whatever its bits; :meth:`Format.storage_bits` tells the packed size.
        scales: None for formats without; float32 of the shape that broadcasts over slices, or with the block axis
        shortened. ``codes * scales`` are the values of block float (whose scales here are its steps) and symmetric
        integers. An affine format gives (scale, zero point), a two-level one (block scales, tensor scale).

    Raises:
        ValueError: as :func:`quantize`; a value has no code (a NaN or infinity that the format has none for).
    """
    number = as_format(fmt)
    _check(x, number, rounding, "auto")
    key = _key(seed, x.device) if rounding == "stochastic" else None
    scales = _scales(scale, number, x)
    arguments = (repr(number), rounding, key, _integer(offset), scales, _bits(bits))
    encoded, *found = operator.encode(x.detach(), *arguments)
    return encoded, (None, *found)[-1] if len(found) < 2 else (found[0], found[1])


def decode(
    encoded: Tensor,
    scales: Tensor | tuple[Tensor, Tensor] | None,
    fmt: Any,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values of :func:`encode`'s codes and scales: ``decode(*encode(x, fmt), fmt)`` equals ``quantize(x, fmt)``."""
    parts = () if scales is None else scales if isinstance(scales, tuple) else (scales,)
    return codes.decode(encoded, parts, as_format(fmt), dtype)


def _check(x: Tensor, fmt: Format, rounding: str, backend: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"quantize needs a floating-point tensor, got {found}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; one of {', '.join(ROUNDINGS)}")
    if backend not in BACKEND_NAMES:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKEND_NAMES)}")
    if fmt.blocks is not None:
        fmt.blocks.scale_shape(x.shape)  # raises if x lacks a dimension


def _gradient_rule(clamped_gradient: str, fmt: Any, gradient_rounding: str) -> GradientRule:
    if gradient_rounding not in ROUNDINGS:
        raise ValueError(f"unknown gradient_rounding {gradient_rounding!r}; one of {', '.join(ROUNDINGS)}")
    if clamped_gradient not in ("pass", "zero"):
        raise ValueError(f"unknown clamped_gradient {clamped_gradient!r}; one of pass, zero")
    return clamped_gradient, None if fmt is None else as_format(fmt), gradient_rounding


def _check_out(x: Tensor, out: Tensor, inputs: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        raise ValueError("out= does not support gradients; call it under torch.no_grad()")
    if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        raise ValueError(f"out must be like x, {x.dtype} {tuple(x.shape)}, got {out.dtype} {tuple(out.shape)}")


def _tensors(part: Any) -> tuple[Tensor, ...]:
    return (part,) if isinstance(part, Tensor) else ()


def _key(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return draw_seeds(1)[0].to(device)
    return torch.as_tensor(seed, dtype=torch.int64, device=device)


def _gradient_key(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A second stream: of the generator, or derived from the seed."""
    if isinstance(seed, Tensor):
        return seed.to(torch.int64).bitwise_xor(derive_seed(1)).to(device)
    return _key(None if seed is None else derive_seed(seed, 1), device)


def _integer(value: int | Tensor) -> Tensor | None:
    if isinstance(value, int):
        return None if value == 0 else torch.as_tensor(value, dtype=torch.int64)
    return value


def _bits(bits: int | Tensor | None) -> Tensor | None:
    return bits if bits is None or isinstance(bits, Tensor) else torch.as_tensor(float(bits))


def _scales(scale: Scale | None, fmt: Format, x: Tensor) -> list[Tensor]:
    if scale is None:
        return []
    if not isinstance(fmt, Int | ScaledFloat):
        raise ValueError(f"scale: {fmt!r} takes none; lp.Int and lp.ScaledFloat do")
    parts = list(scale) if isinstance(scale, tuple | list) else [scale]
    wanted = 2 if is_affine(fmt) or fmt.tensor_scale_bits else 1
    if len(parts) != wanted:
        pair = "a pair (scale, zero point)" if is_affine(fmt) else "a pair (block scales, tensor scale)"
        raise ValueError(f"scale: {fmt!r} takes {pair if wanted == 2 else 'one scale'}, got {len(parts)}")
    return [torch.as_tensor(part, device=x.device) for part in parts]
