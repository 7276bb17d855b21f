"""Formats and shapes as the numbers that a kernel reads."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from lowprec_eb.formats import MX, BlockFloat, Blocks, FixedPoint, Float, Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.order import rows_of

_INFINITY, _NAN = 0x7F800000, 0x7FC00000
_MODES = {
    "nearest": slots.NEAREST,
    "nearest_away": slots.NEAREST_AWAY,
    "toward_zero": slots.TOWARD_ZERO,
    "stochastic": slots.STOCHASTIC,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # computed in float32
_PACKING = struct.Struct(f"={slots.INTEGERS}q{slots.REALS}f")


@dataclass(frozen=True)
class Plan:
    """What is known of a call before its tensors: the kernel, the buffer's constant part, and how blocks lie."""

    kernel: str  # family of elements
    scaling: str  # "unscaled", "power" (of two) or "real"
    rounding: str
    dtype: str
    buffer: bytes
    place: Geometry
    lanes: Geometry  # the same, with neighbours that have a scale each seen as stripes
    refuses_nan: bool
    takes_one_scale: bool  # a given number is the scale as it is
    scales_first: bool  # an affine format's scales are found before the kernel, and a two-level one's tensor scale
    order: tuple[int, ...] | None  # the tensor's dimensions as they lie in memory; None: it is contiguous

    @cached_property
    def compiled(self) -> str:
        """Name of the kernel that rounds."""
        return self._named("plain")

    @cached_property
    def coding(self) -> str:
        """Name of the kernel that rounds and stores the codes too."""
        return self._named("coded")

    @cached_property
    def decoding(self) -> str:
        """Name of the kernel that makes rounded values of codes."""
        return "-".join(("decode", self.kernel, self.scaling, self.dtype))

    def _named(self, codes: str) -> str:
        nan = "error" if self.refuses_nan else "keep"
        order = "permuted" if self.order is not None and self.rounding == "stochastic" else "plain"
        return "-".join((self.kernel, self.scaling, self.rounding, self.dtype, nan, order, codes))


@dataclass(frozen=True)
class Geometry:
    """How the blocks of a contiguous tensor lie: (outer, length, inner) around their axis."""

    layout: int
    outer: int = 1
    length: int = 1
    size: int = 1
    inner: int = 1

    @property
    def blocks(self) -> int:
        """Blocks along the axis."""
        return self.length if self.layout == slots.SLICES else -(-self.length // max(self.size, 1))

    @property
    def scales(self) -> int:
        return self.blocks if self.layout == slots.SLICES else self.outer * self.blocks * self.inner


def _obstacle(fmt: Format) -> str | None:
    """Why the kernels cannot round to ``fmt``; None if they can."""
    if isinstance(fmt, MX) and isinstance(fmt.element, FixedPoint) and fmt.element.fl > 22:
        return "the steps of its elements leave float32's range"
    if isinstance(fmt, ScaledFloat) and fmt.scale is not None and fmt.scale.ties == "away":
        return "its scales round ties away from zero"
    return None


@lru_cache(maxsize=4096)
def plan(
    fmt: Format, rounding: str, shape: tuple[int, ...], dtype: torch.dtype, order: tuple[int, ...] | None = None
) -> Plan | str:
    """The plan of a call on a tensor that lies in ``order``; a text says why the kernels cannot do it.

    Raises:
        ValueError: the tensor lacks a dimension of the format's blocks.
    """
    if dtype not in DTYPES:
        return f"it rounds float32, bfloat16 and float16, not {dtype}"
    if order is None:
        place = geometry(fmt.blocks, shape)
    else:
        place = geometry(_moved(fmt.blocks, shape, order), tuple(shape[d] for d in order))
    if place is None:
        return "its blocks span dimensions that do not lie side by side"
    if reason := _obstacle(fmt):
        return reason
    rounding = _rounding_of(fmt, rounding)
    kernel, integers, reals = _constants(fmt, rounding)
    reals[slots.LARGEST_RESULT] = torch.finfo(dtype).max
    lanes = _by_lanes(place)
    integers[slots.LAYOUT], integers[slots.LENGTH], integers[slots.SIZE] = lanes.layout, lanes.length, lanes.size
    integers[slots.BLOCKS], integers[slots.INNER] = lanes.blocks, lanes.inner
    if order is not None and rounding == "stochastic" and not _write_rows(shape, order, integers):
        return "the order of its elements in memory takes too many loops"
    refuses_nan = isinstance(fmt.element, Float) and fmt.element.nan == "error"
    scales_first = fmt.has_zero_point or fmt.tensor_scale_bits > 0
    one_scale = not scales_first and not (isinstance(fmt, ScaledFloat) and fmt.scale is not None)
    choices = kernel, _scaling(fmt), rounding, str(dtype).removeprefix("torch.")
    return Plan(*choices, _PACKING.pack(*integers, *reals), place, lanes, refuses_nan, one_scale, scales_first, order)


def _moved(blocks: Blocks | None, shape: tuple[int, ...], order: tuple[int, ...]) -> Blocks | None:
    """The same blocks of the tensor with its dimensions in ``order``."""
    if blocks is None:
        return None
    blocks.scale_shape(shape)  # raises if the tensor lacks a dimension
    place = {d: moved for moved, d in enumerate(order)}
    if blocks.size is not None:
        return Blocks(size=blocks.size, axis=place[blocks.axis % len(shape)])
    return Blocks(slices=tuple(place[d % len(shape)] for d in blocks.slices))


def _write_rows(shape: tuple[int, ...], order: tuple[int, ...], integers: list[int]) -> bool:
    """Where the random words of elements that lie in ``order`` come from; False if a kernel cannot tell."""
    rows = rows_of(shape, order)
    if rows is None:
        return False
    integers[slots.ROW], integers[slots.STEP] = rows.length, rows.step
    integers[slots.COUNT_1 : slots.STRIDE_1] = rows.counts
    integers[slots.STRIDE_1 : slots.PAIRS] = rows.strides
    integers[slots.PAIRS] = rows.come_in_pairs
    return True


def _rounding_of(fmt: Format, rounding: str) -> str:
    ties_away = isinstance(fmt.element, Float) and fmt.element.ties == "away"
    return "nearest_away" if rounding == "nearest" and ties_away else rounding


def _scaling(fmt: Format) -> str:
    if fmt.blocks is None and isinstance(fmt.element, Float):
        return "unscaled"
    return "real" if isinstance(fmt, Int | ScaledFloat) else "power"


def _constants(fmt: Format, rounding: str) -> tuple[str, list[int], list[float]]:
    """Kernel, integers and reals that the format and the rounding decide."""
    integers, reals = [0] * slots.INTEGERS, [0.0] * slots.REALS
    element = fmt.element
    integers[slots.MODE] = _MODES[rounding]
    reals[slots.CONSTANT_SCALE] = 1.0
    reals[slots.TENSOR_SCALE] = 1.0
    _write_rule(fmt, integers, reals)
    if isinstance(element, Float):
        _write_float(element, rounding, integers, reals)
        if fmt.blocks is not None:
            integers[slots.ELEMENT + slots.INFINITE] = _INFINITY
        return "round_float", integers, reals
    _write_integer(fmt, element, reals)
    return "round_affine" if is_affine(fmt) else "round_whole", integers, reals


def _write_rule(fmt: Format, integers: list[int], reals: list[float]) -> None:
    step_exponent = -fmt.element.fl if isinstance(fmt.element, FixedPoint) else 0
    match fmt:
        case BlockFloat():
            shared = (slots.SHARED_EXPONENT, 0, -126, step_exponent)
        case MX():
            shared = (slots.SHARED_EXPONENT, fmt.element.max_exponent, -127, step_exponent)
        case Int() | ScaledFloat():
            _write_real_scale(fmt, integers, reals)
            return
        case _:
            return
    integers[slots.RULE : slots.RULE + 4] = shared


def _write_real_scale(fmt: Int | ScaledFloat, integers: list[int], reals: list[float]) -> None:
    reals[slots.TOLERANCE] = 2.0**-22
    if isinstance(fmt, Int) or fmt.scale is None:
        integers[slots.RULE] = slots.FLOAT32_SCALE
        reals[slots.LEVELS] = fmt.levels if isinstance(fmt, Int) else fmt.element.max
        reals[slots.SMALLEST_SCALE] = fmt.scale_limits[0]
        return
    integers[slots.RULE] = slots.ROUNDED_SCALE
    reals[slots.LEVELS] = fmt.element.max
    reals[slots.SMALLEST_SCALE] = fmt.scale.smallest
    reals[slots.LARGEST_SCALE] = fmt.scale.max if fmt.scale.max_exponent < 128 else math.inf
    integers[slots.SCALE_FORMAT : slots.SCALE_FORMAT + 8] = _float_slots(fmt.scale, "nearest")
    reals[slots.SCALE_MAGIC] = 2.0**23 * fmt.scale.smallest


def _write_integer(fmt: Format, element: FixedPoint, reals: list[float]) -> None:
    reals[slots.PASSES] = math.nan if fmt.blocks is None else math.inf
    if is_affine(fmt):
        reals[slots.LOW], reals[slots.HIGH] = float(fmt.zero_point == "minimum"), fmt.levels
        return
    reals[slots.LOW], reals[slots.HIGH] = element.min_code, element.max_code
    if fmt.blocks is None:
        reals[slots.CONSTANT_SCALE] = element.step
    if not element.clamp:
        reals[slots.LOW], reals[slots.HIGH] = -math.inf, math.inf
        reals[slots.PASSES] = 2.0**24 * element.step  # whole numbers of steps from here on


def _write_float(element: Float, rounding: str, integers: list[int], reals: list[float]) -> None:
    integers[slots.ELEMENT : slots.ELEMENT + 8] = _float_slots(element, rounding)
    exponent = math.frexp(element.smallest)[1] - 1
    near = max(exponent, -120)
    reals[slots.DOWN_1 : slots.UP_2 + 1] = [2.0**-near, 2.0 ** (near - exponent), 2.0**near, 2.0 ** (exponent - near)]
    reals[slots.MAGIC] = 2.0**23 * element.smallest


def _float_slots(fmt: Float, rounding: str) -> list[int]:
    going = 23 - fmt.man
    largest = _INFINITY if fmt.max_exponent > 127 else _bits(fmt.max)
    infinite = {"saturate": largest, "infinity": _INFINITY, "nan": _NAN}[fmt.overflow]
    beyond = largest if rounding == "toward_zero" else infinite
    half = 1 << (going - 1) if going else 0
    normal = _bits(2.0**fmt.min_exponent)
    return [fmt.man, (1 << going) - 1, half, min(going, 1), normal, largest, beyond, infinite]


def _bits(value: float) -> int:
    return int(struct.unpack("=I", struct.pack("=f", value))[0])


def geometry(blocks: Blocks | None, shape: tuple[int, ...]) -> Geometry | None:
    """The layout of blocks in a contiguous tensor; None for slices of dimensions that do not lie side by side."""
    if blocks is None:
        return Geometry(slots.NO_BLOCKS)
    blocks.scale_shape(shape)  # raises if the tensor lacks a dimension
    count = math.prod(shape)
    if not shape:
        return Geometry(slots.RUNS, 1, 1, 1)
    if blocks.size is not None:
        axis = blocks.axis % len(shape)
        outer, length, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        if inner == 1 and length % blocks.size == 0:  # every block is a row, so threads can share one long row
            return Geometry(slots.RUNS, count // blocks.size, blocks.size, blocks.size)
        return Geometry(slots.RUNS if inner == 1 else slots.STRIPES, outer, length, blocks.size, inner)
    kept = sorted({d % len(shape) for d in blocks.slices if shape[d] != 1})
    if not kept:
        return Geometry(slots.RUNS, 1, count, count)
    first, last = kept[0], kept[-1] + 1
    if any(d not in kept and shape[d] != 1 for d in range(first, last)):
        return None
    outer, length, inner = math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])
    if outer == 1:
        return Geometry(slots.RUNS, length, inner, inner)
    return Geometry(slots.SLICES, outer, length, 1, inner)


def _by_lanes(place: Geometry) -> Geometry:
    if place.layout == slots.SLICES and place.inner == 1:
        return Geometry(slots.STRIPES, 1, place.outer, place.outer, place.length)
    if place.layout == slots.RUNS and place.size == 1:
        return Geometry(slots.STRIPES, 1, 1, 1, place.scales)
    return place
