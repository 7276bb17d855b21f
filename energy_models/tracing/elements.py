"""What an operator outside the GEMMs costs in adds and multiplications, one formula per aten operator.

Formulas give the arithmetic of an accelerator, not of a CPU kernel. Assumptions: a special function (exp, log,
division, reciprocal square root) costs `SPECIAL` multiplications; a compare costs one integer add. Traffic is each
floating-point tensor that the operator takes or returns, once: batch norm's second pass over its input and the few bits
of pooling indices are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call, float_bits

SPECIAL = 4


def moved_bits(name: str, call: Call) -> tuple[int, int]:
    """(bits read, bits written) by one call of operator `name`."""
    read = (value for key, value in call.args.items() if not (key == "self" and name in _SELF_NOT_READ))
    return float_bits(read), float_bits(call.results)


def _work(kind: str, elements: int, fp_add: int = 0, fp_mul: int = 0, int_add: int = 0) -> ElementOps:
    return ElementOps(kind, "", elements, fp_add, fp_mul, int_add)


def _batch_norm(call: Call) -> ElementOps:
    """Training, per element: mean 1 add; variance 1 sub, 1 mul, 1 add; normalise 1 sub, 1 mul; affine 1 mul, 1 add.

    Per channel: two divisions by N as 2 mul; + eps 1 add; rsqrt; two running averages of 2 mul, 1 add each.
    In eval() mode statistics and affine part fold into 1 mul, 1 add per element.
    """
    x, affine = call.args["input"], int(call.args["weight"] is not None)
    elements, channels = x.numel(), x.shape[1]
    if not call.args["training"]:
        return _work("batch_norm", elements, elements, elements)
    fp_add = (4 + affine) * elements + 3 * channels
    fp_mul = (2 + affine) * elements + (6 + SPECIAL) * channels
    return _work("batch_norm", elements, fp_add, fp_mul)


def _batch_norm_backward(call: Call) -> ElementOps:
    """dx = gamma/sigma * (dy - mean(dy) - xhat * mean(dy * xhat)), dgamma = sum(dy * xhat), dbeta = sum(dy).

    Per element: xhat again 1 sub, 1 mul; dbeta 1 add; dgamma 1 mul, 1 add; dx 2 sub, 2 mul, if it is needed.
    Per channel, for dx: gamma/sigma and the two means are 3 mul.
    """
    elements, channels = call.args["input"].numel(), call.args["input"].shape[1]
    dx = int(call.args["output_mask"][0])
    return _work("batch_norm", elements, (3 + 2 * dx) * elements, (2 + 2 * dx) * elements + 3 * dx * channels)


def _relu(call: Call) -> ElementOps:
    elements = call.results[0].numel()
    return _work("relu", elements, int_add=elements)


def _window(call: Call) -> int:
    size = call.args["kernel_size"]
    return int(math.prod(size) if len(size) > 1 else size[0] ** 2)


def _max_pool(call: Call) -> ElementOps:
    elements = call.results[0].numel()
    return _work("max_pool", elements, int_add=(_window(call) - 1) * elements)


def _max_pool_backward(call: Call) -> ElementOps:
    """Each error is added to the gradient of the element that was the maximum: 1 add."""
    elements = call.args["grad_output"].numel()
    return _work("max_pool", elements, fp_add=elements)


def _avg_pool(call: Call) -> ElementOps:
    elements = call.results[0].numel()
    return _work("avg_pool", elements, fp_add=(_window(call) - 1) * elements, fp_mul=elements)


def _avg_pool_backward(call: Call) -> ElementOps:
    """One scaling per error; windows that overlap add up."""
    elements = call.args["grad_output"].numel()
    overlap = max(0, _window(call) * elements - call.results[0].numel())
    return _work("avg_pool", elements, fp_add=overlap, fp_mul=elements)


def _mean(call: Call) -> ElementOps:
    """Windows that tile the input: all but one of each window's elements are added, the sum is scaled once."""
    inputs, elements = call.args["self"].numel(), call.results[0].numel()
    return _work("avg_pool", elements, fp_add=inputs - elements, fp_mul=elements)


def _adaptive_avg_pool_backward(call: Call) -> ElementOps:
    elements = call.args["grad_output"].numel()
    return _work("avg_pool", elements, fp_mul=elements)


def _elementwise(fp_add: int = 0, fp_mul: int = 0) -> Callable[[Call], ElementOps | None]:
    def formula(call: Call) -> ElementOps | None:
        result = call.results[0]
        if not result.is_floating_point():  # counters and indices: bookkeeping of the simulation
            return None
        elements = result.numel()
        return _work("elementwise", elements, fp_add * elements, fp_mul * elements)

    return formula


def _div(call: Call) -> ElementOps | None:
    by_tensor = isinstance(call.args["other"], Tensor) and call.args["other"].numel() > 1
    return _elementwise(fp_mul=SPECIAL if by_tensor else 1)(call)  # one divisor is inverted once


def _scaled(factor: str, fp_add: int = 0, fp_mul: int = 0) -> Callable[[Call], ElementOps | None]:
    """With one multiplication more if argument `factor` is neither 1 nor -1, which makes a sum a difference."""

    def formula(call: Call) -> ElementOps | None:
        return _elementwise(fp_add, fp_mul + (abs(call.args.get(factor, 1)) != 1))(call)

    return formula


def _power(call: Call) -> ElementOps | None:
    return _elementwise(fp_mul=1 if call.args["exponent"] == 2 else SPECIAL)(call)


def _clamp(call: Call) -> ElementOps:
    return _compared(sum(call.args.get(bound) is not None for bound in ("min", "max")))(call)


def _vector_norm(call: Call) -> ElementOps:
    """Per element 1 mul, 1 add; per result 1 square root."""
    elements = call.args["self"].numel()
    return _work("sum", elements, elements, elements + SPECIAL * call.results[0].numel())


def _masked_put(call: Call) -> ElementOps | None:
    """Where a mask says so, the element is replaced: 1 choice; at indices, a copy or a sum."""
    values, indices = call.args["values"], call.args["indices"]
    if any(isinstance(index, Tensor) and index.element_size() == 1 for index in indices):
        return _compared(1)(call)
    return _work("elementwise", values.numel(), fp_add=values.numel()) if call.args["accumulate"] else None


def _compared(count: int) -> Callable[[Call], ElementOps]:
    def formula(call: Call) -> ElementOps:
        elements = call.results[0].numel()
        return _work("elementwise", elements, int_add=count * elements)

    return formula


def _sum(call: Call) -> ElementOps:
    elements = call.args["self"].numel()
    return _work("sum", elements, fp_add=elements)


def softmax_ops(elements: int, width: int) -> ElementOps:
    """Per element: maximum 1 compare; 1 sub, 1 exp, 1 add, 1 mul. Per row of `width`: 1 reciprocal."""
    rows = elements // max(1, width)
    return _work("softmax", elements, 2 * elements, (SPECIAL + 1) * elements + SPECIAL * rows, elements)


def softmax_backward_ops(elements: int) -> ElementOps:
    """y * (dy - sum(dy * y)): 2 mul, 1 add, 1 sub per element."""
    return _work("softmax", elements, 2 * elements, 2 * elements)


def _softmax(call: Call) -> ElementOps:
    x = call.args["self"]
    return softmax_ops(x.numel(), x.shape[call.args["dim"]] if x.dim() else 1)


def _softmax_backward(call: Call) -> ElementOps:
    return softmax_backward_ops(call.results[0].numel())


def _log_softmax(call: Call) -> ElementOps:
    """Per element: maximum 1 compare; 1 sub, 1 exp, 1 add, 1 sub. Per row: 1 log."""
    x = call.args["self"]
    elements, rows = x.numel(), x.numel() // x.shape[call.args["dim"]]
    return _work("loss", elements, 3 * elements, SPECIAL * (elements + rows), elements)


def _log_softmax_backward(call: Call) -> ElementOps:
    """dy - exp(y) * sum(dy): 1 exp, 1 mul, 1 add, 1 sub per element."""
    elements = call.results[0].numel()
    return _work("loss", elements, 2 * elements, (SPECIAL + 1) * elements)


def _nll_loss(call: Call) -> ElementOps:
    """One add per row and the mean's scaling."""
    rows = call.args["target"].numel()
    return _work("loss", rows, fp_add=rows, fp_mul=1)


def _nll_loss_backward(call: Call) -> ElementOps:
    rows = call.args["target"].numel()
    return _work("loss", rows, fp_mul=rows)


ELEMENTS: dict[str, Callable[[Call], ElementOps | None]] = {
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::relu": _relu,
    "aten::threshold_backward": _relu,
    "aten::max_pool2d_with_indices": _max_pool,
    "aten::max_pool2d_with_indices_backward": _max_pool_backward,
    "aten::avg_pool2d": _avg_pool,
    "aten::avg_pool2d_backward": _avg_pool_backward,
    "aten::_adaptive_avg_pool2d": _mean,
    "aten::_adaptive_avg_pool2d_backward": _adaptive_avg_pool_backward,
    "aten::mean": _mean,
    "aten::sum": _sum,
    "aten::add": _scaled("alpha", fp_add=1),
    "aten::sub": _scaled("alpha", fp_add=1),
    "aten::mul": _elementwise(fp_mul=1),
    "aten::div": _div,
    "aten::lerp": _elementwise(fp_add=2, fp_mul=1),
    "aten::addcmul": _scaled("value", fp_add=1, fp_mul=1),
    "aten::addcdiv": _scaled("value", fp_add=1, fp_mul=SPECIAL),
    "aten::sqrt": _elementwise(fp_mul=SPECIAL),
    "aten::rsqrt": _elementwise(fp_mul=SPECIAL),
    "aten::reciprocal": _elementwise(fp_mul=SPECIAL),
    "aten::pow": _power,
    "aten::linalg_vector_norm": _vector_norm,
    "aten::clamp": _clamp,
    "aten::clamp_min": _compared(1),
    "aten::maximum": _compared(1),
    "aten::minimum": _compared(1),
    **dict.fromkeys([f"aten::{name}" for name in ("abs", "neg", "sign")], _compared(1)),
    "aten::where": _compared(1),
    **dict.fromkeys([f"aten::{name}" for name in ("eq", "ne", "gt", "ge", "lt", "le")], _compared(1)),
    "aten::index_put": _masked_put,
    "lowprec_eb::in_range": _compared(2),  # of a clamped gradient
    "aten::_softmax": _softmax,
    "aten::_safe_softmax": _softmax,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::_log_softmax": _log_softmax,
    "aten::_log_softmax_backward_data": _log_softmax_backward,
    "aten::nll_loss_forward": _nll_loss,
    "aten::nll_loss_backward": _nll_loss_backward,
}

# Backward operators that take the forward's input for its shape alone.
_SELF_NOT_READ = frozenset(
    {
        "aten::max_pool2d_with_indices_backward",
        "aten::avg_pool2d_backward",
        "aten::_adaptive_avg_pool2d_backward",
        "aten::nll_loss_backward",
    }
)

# No arithmetic: views, fills, copies (with a view's backward, a copy into zeros), and the drawing of a quantizer's key.
_VIEWS = (
    *("alias", "as_strided", "chunk", "detach", "diagonal", "expand", "narrow", "permute", "reshape", "select"),
    *("slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
)
_FILLS = (
    *("arange", "empty", "empty_like", "empty_strided", "fill", "full", "full_like", "new_empty", "new_empty_strided"),
    *("new_full", "new_ones", "new_zeros", "ones", "ones_like", "scalar_tensor", "zero", "zeros", "zeros_like"),
)
_COPIES = ("cat", "clone", "contiguous", "copy", "lift_fresh", "stack", "_to_copy", "select_backward", "slice_backward")
_KEYS = ("randint", "random")
FILLS = frozenset(f"aten::{name}" for name in _FILLS)
FREE = frozenset(f"aten::{name}" for name in (*_VIEWS, *_FILLS, *_COPIES, *_KEYS))
