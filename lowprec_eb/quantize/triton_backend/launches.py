"""Formats and shapes as launches of the kernels: what is known before a call's tensors."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from lowprec_eb.formats import Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.plan import Geometry, plan

TILE = 2048  # elements of most tiles, 16 a thread
LONGEST_RUN = 8192  # elements of a block in one tile; longer ones are measured before
LONGEST_STRIPE = 1024
MEASURED_TILES, MEASURED_ROWS = 8, 64  # by one program, which then raises the maxima of its blocks once
_NARROW = 64  # rows of fewer elements leave most of a tile empty
_KINDS = {"round_whole": 0, "round_affine": 1, "round_float": 2}
_NO_SCALE = -1
FLAT, RUNS, STRIPES, ROWS, COLUMNS = range(5)
_NUMBERS = struct.Struct(f"={slots.INTEGERS}q{slots.REALS}f")


@dataclass(frozen=True)
class Tiles:
    """How tiles of R rows and W columns cover a tensor, and the arguments that say so."""

    layout: int
    programs: int
    rows: int
    length: int = 1
    size: int = 1
    blocks: int = 1
    inner: int = 1
    across: int = 1  # tiles beside each other
    height: int = 1
    width: int = TILE

    @property
    def even(self) -> bool:
        """Whether each row begins at an even index, so that neighbours share a random number."""
        match self.layout:
            case 1:
                distances = [self.length, self.size] if self.blocks > 1 else [self.length]
            case 4:
                distances = [self.length * self.inner]
            case 0:
                distances = [self.width]
            case _:
                distances = [self.inner]
        return self.width > 1 and all(distance % 2 == 0 for distance in distances)


@dataclass(frozen=True)
class Launch:
    """A call of :func:`kernels.round_tiles`, except for its tensors."""

    tiles: Tiles
    numbers: tuple[float, ...]  # of the format, in the kernel's order
    given_numbers: tuple[float, ...]  # where the user gives the scales: they saturate infinities
    choices: dict[str, Any]
    scales: int  # blocks that are measured, or found by torch, before the kernel; 0: none
    refuses_nan: bool
    wide: bool


@lru_cache(maxsize=4096)
def launch(fmt: Format, rounding: str, shape: tuple[int, ...], dtype: torch.dtype) -> Launch | str:
    """The launch of a call on a contiguous tensor; a text says why the kernels cannot do it.

    Raises:
        ValueError: the tensor lacks a dimension of the format's blocks.
    """
    made = plan(fmt, rounding, shape, dtype)
    if isinstance(made, str):
        return made
    if isinstance(fmt, ScaledFloat) and fmt.scale is not None and fmt.scale.overflow == "nan":
        return "its scales overflow to NaN"
    count = math.prod(shape)
    tiles = _tiles(made.place, count)
    if isinstance(tiles, str):
        return tiles
    values = _NUMBERS.unpack(made.buffer)
    integers, reals = list(values[: slots.INTEGERS]), list(values[slots.INTEGERS :])
    numbers = _numbers(fmt, made.kernel, integers, reals)
    saturating = {"passes": float("nan"), "infinite": integers[slots.ELEMENT + slots.LARGEST]}
    choices = {
        "KIND": _KINDS[made.kernel],
        "MODE": integers[slots.MODE],
        "RULE": integers[slots.RULE] if fmt.blocks is not None and not is_affine(fmt) else _NO_SCALE,
        "INEXACT": isinstance(fmt, Int | ScaledFloat),
        "FROM_MINIMUM": isinstance(fmt, Int) and fmt.zero_point == "minimum",
        "TWO_LEVELS": fmt.tensor_scale_bits > 0,
        "REFUSES_NAN": made.refuses_nan,
    }
    before = tiles.layout in (ROWS, COLUMNS) or is_affine(fmt)
    scales = made.place.scales if before else 0
    given = tuple((numbers | saturating).values())
    return Launch(tiles, tuple(numbers.values()), given, choices, scales, made.refuses_nan, count >= 2**31 - 2**16)


def _tiles(place: Geometry, count: int) -> Tiles | str:
    outer, length, size, inner, blocks = place.outer, place.length, place.size, place.inner, place.blocks
    match place.layout:
        case slots.NO_BLOCKS:
            return Tiles(FLAT, -(-count // TILE), count)
        case slots.RUNS if size <= LONGEST_RUN:
            width = _power_of_two(size)
            height = max(1, TILE // width)
            return Tiles(RUNS, -(-outer * blocks // height), outer * blocks, length, size, blocks, 1, 1, height, width)
        case slots.RUNS if blocks == 1:
            return _rows(outer, outer, size)
        case slots.STRIPES if size <= LONGEST_STRIPE:
            height = _power_of_two(size)
            width = max(8, TILE // height)
            across = -(-inner // width)
            return Tiles(STRIPES, outer * blocks * across, 0, length, size, blocks, inner, across, height, width)
        case slots.SLICES if inner >= _NARROW:
            return _rows(outer * length, length, inner)
        case slots.SLICES:
            width = min(TILE, max(16, _power_of_two(length * inner)))
            height, across = TILE // width, -(-length * inner // width)
            programs = -(-outer // height) * across
            return Tiles(COLUMNS, programs, outer, length, 1, 1, inner, across, height, width)
    return f"its blocks of {size} elements do not fit into one tile"


def _rows(lines: int, cells: int, inner: int) -> Tiles:
    width = min(TILE, _power_of_two(inner))
    across = -(-inner // width)
    return Tiles(ROWS, lines * across, lines, cells, 1, 1, inner, across, 1, width)


def _power_of_two(count: int) -> int:
    """The next one."""
    return 1 << max(count - 1, 0).bit_length()


def _numbers(fmt: Format, kernel: str, integers: list[int], reals: list[float]) -> dict[str, float]:
    """The kernel's numbers by their names, in its order."""
    element, scale = integers[slots.ELEMENT : slots.SCALE_FORMAT], integers[slots.SCALE_FORMAT :]
    step = reals[slots.CONSTANT_SCALE]
    whole = kernel == "round_whole"
    span, dropped = 1.0, 0
    if isinstance(fmt, ScaledFloat) and fmt.tensor_scale and fmt.scale is not None:
        span, dropped = fmt.element.max * fmt.scale.max, min(fmt.element.man + 1 + fmt.scale.man + 1, 16)
    return {
        "low": reals[slots.LOW],
        "high": reals[slots.HIGH],
        "passes": reals[slots.PASSES],
        "step": step,
        "steps": 1 / step,
        "levels": reals[slots.LEVELS],
        "mantissa": element[slots.MANTISSA],
        "normal": element[slots.NORMAL],
        "step_exponent": integers[slots.STEP_EXPONENT] if whole else _exponent(fmt.element.smallest),
        "largest": element[slots.LARGEST],
        "beyond": element[slots.BEYOND],
        "infinite": element[slots.INFINITE],
        "element_exponent": integers[slots.ELEMENT_EXPONENT],
        "lowest_exponent": integers[slots.LOWEST_EXPONENT],
        "scale_mantissa": scale[slots.MANTISSA],
        "scale_normal": scale[slots.NORMAL],
        "scale_step_exponent": _exponent(reals[slots.SMALLEST_SCALE]),
        "smallest_scale": reals[slots.SMALLEST_SCALE],
        "highest_scale": reals[slots.LARGEST_SCALE],
        "span": span,
        "dropped": dropped,
        "largest_result": reals[slots.LARGEST_RESULT],
    }


def _exponent(power: float) -> int:
    """Of a power of two; 0 where there is none."""
    return math.frexp(power)[1] - 1 if power else 0
