"""Arithmetic that is done element by element, all of one kind: "elementwise".

Per element an addition is 1 add, a multiplication 1 mul; a special function (exp, log, sine, hyperbolic tangent, error
function, square root, reciprocal and their like, and a division by a tensor) `SPECIAL` mul; a compare, a choice, a
change of sign and a rounding 1 integer add each. A complex number is two real ones.
"""

from __future__ import annotations

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, each, is_number, size, work


def _elementwise(fp_add: int = 0, fp_mul: int = 0, int_add: int = 0) -> ElementFormula:
    return each("elementwise", fp_add, fp_mul, int_add)


def _arithmetic(call: Call, fp_add: int = 0, fp_mul: int = 0, int_add: int = 0) -> ElementOps | None:
    """As `_elementwise`; counters and indices, whose result is no number, are bookkeeping of the simulation."""
    return _elementwise(fp_add, fp_mul, int_add)(call) if is_number(call.results[0]) else None


def _add(call: Call) -> ElementOps | None:
    """1 add, and 1 mul if `alpha` scales what is added."""
    return _arithmetic(call, fp_add=1, fp_mul=_scales(call.args.get("alpha")))


def _mul(call: Call) -> ElementOps | None:
    """1 mul; of two complex numbers 4 mul and 2 add."""
    if all(isinstance(x, Tensor) and x.is_complex() for x in (call.args["self"], call.args["other"])):
        return _arithmetic(call, fp_add=1, fp_mul=2)
    return _arithmetic(call, fp_mul=1)


def _div(call: Call) -> ElementOps | None:
    """A division; by one number, which is inverted once, 1 mul. Rounding the quotient is 1 integer add."""
    other = call.args["other"]
    by_tensor = isinstance(other, Tensor) and other.numel() > 1
    return _arithmetic(call, fp_mul=SPECIAL if by_tensor else 1, int_add=int(bool(call.args.get("rounding_mode"))))


def _remainder(call: Call) -> ElementOps | None:
    """a - b * floor(a / b): 1 division, 1 rounding, 1 mul, 1 sub."""
    return _arithmetic(call, 1, SPECIAL + 1, 1)


def _pow(call: Call) -> ElementOps | None:
    """Small whole powers by repeated squaring, square roots and reciprocals as such, else exp(y * log(x))."""
    exponent = call.args["exponent"]
    if isinstance(exponent, Tensor):
        base_is_number = not isinstance(call.args["self"], Tensor)  # its logarithm is taken once
        return _arithmetic(call, fp_mul=(1 if base_is_number else 2) * SPECIAL + 1)
    return _arithmetic(call, fp_mul=_power_muls(abs(exponent)) + (SPECIAL if exponent < 0 else 0))


def _power_muls(exponent: float) -> int:
    if exponent == 0.5:
        return SPECIAL
    if exponent != int(exponent) or exponent > 64:
        return 2 * SPECIAL + 1
    whole = int(exponent)
    return max(0, whole.bit_length() - 1 + whole.bit_count() - 1)


def _abs(call: Call) -> ElementOps | None:
    """The sign bit; of a complex number 2 mul, 1 add, 1 square root."""
    if call.args["self"].is_complex():
        return _arithmetic(call, fp_add=1, fp_mul=2 + SPECIAL)
    return _arithmetic(call, int_add=1)


def _clamp(call: Call) -> ElementOps | None:
    """1 compare for each bound that is given."""
    return _arithmetic(call, int_add=sum(call.args.get(bound) is not None for bound in ("min", "max")))


def _addcmul(call: Call) -> ElementOps | None:
    """x + value * (a * b): 1 mul, 1 add, and 1 mul for a value other than 1."""
    return _arithmetic(call, fp_add=1, fp_mul=1 + _scales(call.args["value"]))


def _addcdiv(call: Call) -> ElementOps | None:
    """x + value * (a / b): 1 division, 1 add, and 1 mul for a value other than 1."""
    return _arithmetic(call, fp_add=1, fp_mul=SPECIAL + _scales(call.args["value"]))


def _scales(factor: complex | None) -> int:
    """Whether a factor takes a multiplication: -1 makes a sum a difference."""
    return int(factor is not None and abs(factor) != 1)


def _polar(call: Call) -> ElementOps:
    """r * cos(a), r * sin(a): 2 special functions, 2 mul for each complex result."""
    numbers = call.results[0].numel()
    return work("elementwise", size(call.results[0]), fp_mul=numbers * (2 * SPECIAL + 2))


_SPECIAL_FUNCTIONS = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "erf", "erfc", "erfinv"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "atan2"),
    *("lgamma", "digamma", "polygamma", "special_i0e", "special_i1", "special_ndtri", "special_erfcx", "angle"),
)
_ONE_COMPARE = (
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isneginf", "isposinf", "signbit", "where", "masked_fill"),
    *("maximum", "minimum", "fmax", "fmin", "clamp_min", "clamp_max", "logical_and", "logical_or", "logical_not"),
    *("logical_xor", "neg", "sign", "sgn", "copysign", "heaviside", "round", "floor", "ceil", "trunc"),
)

POINTWISE: dict[str, ElementFormula] = {
    **{f"aten::{name}": _elementwise(fp_mul=SPECIAL) for name in _SPECIAL_FUNCTIONS},
    **{f"aten::{name}": _elementwise(int_add=1) for name in _ONE_COMPARE},
    "lowprec_eb::in_range": _elementwise(int_add=2),  # of a clamped gradient
    "aten::add": _add,
    "aten::sub": _add,
    "aten::rsub": _add,
    "aten::mul": _mul,
    "aten::div": _div,
    "aten::floor_divide": _remainder,
    "aten::remainder": _remainder,
    "aten::fmod": _remainder,
    "aten::frac": _elementwise(fp_add=1, int_add=1),
    "aten::pow": _pow,
    "aten::abs": _abs,
    "aten::clamp": _clamp,
    "aten::nan_to_num": _elementwise(int_add=3),
    "aten::lerp": _elementwise(fp_add=2, fp_mul=1),  # a + w * (b - a)
    "aten::addcmul": _addcmul,
    "aten::addcdiv": _addcdiv,
    "aten::hypot": _elementwise(fp_add=1, fp_mul=2 + SPECIAL),
    "aten::xlogy": _elementwise(fp_mul=1 + SPECIAL),
    "aten::logit": _elementwise(fp_add=1, fp_mul=2 * SPECIAL),  # log(x / (1 - x))
    "aten::logit_backward": _elementwise(fp_add=1, fp_mul=1 + SPECIAL),  # dy / (x * (1 - x))
    "aten::sinc": _elementwise(fp_mul=1 + 2 * SPECIAL),  # sin(pi * x) / (pi * x)
    "aten::logaddexp": _elementwise(fp_add=3, fp_mul=2 * SPECIAL, int_add=1),  # max + log1p(exp(-|a - b|))
    "aten::complex": _elementwise(),
    "aten::polar": _polar,
}
