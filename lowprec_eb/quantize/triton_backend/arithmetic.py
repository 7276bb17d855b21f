"""What a tile's values go through, in Triton: bit patterns, random bits, rounding, scales.

Results are, bit for bit, those of :mod:`lowprec_eb.quantize.reference`: quotients are IEEE's, products and sums keep
their own roundings (launch with ``enable_fp_fusion=False``), subnormals are numbers. Bit patterns are int32; those of
magnitudes are not negative, so they compare as the numbers do. Imports triton.
"""

import triton
import triton.language as tl

# Values of MODE.
NEAREST, NEAREST_AWAY, STOCHASTIC = tl.constexpr(0), tl.constexpr(1), tl.constexpr(3)

_ABSOLUTE, _SIGN = tl.constexpr(0x7FFFFFFF), tl.constexpr(-(2**31))
_INFINITY, _NORMAL = tl.constexpr(0x7F800000), tl.constexpr(0x00800000)
_LARGEST_FLOAT32 = tl.constexpr(0x7F7FFFFF)
_2_TO_23, _2_TO_24 = tl.constexpr(2.0**23), tl.constexpr(2.0**24)
_SMALLEST_SCALE, _TOLERANCE = tl.constexpr(2.0**-126), tl.constexpr(2.0**-22)
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = tl.constexpr(0xBF58476D1CE4E5B9), tl.constexpr(0x94D049BB133111EB)


# ---- bit patterns ------------------------------------------------------------------------------------------------


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(pattern):
    return pattern.to(tl.float32, bitcast=True)


@triton.jit
def power_of_two(exponent):
    """Of exponents from -149 to 127."""
    subnormal = tl.minimum(tl.maximum(exponent + 149, 0), 23)
    return _float(tl.where(exponent >= -126, (exponent + 127) << 23, (exponent * 0 + 1) << subnormal))


@triton.jit
def load(place, inside):
    """float32 values; 0 outside."""
    values = tl.load(place, mask=inside, other=0.0)
    if place.dtype.element_ty == tl.bfloat16:
        return (values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return values.to(tl.float32)


@triton.jit
def store(place, values, inside):
    if place.dtype.element_ty == tl.bfloat16:  # by hand: the interpreter truncates
        pattern = values.to(tl.uint32, bitcast=True)
        even = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
        quiet = (pattern >> 16) | 0x40
        halves = tl.where(values == values, even, quiet).to(tl.uint16)
        tl.store(place, halves.to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(place, values.to(place.dtype.element_ty), mask=inside)


@triton.jit
def finite_magnitude(x):
    pattern = _bits(x) & _ABSOLUTE
    return tl.where(pattern < _INFINITY, pattern, 0)


# ---- random bits -------------------------------------------------------------------------------------------------


@triton.jit
def _mixed(seed, pair):
    """SplitMix64's output of this index."""
    z = seed + (pair.to(tl.uint64) + 1) * _GAMMA
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


@triton.jit
def random_bits(seed, first, PAIRED: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """The upper 24 bits of the random words of elements ``first[r] + column``; PAIRED: each ``first`` is even."""
    if PAIRED:  # one 64-bit output serves two columns
        z = _mixed(seed, (first >> 1)[:, None] + tl.arange(0, W // 2)[None, :])
        low, high = ((z >> 8) & 0xFFFFFF).to(tl.int32), (z >> 40).to(tl.int32)
        return tl.reshape(tl.join(low, high), [R, W])
    index = first[:, None] + tl.arange(0, W)[None, :]
    z = _mixed(seed, index >> 1)
    return tl.where((index & 1) == 1, z >> 40, (z >> 8) & 0xFFFFFF).to(tl.int32)


# ---- rounding ----------------------------------------------------------------------------------------------------


@triton.jit
def _round_even(v):
    """To whole numbers, in magnitude; the sign of a zero is kept."""
    a = tl.abs(v)
    a = tl.where(a < _2_TO_23, (a + _2_TO_23) - _2_TO_23, a)
    return _float(_bits(a) | (_bits(v) & _SIGN))


@triton.jit
def _round_magnitude(v, random, MODE: tl.constexpr):
    """To whole numbers in the modes that look at magnitudes."""
    a = tl.abs(v)
    down = tl.floor(a)
    if MODE == NEAREST_AWAY:
        down = tl.where(a - down >= 0.5, down + 1.0, down)
    elif MODE == STOCHASTIC:  # the uniform number is an odd multiple of 2 ** -24
        down = tl.where((a - down) * _2_TO_24 > (random | 1).to(tl.float32), down + 1.0, down)
    return _float(_bits(down) | (_bits(v) & _SIGN))


@triton.jit
def _round_quotient(v, reach, random, MODE: tl.constexpr, INEXACT: tl.constexpr):
    """To whole numbers. INEXACT: ``v`` is a rounded quotient; one that is whole within its error counts as whole."""
    if MODE == NEAREST:
        return _round_even(v)
    rounded = _round_magnitude(v, random, MODE)
    if INEXACT:
        whole = _round_even(v)
        return tl.where(tl.abs(v - whole) > reach * _TOLERANCE, rounded, whole)
    return rounded


@triton.jit
def round_codes(quotient, low, high, random, MODE: tl.constexpr, INEXACT: tl.constexpr):
    """Integer codes within their range; a NaN falls through."""
    code = _round_quotient(quotient, tl.abs(quotient), random, MODE, INEXACT)
    code = tl.where(code < low, low, code)
    return tl.where(code > high, high, code)


@triton.jit
def _even_pattern(a, mantissa, normal, step_exponent):
    """Pattern of the magnitude ``a`` rounded to nearest even in a float format, before overflow."""
    going = 23 - mantissa
    tie = tl.minimum(going, 1)  # with no bit that goes there are no ties
    up = ((1 << going) >> 1) - tie + ((a >> going) & tie)
    magic = power_of_two(step_exponent + 23)
    small = _bits((_float(a) + magic) - magic)
    return tl.where(a < normal, small, ((a + up) >> going) << going)


@triton.jit
def _round_pattern(a, random, mantissa, normal, step_exponent, MODE: tl.constexpr):
    """:func:`_even_pattern` in the modes that look at magnitudes."""
    going = 23 - mantissa
    mask = (1 << going) - 1
    near = tl.maximum(step_exponent, -120)  # two factors, since one may leave float32's range
    steps = _float(a) * power_of_two(-near) * power_of_two(near - step_exponent)
    whole = _round_magnitude(steps, random, MODE)
    small = _bits(whole * power_of_two(near) * power_of_two(step_exponent - near))
    if MODE == NEAREST_AWAY:
        raised = a + ((1 << going) >> 1)
    elif MODE == STOCHASTIC:  # carries exactly when the fraction is above the uniform number
        raised = a + (mask - ((random >> 1) >> mantissa))
    else:
        raised = a
    return tl.where(a < normal, small, (raised >> going) << going)


@triton.jit
def round_float(
    v, random, mantissa, normal, step_exponent, largest, beyond, infinite, MODE: tl.constexpr, INEXACT: tl.constexpr
):
    pattern = _bits(v)
    a = pattern & _ABSOLUTE
    if MODE == NEAREST:
        r = _even_pattern(a, mantissa, normal, step_exponent)
    else:
        r = _round_pattern(a, random, mantissa, normal, step_exponent, MODE)
        if INEXACT:
            even = _even_pattern(a, mantissa, normal, step_exponent)
            r = tl.where(tl.abs(_float(a) - _float(even)) > _float(a) * _TOLERANCE, r, even)
    r = tl.where(r > largest, beyond, r)
    r = tl.where(a < _INFINITY, r, tl.where(a > _INFINITY, a, infinite))
    return _float(r | (pattern & _SIGN))


@triton.jit
def round_affine(x, scale, zero, random, high, passes, largest, MODE: tl.constexpr, FROM_MINIMUM: tl.constexpr):
    if FROM_MINIMUM:
        v = tl.div_rn(x * 0.5 - zero * 0.5, scale) * 2.0  # the whole difference may overflow
        reach = tl.abs(v) + tl.div_rn(tl.abs(zero), scale)
        code = _round_quotient(v, reach, random, MODE, True)
    else:
        v = tl.div_rn(x, scale)
        code = _round_quotient(v, tl.abs(v), random, MODE, True) + zero
    code = tl.where(code < 0.0, 0.0, code)  # a NaN falls through
    code = tl.where(code > high, high, code)
    value = (code * (scale * 0.5) + zero * 0.5) * 2.0 if FROM_MINIMUM else (code - zero) * scale
    value = tl.where(value < -largest, -largest, tl.where(value > largest, largest, value))
    return tl.where(tl.abs(x) >= passes, x, value)


# ---- scales ------------------------------------------------------------------------------------------------------


@triton.jit
def shared_exponent(largest, element_exponent, lowest_exponent):
    """Exponent of the scale of a block, from the pattern of its largest magnitude."""
    subnormal = largest < _NORMAL
    pattern = tl.where(subnormal, _bits(_float(largest) * _2_TO_24), largest)
    exponent = (pattern >> 23) - tl.where(subnormal, 127 + 24, 127) - element_exponent
    exponent = tl.where(largest > 0, exponent, lowest_exponent)
    return tl.minimum(tl.maximum(exponent, lowest_exponent), 127)


@triton.jit
def float32_scale(largest, levels):
    scale = tl.div_rn(_float(largest), levels)
    odd = _bits(tl.where(scale < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)) | 1
    fits = _bits(_float(odd) * levels) < _INFINITY
    return _float(tl.where(fits, odd, odd - 2))


@triton.jit
def tensor_scale(largest, span, dropped):
    """The second level, from the pattern of the tensor's largest magnitude."""
    wanted = _bits(tl.div_rn(_float(largest), span))
    wanted = tl.minimum(tl.maximum(wanted, _NORMAL), _LARGEST_FLOAT32)
    return _float((wanted >> dropped) << dropped)


@triton.jit
def rounded_scale(largest, levels, mantissa, normal, step_exponent, smallest, highest):
    scale = tl.div_rn(_float(largest), levels)
    rounded = _float(_even_pattern(_bits(scale), mantissa, normal, step_exponent))
    rounded = tl.where(rounded < smallest, smallest, rounded)
    return tl.where(rounded > highest, highest, rounded)
