"""The kernels: one pass over memory in tiles that stay in the first-level cache.

A kernel is ``kernel(job, first, last)`` on the buffer that :mod:`lowprec_eb.quantize.fast.slots` lays out. Formats,
roundings, dtypes and layouts are run-time switches outside the inner loops, so six kernels cover everything. Imported
only when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.lanes import (
    add,
    below,
    bits_of,
    both,
    either,
    f32,
    f32_at,
    float_of,
    float_to_half,
    half_to_float,
    i64_at,
    largest_of,
    largest_of_halves,
    low_half,
    pick_bits,
    shift_left,
    shift_right,
    stack_tile,
    sub,
    to_float,
    u16_at,
    u32,
    u32_at,
    widened,
)
from lowprec_eb.quantize.fast.loops import OPTIONS, even_bits, fill_pairs, round_affine, round_float, round_whole

TILE = 1024
SIGNATURE = types.void(types.int64, types.int64, types.int64)

_U = np.uint32
_ABSOLUTE, _INFINITY = _U(0x7FFFFFFF), _U(0x7F800000)

_value_tile, _scale_tile, _zero_tile, _result_tile = (stack_tile(f32, TILE) for _ in range(4))
_word_tile = stack_tile(u32, TILE + 2)
_largest_of_16, _largest_of_32 = largest_of(16), largest_of(32)
_largest_of_32_halves = largest_of_halves(32)


# ---- random words ------------------------------------------------------------------------------------------------


@njit(**OPTIONS)
def _words(job, tile, first, count):
    """Address of the random words of elements ``first`` to ``first + count``."""
    if job[slots.MODE] != slots.STOCHASTIC:
        return tile
    index = np.uint64(job[slots.OFFSET]) + np.uint64(first)
    half = np.int64(index & np.uint64(1))  # an odd first element takes the upper half of its pair
    fill_pairs(tile, (count + half + 1) >> 1, np.uint64(job[slots.SEED]), index >> np.uint64(1))
    return tile + 4 * half


# ---- dtypes ------------------------------------------------------------------------------------------------------


@njit(**OPTIONS)
def _load(job, first, count, tile):
    """Address of float32 values of these elements: their own place if nothing written can reach it, else the tile."""
    source, target = job[slots.SOURCE], job[slots.TARGET]
    values = f32_at(tile)
    if job[slots.DTYPE] == slots.FLOAT32:
        start, apart = source + 4 * first, 4 * count
        if target + 4 * first >= start + apart or target + 4 * first + apart <= start:
            return start
        own = f32_at(start)
        for j in range(count):
            values[j] = own[j]
        return tile
    halves = u16_at(source + 2 * first)
    if job[slots.DTYPE] == slots.BFLOAT16:
        for j in range(count):
            values[j] = float_of(shift_left(widened(halves[j]), _U(16)))
    else:
        for j in range(count):
            values[j] = half_to_float(halves[j])
    return tile


@njit(**OPTIONS)
def _store(job, first, count, tile):
    if job[slots.DTYPE] == slots.FLOAT32:
        return
    values, halves = f32_at(tile), u16_at(job[slots.TARGET] + 2 * first)
    if job[slots.DTYPE] == slots.BFLOAT16:
        for j in range(count):
            a = bits_of(values[j])
            even = shift_right(add(a, add(_U(0x7FFF), both(shift_right(a, _U(16)), _U(1)))), _U(16))
            damaged = below(_INFINITY, both(a, _ABSOLUTE))
            halves[j] = low_half(pick_bits(damaged, either(shift_right(a, _U(16)), _U(0x40)), even))
    else:
        for j in range(count):
            halves[j] = float_to_half(values[j])


@njit(**OPTIONS)
def _target(job, first, tile):
    return job[slots.TARGET] + 4 * first if job[slots.DTYPE] == slots.FLOAT32 else tile


# ---- scales ------------------------------------------------------------------------------------------------------


@njit(**OPTIONS)
def _largest(values, count):
    """Largest bit pattern of the finite magnitudes at an address."""
    if count == 32:
        whole = _largest_of_32(values)
        if below(whole, _INFINITY):
            return whole
    elif count == 16:
        whole = _largest_of_16(values)
        if below(whole, _INFINITY):
            return whole
    x, largest = f32_at(values), _U(0)
    for j in range(count):
        a = both(bits_of(x[j]), _ABSOLUTE)
        a = pick_bits(below(a, _INFINITY), a, _U(0))
        largest = pick_bits(below(largest, a), a, largest)
    return largest


@njit(**OPTIONS)
def _measure(job, first, last):
    """Largest bit pattern of the finite magnitudes of consecutive elements."""
    if job[slots.DTYPE] == slots.FLOAT32:
        return _largest(job[slots.SOURCE] + 4 * first, last - first)
    tile, largest = _value_tile(), _U(0)
    bfloat = job[slots.DTYPE] == slots.BFLOAT16
    infinity = _U(0x7F80) if bfloat else _U(0x7C00)
    while last - first >= 32:  # patterns of 16 bits have the order of their magnitudes too
        whole = _largest_of_32_halves(job[slots.SOURCE] + 2 * first)
        if not below(whole, infinity):
            break
        a = shift_left(whole, _U(16)) if bfloat else bits_of(half_to_float(low_half(whole)))
        largest = pick_bits(below(largest, a), a, largest)
        first += 32
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        a = _largest(_load(job, start, count, tile), count)
        largest = pick_bits(below(largest, a), a, largest)
    return largest


@njit(**OPTIONS)
def _power_of_two(exponent):
    if exponent >= -126:
        return float_of(_U((exponent + 127) << 23))
    return float_of(_U(1 << (exponent + 149)))


@njit(**OPTIONS)
def _rounded_scale(largest, job, real):
    scale = float_of(largest) / real[slots.LEVELS]
    base = slots.SCALE_FORMAT
    mantissa, odd = _U(job[base + slots.MANTISSA]), _U(job[base + slots.ODD])
    half, normal = _U(job[base + slots.HALF]), _U(job[base + slots.NORMAL])
    rounded = float_of(even_bits(bits_of(scale), mantissa, half, odd, normal, real[slots.SCALE_MAGIC]))
    return min(max(rounded, real[slots.SMALLEST_SCALE]), real[slots.LARGEST_SCALE])


@njit(**OPTIONS)
def _scale(largest, job, real):
    """What to divide a block by, from its largest magnitude."""
    rule = job[slots.RULE]
    if rule == slots.SHARED_EXPONENT:
        if largest == _U(0):
            return np.float32(1)  # any scale gives zeros; a subnormal one would be slow
        exponent = np.int64(shift_right(largest, _U(23))) - 127 - job[slots.ELEMENT_EXPONENT]
        if below(largest, _U(1 << 23)):  # a subnormal number counts steps of 2 ** -149: its size tells the exponent
            exponent += np.int64(shift_right(bits_of(to_float(largest)), _U(23))) - 149
        exponent = min(max(exponent, job[slots.LOWEST_EXPONENT]), 127)
        return _power_of_two(exponent + job[slots.STEP_EXPONENT])
    if rule == slots.FLOAT32_SCALE:
        scale = max(float_of(largest) / real[slots.LEVELS], real[slots.SMALLEST_SCALE])
        odd = either(bits_of(scale), _U(1))
        fits = below(bits_of(float_of(odd) * real[slots.LEVELS]), _INFINITY)
        return float_of(pick_bits(fits, odd, sub(odd, _U(2))))
    return _rounded_scale(largest, job, real)


@njit(**OPTIONS)
def _apply_rule(job, real, blocks):
    scales, largest = f32_at(job[slots.SCALES]), u32_at(job[slots.SCALES])
    for block in range(blocks):
        scales[block] = _scale(largest[block], job, real)


@njit(**OPTIONS)
def _find_run_scales(job, real, first, last):
    """Scales of the blocks of rows ``first`` to ``last`` of a layout in runs."""
    scales, length = f32_at(job[slots.SCALES]), job[slots.LENGTH]
    size, blocks = job[slots.SIZE], job[slots.BLOCKS]
    for row in range(first, last):
        for block in range(blocks):
            start = row * length + block * size
            end = min(start + size, (row + 1) * length)
            scales[row * blocks + block] = _scale(_measure(job, start, end), job, real)


@njit(**OPTIONS)
def _measure_across(job, outer):
    """Largest bit pattern of each block of a layout in slices or stripes, into the place of its scale."""
    tile, length, inner = _value_tile(), job[slots.LENGTH], job[slots.INNER]
    largest, stripes = u32_at(job[slots.SCALES]), job[slots.LAYOUT] == slots.STRIPES
    for block in range(job[slots.BLOCKS] * (outer * inner if stripes else 1)):
        largest[block] = _U(0)
    for row in range(outer * length):
        index = row % length
        for start in range(0, inner, TILE):
            count = min(TILE, inner - start)
            values = _load(job, row * inner + start, count, tile)
            if stripes:
                block = (row // length * job[slots.BLOCKS] + index // job[slots.SIZE]) * inner + start
                _raise_each(job[slots.SCALES] + 4 * block, values, count)
            else:
                a = _largest(values, count)
                largest[index] = pick_bits(below(largest[index], a), a, largest[index])


@njit(**OPTIONS)
def _raise_each(target, values, count):
    largest, x = u32_at(target), f32_at(values)
    for j in range(count):
        a = both(bits_of(x[j]), _ABSOLUTE)
        a = pick_bits(below(a, _INFINITY), a, _U(0))
        largest[j] = pick_bits(below(largest[j], a), a, largest[j])


@njit(**OPTIONS)
def _fill(target, first, last, number):
    tile = f32_at(target)
    for j in range(first, last):
        tile[j] = number


@njit(**OPTIONS)
def _spread_runs(job, source, first, count, target):
    length, size = job[slots.LENGTH], job[slots.SIZE]
    row, index = divmod(first, length)
    block, left, done = row * job[slots.BLOCKS] + index // size, size - index % size, 0
    while done < count:
        run = min(left, length - index)
        _fill(target, done, min(count, done + run), source[block])
        done, index, block, left = done + run, index + run, block + 1, size
        if index == length:
            index = 0


@njit(**OPTIONS)
def _spread_slices(job, source, first, count, target):
    length, inner = job[slots.LENGTH], job[slots.INNER]
    index, place = divmod(first, inner)
    index, done = index % length, 0
    while done < count:
        run = inner - place
        _fill(target, done, min(count, done + run), source[index])
        done, place, index = done + run, 0, index + 1
        if index == length:
            index = 0


@njit(**OPTIONS)
def _spread_stripes(job, source, first, count, target):
    length, size, inner, tile = job[slots.LENGTH], job[slots.SIZE], job[slots.INNER], f32_at(target)
    row, place = divmod(first, inner)
    done = 0
    while done < count:
        outer, index = divmod(row, length)
        block = (outer * job[slots.BLOCKS] + index // size) * inner + place
        end = min(count, done + inner - place)
        for j in range(done, end):
            tile[j] = source[block + j - done]
        done, place, row = end, 0, row + 1


@njit(**OPTIONS)
def _spread(job, blocks, first, count, target):
    """Each element's scale (or zero point) into a tile; ``blocks`` is the address of one number a block."""
    source, layout = f32_at(blocks), job[slots.LAYOUT]
    if layout == slots.RUNS:
        _spread_runs(job, source, first, count, target)
    elif layout == slots.SLICES:
        _spread_slices(job, source, first, count, target)
    else:
        _spread_stripes(job, source, first, count, target)


# ---- kernels -----------------------------------------------------------------------------------------------------


@njit(**OPTIONS)
def _prepare(job, real, start, count, scales, zeros):
    """The tile's scales and zero points."""
    if job[slots.LAYOUT] != slots.NO_BLOCKS:
        _spread(job, job[slots.SCALES], start, count, scales)
        if job[slots.ZEROS] != 0:
            _spread(job, job[slots.ZEROS], start, count, zeros)


def _make_span(round_tile: Any) -> Any:
    @njit(**OPTIONS)
    def span(job, real, first, last):
        """Round consecutive elements whose scales are known."""
        values, results, words = _value_tile(), _result_tile(), _word_tile()
        scales, zeros = _scale_tile(), _zero_tile()
        constant = f32_at(scales)
        for j in range(TILE):
            constant[j] = real[slots.CONSTANT_SCALE]
        for start in range(first, last, TILE):
            count = min(TILE, last - start)
            _prepare(job, real, start, count, scales, zeros)
            source, target = _load(job, start, count, values), _target(job, start, results)
            round_tile(job, real, source, target, scales, zeros, _words(job, words, start, count), count)
            _store(job, start, count, target)

    return span


def _make_rounding(round_tile: Any) -> Any:
    span = _make_span(round_tile)

    def kernel(address, first, last):
        """Round elements ``first`` to ``last``; of a layout in runs, rows, whose scales are found on the way."""
        job, real = i64_at(address), f32_at(address + slots.REALS_AT)
        if job[slots.LAYOUT] != slots.RUNS:
            span(job, real, first, last)
            return
        length = job[slots.LENGTH]
        together = max(1, 4 * TILE // max(length, 1))  # rows that stay in the cache between measuring and rounding
        for row in range(first, last, together):
            end = min(row + together, last)
            if job[slots.RULE] != slots.GIVEN:
                _find_run_scales(job, real, row, end)
            span(job, real, row * length, end * length)

    return kernel


def find_scales(address, first, last):
    """Scales of a layout in slices or stripes; ``last`` is the number of outer indices."""
    job, real = i64_at(address), f32_at(address + slots.REALS_AT)
    _measure_across(job, last)
    _apply_rule(job, real, job[slots.BLOCKS] * (last * job[slots.INNER] if job[slots.LAYOUT] == slots.STRIPES else 1))


def measure(address, first, last):
    """Largest finite magnitude of consecutive elements, as a float32 at the address of the scales."""
    job = i64_at(address)
    u32_at(job[slots.SCALES])[0] = _measure(job, first, last)


def apply_rule(address, first, last):
    """Scales of ``last`` blocks from the largest magnitudes that stand in their places."""
    _apply_rule(i64_at(address), f32_at(address + slots.REALS_AT), last)


KERNELS: dict[str, Any] = {
    "round_whole": _make_rounding(round_whole),
    "round_affine": _make_rounding(round_affine),
    "round_float": _make_rounding(round_float),
    "find_scales": find_scales,
    "measure": measure,
    "apply_rule": apply_rule,
}
