"""What happens to a vector of float32 values: random words, scaling, and rounding to each family of elements.

Results are, bit for bit, those of :mod:`lowprec_eb.quantize.reference`. Imported only when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.lanes import F32, I32, I64, LANES, Code, Value, vector

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ABSOLUTE, SIGN, INFINITY = 0x7FFFFFFF, 0x80000000, 0x7F800000
_MASK64 = (1 << 64) - 1


class Job:
    """The buffer of :mod:`lowprec_eb.quantize.fast.slots`."""

    def __init__(self, code: Code, address: Value) -> None:
        self.code, self.address = code, address

    def integer(self, slot: int) -> Value:
        return self.code.load(I64, self.address + 8 * slot)

    def pattern(self, slot: int) -> Value:
        """The lower half of an integer."""
        return self.integer(slot).to("trunc", I32)

    def real(self, slot: int) -> Value:
        return self.code.load(F32, self.address + (slots.REALS_AT + 4 * slot))

    def write(self, slot: int, value: Value) -> None:
        self.code.store(value, self.address + 8 * slot)


# ---- random words ------------------------------------------------------------------------------------------------


def random_words(code: Code, seed: Value, index: Value) -> Value:
    """Words of the elements from an even ``index`` on: each SplitMix64 output is those of two."""
    pairs = LANES // 2
    ahead = [(1 + pair) * _GAMMA & _MASK64 for pair in range(pairs)]
    z = _mixed(code.constant(vector(I64, pairs), ahead) + (seed + (index >> 1) * _GAMMA))
    return code.value(code.builder.bitcast(z.ir, vector(I32)))


def _mixed(z: Value) -> Value:
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


def scattered_words(code: Code, seed: Value, index: Value, step: Value) -> Value:
    """Words of the elements ``index``, ``index + step``, ...: each is one half of an output of its own."""
    indices = _lane_numbers(code) * step + index
    outputs = _mixed(((indices >> 1) + 1) * _GAMMA + seed)
    return (outputs >> ((indices & 1) << 5)).to("trunc", I32)


def paired_words(code: Code, seed: Value, index: Value, step: Value) -> tuple[Value, Value]:
    """The same of an even index and step, and the words of the elements that follow each."""
    outputs = _mixed(_lane_numbers(code) * ((step >> 1) * _GAMMA) + (seed + ((index >> 1) + 1) * _GAMMA))
    return outputs.to("trunc", I32), (outputs >> 32).to("trunc", I32)


def _lane_numbers(code: Code) -> Value:
    return code.constant(vector(I64), list(range(LANES)))


# ---- scales ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How values become elements and back; an affine one has a zero point."""

    divide: Callable[[Value], Value]
    multiply: Callable[[Value], Value]
    scale: Value | None = None
    zero: Value | None = None


def unscaled() -> Scale:
    return Scale(lambda x: x, lambda element: element)


def power_of_two(code: Code, scale: Value) -> Scale:
    """Multiplying by the inverse is exact, in two steps: a single factor would overflow for the smallest scales."""
    first = code.pick(scale < 2.0**-100, code.constant(F32, 2.0**64), 1.0)
    second = code.constant(F32, 1.0) / (scale * first)
    return Scale(lambda x: x * first * second, lambda element: element * scale, scale)


def real_scale(scale: Value, tensor_scale: Value, zero: Value | None = None) -> Scale:
    divisor = scale * tensor_scale
    return Scale(lambda x: x / divisor, lambda element: element * scale * tensor_scale, scale, zero)


# ---- elements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounded:
    """A rounded value, and how to make its code: 8 bits of a pattern, from which :data:`DECODERS` make it again."""

    value: Value
    code: Callable[[], Value]


Rounding = Callable[[Value, Scale, Value | None], Rounded]  # of values, their scale and random words
Decoding = Callable[[Value, Scale], Value]  # of codes and their scale


def _whole_magnitude(rounding: str, a: Value, word: Value | None) -> Value:
    """Magnitudes rounded to whole numbers in the modes that look at them."""
    code, down = a.code, a.math("floor")
    if rounding == "nearest_away":
        down = code.pick(a - down >= 0.5, down + 1.0, down)
    elif rounding == "stochastic":  # the uniform number is an odd multiple of 2 ** -24
        assert word is not None
        odd = ((word >> 8) | 1).to("sitofp", F32)
        down = code.pick((a - down) * 2.0**24 > odd, down + 1.0, down)
    return down


def _whole(rounding: str, v: Value, word: Value | None, tolerance: Value | None) -> Value:
    """``v`` rounded to whole numbers; what is whole within ``tolerance`` counts as whole, None: ``v`` is exact."""
    if rounding == "nearest":
        return v.math("roundeven")
    other = (_whole_magnitude(rounding, v.magnitude, word).bits | (v.bits & SIGN)).as_float
    if tolerance is None:
        return other
    even = v.math("roundeven")
    return v.code.pick((v - even).magnitude > tolerance, other, even)


def round_whole(job: Job, rounding: str, exact: bool) -> Rounding:
    low, high, passes = job.real(slots.LOW), job.real(slots.HIGH), job.real(slots.PASSES)
    error = None if exact else job.real(slots.TOLERANCE)

    def round_lanes(x: Value, scale: Scale, word: Value | None) -> Rounded:
        v = scale.divide(x)
        steps = _whole(rounding, v, word, None if error is None else v.magnitude * error)
        steps = clamped(steps, low, high)
        value = x.code.pick(x.magnitude >= passes, x, scale.multiply(steps)) + 0.0  # integers have one zero
        return Rounded(value, lambda: steps.to("fptosi", I32))

    return round_lanes


def decode_whole(job: Job) -> Decoding:
    return lambda code, scale: scale.multiply((code << 24).signed_shift(24).to("sitofp", F32)) + 0.0


def clamped(v: Value, low: Any, high: Any) -> Value:
    """A NaN stays."""
    v = v.code.pick(v < low, low, v)
    return v.code.pick(v > high, high, v)


class _Affine:
    """Codes of affine integers, which count from the block's minimum, or have a zero point among them."""

    def __init__(self, job: Job) -> None:
        self.high, self.error = job.real(slots.HIGH), job.real(slots.TOLERANCE)
        self.largest, self.from_minimum = job.real(slots.LARGEST_RESULT), job.real(slots.LOW) > 0.0

    def steps(self, x: Value, step: Value, zero: Value, rounding: str, word: Value | None) -> Value:
        def from_minimum() -> Value:
            v = (x * 0.5 - zero * 0.5) / step * 2.0  # the whole difference may overflow
            return _whole(rounding, v, word, (v.magnitude + zero.magnitude / step) * self.error)

        def from_zero_point() -> Value:
            v = x / step
            return _whole(rounding, v, word, v.magnitude * self.error) + zero

        return clamped(x.code.choose(self.from_minimum, from_minimum, from_zero_point), 0.0, self.high)

    def value(self, steps: Value, step: Value, zero: Value) -> Value:
        value = steps.code.choose(
            self.from_minimum,
            lambda: (steps * (step * 0.5) + zero * 0.5) * 2.0,
            lambda: (steps - zero) * step,
        )
        return clamped(value, self.largest * -1.0, self.largest)


def round_affine(job: Job, rounding: str, exact: bool) -> Rounding:
    passes, affine = job.real(slots.PASSES), _Affine(job)

    def round_lanes(x: Value, scale: Scale, word: Value | None) -> Rounded:
        assert scale.scale is not None and scale.zero is not None
        steps = affine.steps(x, scale.scale, scale.zero, rounding, word)
        value = x.code.pick(x.magnitude >= passes, x, affine.value(steps, scale.scale, scale.zero))
        return Rounded(value, lambda: steps.to("fptosi", I32))

    return round_lanes


def decode_affine(job: Job) -> Decoding:
    affine = _Affine(job)

    def decode_lanes(code: Value, scale: Scale) -> Value:
        assert scale.scale is not None and scale.zero is not None
        return affine.value(code.to("sitofp", F32), scale.scale, scale.zero)

    return decode_lanes


class FloatSlots:
    """A float format's bit patterns, read once; ``magic`` rounds to the step of its subnormals."""

    def __init__(self, job: Job, base: int, magic: int) -> None:
        self.mantissa, self.half, self.odd = (job.pattern(base + s) for s in (slots.MANTISSA, slots.HALF, slots.ODD))
        self.mask, self.normal = job.pattern(base + slots.MASK), job.pattern(base + slots.NORMAL)
        self.kept = self.mask ^ 0xFFFFFFFF
        self.first_normal = job.code.constant(I32, 1) << self.mantissa  # code of the smallest normal number
        self.magic = job.real(magic)

    def even(self, a: Value) -> Value:
        """Bit pattern of a magnitude rounded to nearest even, before overflow."""
        last_kept = (a >> (self.mantissa * -1 + 23)) & self.odd
        normal = (a + (self.half + last_kept - self.odd)) & self.kept
        return a.code.pick(a < self.normal, (a.as_float + self.magic - self.magic).bits, normal)


def round_float(job: Job, rounding: str, exact: bool) -> Rounding:
    fmt = FloatSlots(job, slots.ELEMENT, slots.MAGIC)
    largest, beyond, infinite = (job.pattern(slots.ELEMENT + s) for s in (slots.LARGEST, slots.BEYOND, slots.INFINITE))
    down_1, down_2, up_1, up_2 = (job.real(s) for s in (slots.DOWN_1, slots.DOWN_2, slots.UP_1, slots.UP_2))
    error = job.real(slots.TOLERANCE)

    def other_bits(a: Value, word: Value | None) -> Value:
        """Rounded in the modes that look at magnitudes."""
        small = _whole_magnitude(rounding, a.as_float * down_1 * down_2, word) * up_1 * up_2
        if rounding == "nearest_away":
            raised = a + fmt.half
        elif rounding == "stochastic":  # carries exactly when the fraction is above the uniform number
            assert word is not None
            raised = a + (fmt.mask - ((word >> 8) >> (fmt.mantissa + 1)))
        else:
            raised = a
        return a.code.pick(a < fmt.normal, small.bits, raised & fmt.kept)

    def encode(r: Value, sign: Value) -> Value:
        """Normal numbers count on where the subnormal ones end."""
        small = (r.as_float * down_1 * down_2).to("fptosi", I32)
        large = ((r - fmt.normal) >> (fmt.mantissa * -1 + 23)) + fmt.first_normal
        return r.code.pick(r < fmt.normal, small, large) | (sign >> 24)

    def round_lanes(x: Value, scale: Scale, word: Value | None) -> Rounded:
        code, v = x.code, scale.divide(x)
        a = v.bits & ABSOLUTE
        r = fmt.even(a) if rounding == "nearest" or not exact else other_bits(a, word)
        if rounding != "nearest" and not exact:
            inexact = (a.as_float - r.as_float).magnitude > a.as_float * error
            r = code.pick(inexact, other_bits(a, word), r)
        r = code.pick(r > largest, beyond, r)
        r = code.pick(a < INFINITY, r, code.pick(a > INFINITY, a, infinite))
        sign = v.bits & SIGN
        return Rounded(scale.multiply((r | sign).as_float), lambda: encode(r, sign))

    return round_lanes


def decode_float(job: Job) -> Decoding:
    fmt, up_1, up_2 = FloatSlots(job, slots.ELEMENT, slots.MAGIC), job.real(slots.UP_1), job.real(slots.UP_2)

    def decode_lanes(code: Value, scale: Scale) -> Value:
        number = code & 0x7F
        small = (number.to("sitofp", F32) * up_1 * up_2).bits
        large = ((number - fmt.first_normal) << (fmt.mantissa * -1 + 23)) + fmt.normal
        r = code.code.pick(number < fmt.first_normal, small, large)
        return scale.multiply((r | ((code & 0x80) << 24)).as_float)

    return decode_lanes


FAMILIES: dict[str, Callable[[Job, str, bool], Rounding]] = {
    "round_whole": round_whole,
    "round_affine": round_affine,
    "round_float": round_float,
}
DECODERS: dict[str, Callable[[Job], Decoding]] = {
    "round_whole": decode_whole,
    "round_affine": decode_affine,
    "round_float": decode_float,
}
