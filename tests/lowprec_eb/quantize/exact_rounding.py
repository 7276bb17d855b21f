"""An independent quantizer to compare with: one block at a time, in exact fractions, from the definitions.

Slow and short on purpose. Values are Python floats, which hold every float64, float32, float16 and bfloat16 exactly.
``work`` is the precision of a tensor's arithmetic, a function that rounds a fraction once as an IEEE operation does:
``to_float32``, or ``float`` for float64 tensors.
"""

import math
from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache, partial

import lowprec_eb as lp

MASK = 2**64 - 1


# ---- random numbers ----------------------------------------------------------------------------------------------


def split_mix_64(seed, count):
    """Output ``count`` (from 1) of the published generator: state += gamma, then mix."""
    z = (seed + count * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed, index):
    """The number of element ``index``: 23 bits of its half of an output, in the middles of 2**23 equal intervals."""
    both = split_mix_64(seed, index // 2 + 1)
    word = both >> 32 if index % 2 else both & 0xFFFFFFFF
    return Fraction(2 * (word >> 9) + 1, 2**24)


# ---- numbers -----------------------------------------------------------------------------------------------------


def power(exponent):
    return Fraction(2) ** exponent


def exponent_of(v):
    """floor(log2(v)) of a positive number."""
    guess = math.frexp(float(v))[1] - 1
    return guess - (Fraction(v) < power(guess))


def goes_up(fraction, lower_is_odd, rounding, u):
    """Whether a magnitude that lies ``fraction`` of a step above its lower neighbour goes to the upper one."""
    half = Fraction(1, 2)
    return {
        "nearest": fraction > half or (fraction == half and lower_is_odd),
        "nearest_away": fraction >= half,
        "toward_zero": False,
        "stochastic": u is not None and fraction > u,
    }[rounding]


def round_whole(v, rounding, u=None):
    """``v`` as a whole number. The rule looks at the magnitude."""
    below = math.floor(abs(v))
    code = below + goes_up(abs(v) - below, below % 2 == 1, rounding, u)
    return -code if v < 0 else code


def to_float32(v):
    """The float32 next to a number, by one rounding."""
    if v == 0 or math.isinf(v):
        return float(v)
    step = power(max(exponent_of(abs(v)), -126) - 23)
    rounded = round_whole(Fraction(v) / step, "nearest") * step
    return float(rounded) if abs(rounded) < power(128) else math.copysign(math.inf, v)


# ---- one element -------------------------------------------------------------------------------------------------


@lru_cache
def float_grid(fmt):
    """(values, codes) of a :class:`Float` from 0 up, and one value beyond the largest: where overflow begins."""

    def value(code):
        field, mantissa = divmod(code, 2**fmt.man)
        bias = 2 ** (fmt.exp - 1) - 1
        return math.ldexp(mantissa + (2**fmt.man if field else 0), max(field, 1) - bias - fmt.man)

    all_codes = 2 ** (fmt.exp + fmt.man)
    numbers = {"none": all_codes, "nan": all_codes - 1, "ieee": all_codes - 2**fmt.man}[fmt.specials]
    codes = [code for code in range(numbers + 1) if fmt.subnormals or code == 0 or code >= 2**fmt.man]
    return [value(code) for code in codes], codes


def largest_of(element):
    return float_grid(element)[0][-2] if isinstance(element, lp.Float) else (2 ** (element.wl - 1) - 1) / 2**element.fl


def round_float(v, fmt, rounding, u=None):
    """A fraction or an infinity as a number of a :class:`Float`; ties go to the even code."""
    values, codes = float_grid(fmt)
    if rounding == "nearest" and fmt.ties == "away":
        rounding = "nearest_away"
    overflow = {"saturate": values[-2], "infinity": math.inf, "nan": math.nan}[fmt.overflow]
    toward_zero = rounding == "toward_zero" and not math.isinf(v)
    i = bisect_right(values, abs(v)) - 1  # the neighbour nearer to zero
    if i < len(values) - 1:
        low, high = Fraction(values[i]), Fraction(values[i + 1])
        i += goes_up((abs(v) - low) / (high - low), codes[i] % 2 == 1, rounding, u)
    magnitude = values[i] if i < len(values) - 1 else values[-2] if toward_zero else overflow
    return -magnitude if v < 0 else magnitude


def round_fixed(v, fmt, rounding, u=None):
    """A fraction or an infinity as a number of a :class:`FixedPoint`."""
    highest = 2 ** (fmt.wl - 1) - 1
    lowest = -highest if fmt.symmetric else -highest - 1
    code = v if math.isinf(v) else round_whole(v * 2**fmt.fl, rounding, u)
    if fmt.clamp:
        code = min(max(code, lowest), highest)
    return code if math.isinf(code) else float(code * power(-fmt.fl))


def round_element(v, fmt, rounding, u=None):
    exact = v if math.isinf(v) else Fraction(v)
    return (round_fixed if isinstance(fmt, lp.FixedPoint) else round_float)(exact, fmt, rounding, u)


# ---- one block ---------------------------------------------------------------------------------------------------


def quantize_block(block, fmt, rounding="nearest", seed=None, work=to_float32):
    """What the values of a block, a list that is all of its tensor, become."""
    finite = [v for v in block if math.isfinite(v)] or [0.0]
    largest = max(map(abs, finite))
    match fmt:
        case lp.BlockFloat():
            rule = block_float(largest, fmt, rounding)
        case lp.MX():
            rule = microscaling(largest, fmt, rounding)
        case lp.Int(symmetric=False):
            rule = affine(min(finite), max(finite), fmt, rounding, work)
        case lp.Int() | lp.ScaledFloat():
            rule = scaled(*scale_of(largest, fmt, work), fmt, rounding, work)
        case _:
            rule = partial(round_element, fmt=fmt, rounding=rounding)
    us = [None if seed is None else uniform(seed, i) for i in range(len(block))]
    passes = math.isnan if fmt.blocks is None else lambda v: not math.isfinite(v)  # the scale is of the finite values
    results = [v if passes(v) else rule(v, u=u) for v, u in zip(block, us, strict=True)]
    if isinstance(fmt.element, lp.Float):  # a float has a sign even at zero
        return [math.copysign(result, v) for result, v in zip(results, block, strict=True)]
    return [result + 0.0 for result in results]


def block_float(largest, fmt, rounding):
    exponent = min(max(exponent_of(largest), -126), 127) if largest else -126
    step = power(exponent - (fmt.wl - 2))
    limit = 2 ** (fmt.wl - 1) - 1

    def rule(v, u):
        return float(min(max(round_whole(Fraction(v) / step, rounding, u), -limit), limit) * step)

    return rule


def microscaling(largest, fmt, rounding):
    exponent = exponent_of(largest) - exponent_of(largest_of(fmt.element)) if largest else -127
    scale = power(min(max(exponent, -127), 127))

    def rule(v, u):
        return float(Fraction(round_element(Fraction(v) / scale, fmt.element, rounding, u)) * scale)

    return rule


def float32_scale(value_range, levels, work):
    """The float32 next to range / levels that is normal and has an odd significand."""
    return odd_scale(work(Fraction(value_range) / Fraction(levels)))


def odd_scale(wanted):
    scale = max(to_float32(wanted), 2.0**-126)
    ulp = power(exponent_of(scale) - 23)
    return float(scale + ulp) if scale / ulp % 2 == 0 else scale


def scale_of(largest, fmt, work):
    """What the elements of a block of :class:`Int` or :class:`ScaledFloat` are multiplied with, one after the other."""
    if isinstance(fmt, lp.Int):
        return float32_scale(largest, 2 ** (fmt.bits - 1) - 1, work), 1.0
    highest = largest_of(fmt.element)
    if fmt.scale is None:
        return float32_scale(largest, highest, work), 1.0
    tensor_scale = 1.0
    if fmt.tensor_scale:
        wanted = max(to_float32(work(Fraction(largest) / Fraction(highest * largest_of(fmt.scale)))), 2.0**-126)
        step = power(exponent_of(wanted) - 23 + fmt.element.man + 1 + fmt.scale.man + 1)
        tensor_scale = float(round_whole(Fraction(wanted) / step, "toward_zero") * step)
    wanted = Fraction(work(Fraction(largest) / Fraction(work(Fraction(highest) * Fraction(tensor_scale)))))
    rounded = min(max(round_float(wanted, fmt.scale, "nearest"), fmt.scale.smallest), fmt.scale.max)
    return rounded, tensor_scale


def snapped(steps, rounding, reach=None):
    """A quotient that is whole but for its rounding error counts as whole; rounding to nearest needs no help."""
    whole = round_whole(steps, "nearest")
    reach = abs(steps) if reach is None else reach
    return whole if rounding != "nearest" and abs(steps - whole) <= reach * power(-22) else steps


def scaled(scale, tensor_scale, fmt, rounding, work):
    divisor = work(Fraction(scale) * Fraction(tensor_scale))

    def rule(v, u):
        quotient = work(Fraction(v) / Fraction(divisor))
        step = step_around(abs(quotient), fmt.element)
        quotient = snapped(Fraction(quotient) / step, rounding) * step
        element = Fraction(round_element(quotient, fmt.element, rounding, u))
        return work(Fraction(work(element * Fraction(scale))) * Fraction(tensor_scale))

    return rule


def step_around(magnitude, element):
    """Distance of neighbours on an element's grid."""
    if isinstance(element, lp.FixedPoint):
        return power(-element.fl)
    lowest = 2 - 2 ** (element.exp - 1)
    if not element.subnormals and magnitude < 2.0**lowest:
        return power(lowest)
    return power(max(exponent_of(magnitude), lowest) - element.man) if magnitude else power(lowest - element.man)


def affine(low, high, fmt, rounding, work):
    """Codes 0 to 2**bits - 1 over the block's range, which is made to hold zero if zero is one of the values."""
    integer = fmt.zero_point == "integer"
    low, high = (min(low, 0.0), max(high, 0.0)) if integer else (to_float32(low), high)
    levels = 2**fmt.bits - 1
    ends = [Fraction(work(Fraction(end) / levels)) for end in (low, high)]
    scale = Fraction(odd_scale(work(ends[1] - ends[0])))
    zero = min(max(round_whole(Fraction(work(-Fraction(low) / scale)), "nearest"), 0), levels) if integer else 0
    base = 0 if integer else Fraction(low)

    def rule(v, u):
        if integer:
            quotient = Fraction(work(Fraction(v) / scale))
            code = round_whole(snapped(quotient, rounding), rounding, u) + zero
            return work((min(max(code, 0), levels) - zero) * scale)
        half = Fraction(work(Fraction(work(Fraction(v) / 2)) - base / 2))  # halves, as a range may overflow
        quotient = Fraction(work(half / scale)) * 2
        reach = work(abs(quotient) + min(abs(base) / scale, power(127)))
        code = round_whole(snapped(quotient, rounding, Fraction(reach)), rounding, u)
        lifted = Fraction(work(min(max(code, 0), levels) * Fraction(work(scale / 2)))) + base / 2
        return work(lifted) * 2

    return rule
