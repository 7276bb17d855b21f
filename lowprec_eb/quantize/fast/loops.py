"""The inner loops: random words, and rounding one tile of float32 values, as straight lines of vector instructions.

Results are, bit for bit, those of :mod:`lowprec_eb.quantize.reference`. A rounding's mode is a constant of its loop;
everything else comes at run time. Imported only when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.lanes import (
    add,
    below,
    bits_of,
    both,
    differ,
    either,
    f32_at,
    float_of,
    magnitude,
    pick,
    pick_bits,
    round_down,
    round_even,
    shift_left,
    shift_right,
    sub,
    to_float,
    u32_at,
    u64_at,
    widest_vectors,
)

# No wrappers for calls from Python: they take a fifth of the compilation.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

_U = np.uint32
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_2_TO_24 = np.float32(2.0**24)
_GAMMA, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ABSOLUTE, _SIGN, _INFINITY, _NORMAL = _U(0x7FFFFFFF), _U(0x80000000), _U(0x7F800000), _U(0x00800000)


@njit(**OPTIONS)
def _mix(z):
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@njit(**OPTIONS)
def fill_pairs(target, pairs, seed, first_pair):
    """SplitMix64 outputs ``first_pair`` and on: each is the random words of two elements."""
    widest_vectors()
    words = u64_at(target)
    z = seed + (first_pair + np.uint64(1)) * _GAMMA
    for j in range(pairs):
        words[j] = _mix(z)
        z += _GAMMA


def _make_away_from_even(mode: int) -> Any:
    """Rounding to whole numbers in the modes that look at magnitudes."""

    @njit(**OPTIONS)
    def whole(v, word):
        a = magnitude(v)
        down = round_down(a)
        if mode == slots.NEAREST_AWAY:
            down = pick(a - down >= _HALF, down + _ONE, down)
        elif mode == slots.STOCHASTIC:  # the uniform number is an odd multiple of 2 ** -24
            odd = to_float(either(shift_right(word, _U(8)), _U(1)))
            down = pick((a - down) * _2_TO_24 > odd, down + _ONE, down)
        return float_of(either(bits_of(down), both(bits_of(v), _SIGN)))

    return whole


def _make_whole_loop(mode: int) -> Any:
    by_magnitude = _make_away_from_even(mode)

    @njit(**OPTIONS)
    def loop(source, target, scales, words, count, low, high, passes, tolerance):
        x, out, scale, word = f32_at(source), f32_at(target), f32_at(scales), u32_at(words)
        for j in range(count):
            v = x[j] / scale[j]
            code = round_even(v)
            if mode != slots.NEAREST:
                inexact = magnitude(v - code) > tolerance * magnitude(v)
                code = pick(inexact, by_magnitude(v, word[j] if mode == slots.STOCHASTIC else _U(0)), code)
            code = pick(code < low, low, code)  # a NaN falls through
            code = pick(code > high, high, code)
            out[j] = pick(magnitude(x[j]) >= passes, x[j], code * scale[j]) + _ZERO  # integers have one zero

    return loop


def _make_affine_loop(mode: int) -> Any:
    by_magnitude = _make_away_from_even(mode)

    @njit(**OPTIONS)
    def loop(source, target, scales, zeros, words, count, high, passes, largest, from_minimum, tolerance):
        x, out, scale, zero, word = f32_at(source), f32_at(target), f32_at(scales), f32_at(zeros), u32_at(words)
        for j in range(count):
            half = x[j] * _HALF - zero[j] * _HALF  # the whole difference may overflow
            v = half / scale[j] * _TWO if from_minimum else x[j] / scale[j]
            code = round_even(v)
            if mode != slots.NEAREST:
                reach = magnitude(v) + magnitude(zero[j]) / scale[j] if from_minimum else magnitude(v)
                inexact = magnitude(v - code) > tolerance * reach
                code = pick(inexact, by_magnitude(v, word[j] if mode == slots.STOCHASTIC else _U(0)), code)
            code = code + (_ZERO if from_minimum else zero[j])
            code = pick(code < _ZERO, _ZERO, code)
            code = pick(code > high, high, code)
            lifted = (code * (scale[j] * _HALF) + zero[j] * _HALF) * _TWO
            rounded = lifted if from_minimum else (code - zero[j]) * scale[j]
            rounded = pick(rounded < -largest, -largest, pick(rounded > largest, largest, rounded))
            out[j] = pick(magnitude(x[j]) >= passes, x[j], rounded)

    return loop


@njit(**OPTIONS)
def even_bits(a, mantissa, half, odd, normal, magic):
    """Bit pattern of a magnitude rounded to nearest even, before overflow. ``half`` is that of the last bit kept."""
    up = sub(add(half, both(shift_right(a, sub(_U(23), mantissa)), odd)), odd)
    whole = shift_left(shift_right(add(a, up), sub(_U(23), mantissa)), sub(_U(23), mantissa))
    return pick_bits(below(a, normal), bits_of((float_of(a) + magic) - magic), whole)


def _make_float_loop(mode: int, exact: bool = False) -> Any:
    """``exact``: no quotient is rounded, so stochastic rounding need not look for what is whole within an error."""
    by_magnitude = _make_away_from_even(mode)

    @njit(**OPTIONS)
    def loop(source, target, scales, words, count, job, real):
        x, out, scale, word = f32_at(source), f32_at(target), f32_at(scales), u32_at(words)
        base = slots.ELEMENT
        mantissa, mask = _U(job[base + slots.MANTISSA]), _U(job[base + slots.MASK])
        half, odd = _U(job[base + slots.HALF]), _U(job[base + slots.ODD])
        normal, largest = _U(job[base + slots.NORMAL]), _U(job[base + slots.LARGEST])
        beyond, infinite = _U(job[base + slots.BEYOND]), _U(job[base + slots.INFINITE])
        down_1, down_2, up_1, up_2 = real[slots.DOWN_1], real[slots.DOWN_2], real[slots.UP_1], real[slots.UP_2]
        magic, tolerance, tensor_scale = real[slots.MAGIC], real[slots.TOLERANCE], real[slots.TENSOR_SCALE]
        kept, seen = differ(mask, _U(0xFFFFFFFF)), _U(0)
        for j in range(count):
            v = x[j] / (scale[j] * tensor_scale)
            pattern = bits_of(v)
            a = both(pattern, _ABSOLUTE)
            seen = pick_bits(below(seen, a), a, seen)
            r = _U(0) if exact else even_bits(a, mantissa, half, odd, normal, magic)
            if mode != slots.NEAREST:
                w = word[j] if mode == slots.STOCHASTIC else _U(0)
                if mode == slots.NEAREST_AWAY:
                    q = add(a, half)
                elif mode == slots.STOCHASTIC:  # carries exactly when the fraction is above the uniform number
                    q = add(a, sub(mask, shift_right(shift_right(w, _U(9)), mantissa)))
                else:
                    q = a
                small = bits_of(by_magnitude(float_of(a) * down_1 * down_2, w) * up_1 * up_2)
                q = pick_bits(below(a, normal), small, both(q, kept))
                inexact = magnitude(float_of(a) - float_of(r)) > tolerance * float_of(a)
                r = q if exact else pick_bits(inexact, q, r)
            r = pick_bits(below(largest, r), beyond, r)
            r = pick_bits(below(a, _INFINITY), r, pick_bits(below(_INFINITY, a), a, infinite))
            out[j] = float_of(either(r, both(pattern, _SIGN))) * scale[j] * tensor_scale
        return below(_INFINITY, seen)

    return loop


_whole_even, _whole_away, _whole_down, _whole_random = map(_make_whole_loop, slots.MODES)
_affine_even, _affine_away, _affine_down, _affine_random = map(_make_affine_loop, slots.MODES)
_float_even, _float_away, _float_down, _float_random = map(_make_float_loop, slots.MODES)
_float_random_exact = _make_float_loop(slots.STOCHASTIC, exact=True)


@njit(**OPTIONS)
def round_whole(job, real, source, target, scales, zeros, words, count):
    a, b, c, d = real[slots.LOW], real[slots.HIGH], real[slots.PASSES], real[slots.TOLERANCE]
    mode = job[slots.MODE]
    if mode == slots.NEAREST:
        _whole_even(source, target, scales, words, count, a, b, c, d)
    elif mode == slots.NEAREST_AWAY:
        _whole_away(source, target, scales, words, count, a, b, c, d)
    elif mode == slots.TOWARD_ZERO:
        _whole_down(source, target, scales, words, count, a, b, c, d)
    else:
        _whole_random(source, target, scales, words, count, a, b, c, d)


@njit(**OPTIONS)
def round_affine(job, real, source, target, scales, zeros, words, count):
    high, passes, tolerance = real[slots.HIGH], real[slots.PASSES], real[slots.TOLERANCE]
    from_minimum, largest = real[slots.LOW] != _ZERO, real[slots.LARGEST_RESULT]
    mode = job[slots.MODE]
    if mode == slots.NEAREST:
        _affine_even(source, target, scales, zeros, words, count, high, passes, largest, from_minimum, tolerance)
    elif mode == slots.NEAREST_AWAY:
        _affine_away(source, target, scales, zeros, words, count, high, passes, largest, from_minimum, tolerance)
    elif mode == slots.TOWARD_ZERO:
        _affine_down(source, target, scales, zeros, words, count, high, passes, largest, from_minimum, tolerance)
    else:
        _affine_random(source, target, scales, zeros, words, count, high, passes, largest, from_minimum, tolerance)


@njit(**OPTIONS)
def round_float(job, real, source, target, scales, zeros, words, count):
    mode = job[slots.MODE]
    if mode == slots.NEAREST:
        damaged = _float_even(source, target, scales, words, count, job, real)
    elif mode == slots.NEAREST_AWAY:
        damaged = _float_away(source, target, scales, words, count, job, real)
    elif mode == slots.TOWARD_ZERO:
        damaged = _float_down(source, target, scales, words, count, job, real)
    elif real[slots.TOLERANCE] == _ZERO:
        damaged = _float_random_exact(source, target, scales, words, count, job, real)
    else:
        damaged = _float_random(source, target, scales, words, count, job, real)
    if damaged:
        job[slots.NAN_SEEN] = 1
