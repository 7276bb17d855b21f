"""Formats whose elements share scales: block floating point, scaled integers, microscaling, scaled floats."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeGuard

from lowprec_eb.formats.base import (
    MAX_DIMENSIONS,
    WHOLE_TENSOR,
    Blocks,
    Format,
    check_block,
    check_choice,
    check_range,
)
from lowprec_eb.formats.elements import FP32, FixedPoint, Float

MAX_ELEMENT_EXPONENT_BITS, MAX_ELEMENT_MANTISSA_BITS = 5, 15
_SMALLEST_FP32_SCALE = 2.0**-126  # the smallest normal float32: no device flushes it to zero


def _check_grouping(
    format_name: str, field: str, slices: object, block: object, block_axis: object, lowest: int
) -> None:
    """The dimensions whose slices have a scale each, or the size of blocks; ``field`` names the former."""
    for dim in slices if isinstance(slices, tuple) else () if slices is None else (slices,):
        check_range(format_name, field, dim, lowest, MAX_DIMENSIONS - 1)
    if isinstance(slices, tuple) and (not slices or len(set(slices)) < len(slices)):
        raise ValueError(f"{format_name}: {field} must name one or more different dimensions, got {slices!r}")
    if block is not None:
        check_block(format_name, block, block_axis)
        if slices is not None:
            raise ValueError(f"{format_name}: give {field} or block, not both; blocks of a size ignore slices")
    elif block_axis != -1:
        raise ValueError(f"{format_name}: block_axis needs block, the size of the blocks along it")


def _one_spelling(slices: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
    if not isinstance(slices, tuple):
        return slices
    return slices[0] if len(slices) == 1 else tuple(sorted(slices))


def _blocks(slices: int | tuple[int, ...] | None, block: int | None, block_axis: int) -> Blocks:
    if block is not None:
        return Blocks(size=block, axis=block_axis)
    if slices is None:
        return WHOLE_TENSOR
    return Blocks(slices=slices if isinstance(slices, tuple) else (slices,))


@dataclass(frozen=True, repr=False, eq=False)
class BlockFloat(Format):
    """Block floating point: signed integers of ``wl`` bits that share one 8-bit exponent per block.

    The exponent ``e`` is that of the block's largest finite magnitude, within float32's own [-126, 127]; the step is
    ``2 ** (e - (wl - 2))`` and the integers reach ``+-(2 ** (wl - 1) - 1)``. NaN and infinities pass and leave the
    rest of their block alone.

    Args:
        dim: ``0``, ``1``, ...: every slice of that dimension has its own exponent (output channel of a weight, sample
            of an activation); a tuple: every index of those dimensions; ``-1``: the whole tensor has one.
        block: every run of that many elements along ``block_axis`` has its own exponent; ``dim`` must be -1.

    Source: qtorch 0.3 ``BlockFloatingPoint``; Yang et al. 2019 (SWALP), section 3.1.
    """

    wl: int
    dim: int | tuple[int, ...] = -1
    block: int | None = None
    block_axis: int = -1

    kind: ClassVar[str] = "block_float"

    def check(self) -> None:
        check_range("BlockFloat", "wl", self.wl, 2, 16)
        if not isinstance(self.dim, tuple):
            check_range("BlockFloat", "dim", self.dim, -1, MAX_DIMENSIONS - 1)
        slices = None if self.dim == -1 else self.dim
        _check_grouping("BlockFloat", "dim", slices, self.block, self.block_axis, 0)

    def canonical(self) -> dict[str, object]:
        return {"dim": _one_spelling(self.dim)}

    @property
    def bits(self) -> int:
        return self.wl

    def derived(self) -> dict[str, object]:
        blocks = _blocks(None if self.dim == -1 else self.dim, self.block, self.block_axis)
        return {"element": FixedPoint(self.wl, self.wl - 2, symmetric=True), "blocks": blocks}

    @property
    def scale_bits(self) -> int:
        return 8

    @property
    def scale_limits(self) -> tuple[float, float]:
        return 2.0**-126, 2.0**127

    @property
    def max_code(self) -> int:
        """Largest integer of an element; the range is symmetric, as in qtorch."""
        return int(2 ** (self.wl - 1) - 1)


@dataclass(frozen=True, repr=False, eq=False)
class Int(Format):
    """Scaled integers of ``bits`` bits: a float32 scale per block, from the block's range or given.

    Symmetric: codes ``+-(2 ** (bits - 1) - 1)``, scale = largest magnitude / largest code. Affine
    (``symmetric=False``): codes 0 to ``2 ** bits - 1`` over the block's range; with ``zero_point="integer"`` the range
    is widened to hold zero, which is one of the values; with ``"minimum"`` the block's minimum is code 0, as in the
    dynamic-precision papers. A dynamic scale is at least ``2 ** -126`` and its last significand bit is set, so that
    rounding an already rounded symmetric tensor finds the same scale.

    Args:
        axis: every index of this dimension (or of these) has its own scale; None: the whole tensor has one.
        block: every run of that many elements along ``block_axis`` has its own scale; ``axis`` must be None.

    NaN and infinities pass and leave the rest of their block alone; a given scale saturates infinities.

    Source: Jacob et al. 2018, section 2.1; affine minimum: Banner et al. 2018 (SBM), as in FracTrain (Fu et al. 2020).
    """

    bits: int
    symmetric: bool = True
    axis: int | tuple[int, ...] | None = None
    block: int | None = None
    block_axis: int = -1
    zero_point: Literal["integer", "minimum"] = "integer"

    kind: ClassVar[str] = "integer"

    def check(self) -> None:
        check_range("Int", "bits", self.bits, 2, 16)
        check_choice("Int", "symmetric", self.symmetric, (True, False))
        check_choice("Int", "zero_point", self.zero_point, ("integer", "minimum"))
        _check_grouping("Int", "axis", self.axis, self.block, self.block_axis, -MAX_DIMENSIONS)
        if self.symmetric and self.zero_point != "integer":
            raise ValueError("Int: zero_point='minimum' needs symmetric=False, a symmetric range has its zero at 0")

    def canonical(self) -> dict[str, object]:
        return {"axis": _one_spelling(self.axis)}

    def derived(self) -> dict[str, object]:
        # The signed grid; affine codes are the same steps counted from the zero point.
        element = FixedPoint(self.bits, 0, symmetric=self.symmetric)
        return {"element": element, "blocks": _blocks(self.axis, self.block, self.block_axis)}

    @property
    def mantissa_bits(self) -> int:
        return self.bits - 1 if self.symmetric else self.bits

    @property
    def scale_bits(self) -> int:
        if self.symmetric:
            return 32
        return 32 + (self.bits if self.zero_point == "integer" else 32)

    @property
    def scale_limits(self) -> tuple[float, float]:
        return _SMALLEST_FP32_SCALE, FP32.max

    @property
    def has_zero_point(self) -> bool:
        return not self.symmetric

    @property
    def max(self) -> float:
        return self.levels * self.scale_limits[1]

    @property
    def block_range_db(self) -> float:
        return 20 * math.log10(self.levels)

    @property
    def levels(self) -> int:
        """Largest code: steps from zero (symmetric) or from the lowest value (affine) to the highest."""
        return int(2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1)


@dataclass(frozen=True, repr=False, eq=False)
class MX(Format):
    """Microscaling: elements that share one E8M0 scale, a power of two, per ``block`` elements along ``block_axis``.

    The scale is ``2 ** (floor(log2(largest finite magnitude)) - element.max_exponent)``, its exponent within
    [-127, 127]; elements saturate, but an infinity passes and leaves the rest of its block alone. ``element`` is a
    :class:`Float` that saturates (FP8, FP6, FP4) or a :class:`FixedPoint` (MXINT8 is
    ``FixedPoint(8, 6, symmetric=True)``).

    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """

    element: FixedPoint | Float
    block: int = 32
    block_axis: int = -1

    kind: ClassVar[str] = "mx"

    def check(self) -> None:
        _check_element("MX", self.element)
        check_block("MX", self.block, self.block_axis)

    @property
    def bits(self) -> int:
        return self.element.bits

    def derived(self) -> dict[str, object]:
        return {"blocks": Blocks(size=self.block, axis=self.block_axis)}

    @property
    def scale_bits(self) -> int:
        return 8

    @property
    def scale_limits(self) -> tuple[float, float]:
        return 2.0**-127, 2.0**127


@dataclass(frozen=True, repr=False, eq=False)
class ScaledFloat(Format):
    """Float elements times a scale in a float format: per-tensor FP8, NVFP4.

    The scale is the block's largest finite magnitude over ``element.max``, rounded to ``scale`` (nearest, at least
    its smallest positive number; a float32 scale as in :class:`Int`). Elements saturate; an infinity passes as there.

    Args:
        scale: format of the scales; None is float32.
        axis, block, block_axis: as in :class:`Int`.
        tensor_scale: a second, float32 scale for the whole tensor makes the largest block scale ``scale.max``.

    Source: Micikevicius et al. 2022 (FP8 with a scale per tensor); NVIDIA 2025, "Pretraining Large Language Models
    with NVFP4", appendix on the two-level scale.
    """

    element: Float
    scale: Float | None = None
    axis: int | tuple[int, ...] | None = None
    block: int | None = None
    block_axis: int = -1
    tensor_scale: bool = False

    kind: ClassVar[str] = "scaled_float"

    def check(self) -> None:
        if self.scale is not None and not isinstance(self.scale, Float):
            raise ValueError(f"ScaledFloat: scale must be a Float format, got {self.scale!r}")
        if not isinstance(self.element, Float):
            raise ValueError(f"ScaledFloat: element must be a Float format, got {self.element!r}; use lp.Int")
        _check_element("ScaledFloat", self.element)
        _check_grouping("ScaledFloat", "axis", self.axis, self.block, self.block_axis, -MAX_DIMENSIONS)
        check_choice("ScaledFloat", "tensor_scale", self.tensor_scale, (True, False))
        if self.tensor_scale and (self.scale is None or self.scale.exp > MAX_ELEMENT_EXPONENT_BITS):
            raise ValueError("ScaledFloat: scales of more than 5 exponent bits need no tensor_scale")

    def canonical(self) -> dict[str, object]:
        return {"axis": _one_spelling(self.axis), "scale": None if self.scale == FP32 else self.scale}

    @property
    def bits(self) -> int:
        return self.element.bits

    def derived(self) -> dict[str, object]:
        return {"blocks": _blocks(self.axis, self.block, self.block_axis)}

    @property
    def scale_bits(self) -> int:
        return 32 if self.scale is None else self.scale.bits

    @property
    def tensor_scale_bits(self) -> int:
        return 32 if self.tensor_scale else 0

    @property
    def scale_limits(self) -> tuple[float, float]:
        if self.scale is None:
            return _SMALLEST_FP32_SCALE, FP32.max
        if self.tensor_scale:
            return self.scale.smallest * _SMALLEST_FP32_SCALE, self.scale.max * FP32.max
        return self.scale.smallest, self.scale.max


def is_affine(fmt: Format) -> TypeGuard[Int]:
    """Whether ``fmt`` is an :class:`Int` with a zero point."""
    return isinstance(fmt, Int) and not fmt.symmetric


def _check_element(format_name: str, element: object) -> None:
    if not isinstance(element, FixedPoint | Float):
        raise ValueError(f"{format_name}: element must be a Float or a FixedPoint format, got {element!r}")
    saturates = element.overflow == "saturate" if isinstance(element, Float) else element.clamp
    if not saturates:
        raise ValueError(f"{format_name}: element must saturate, got {element!r}")
    if element.exponent_bits > MAX_ELEMENT_EXPONENT_BITS or element.mantissa_bits > MAX_ELEMENT_MANTISSA_BITS:
        raise ValueError(
            f"{format_name}: element has {element.exponent_bits} exponent and {element.mantissa_bits} mantissa bits; "
            f"at most {MAX_ELEMENT_EXPONENT_BITS} and {MAX_ELEMENT_MANTISSA_BITS} leave float32 room for a scale"
        )
    if isinstance(element, FixedPoint) and not element.symmetric:
        raise ValueError(f"{format_name}: element must be symmetric, or rounding twice would change the scale")


def at_bits(fmt: Format, bits: int) -> Format:
    """``fmt`` with another number of bits: of :class:`Int`, :class:`BlockFloat`, and of :class:`FixedPoint` in the same
    range, so that more bits are finer steps.

    Raises:
        ValueError: another kind of format, or bits out of its range.
    """
    match fmt:
        case Int():
            return replace(fmt, bits=bits)
        case BlockFloat():
            return replace(fmt, wl=bits)
        case FixedPoint():
            check_range("FixedPoint", "bits that keep the range", bits, max(2, fmt.wl - fmt.fl), 24)
            return replace(fmt, wl=bits, fl=fmt.fl + bits - fmt.wl)
    raise ValueError(f"{fmt!r} has no single number of bits to change; Int, BlockFloat and FixedPoint have")
