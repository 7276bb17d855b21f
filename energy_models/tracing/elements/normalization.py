"""Normalisation and softmax. Statistics are taken in two passes, as the formulas of the papers write them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, is_bookkeeping, work


def _batch_norm(call: Call) -> ElementOps:
    """Training, per element: mean 1 add; variance 1 sub, 1 mul, 1 add; normalise 1 sub, 1 mul; affine 1 mul, 1 add.

    Per channel: two divisions by N as 2 mul; + eps 1 add; rsqrt; two running averages of 2 mul, 1 add each.
    In eval() mode statistics and affine part fold into 1 mul, 1 add per element.
    """
    x, affine = call.args["input"], int(call.args["weight"] is not None)
    elements, channels = x.numel(), x.shape[1]
    if not call.args.get("training", True):
        return work("batch_norm", elements, elements, elements)
    fp_add = (4 + affine) * elements + 3 * channels
    fp_mul = (2 + affine) * elements + (6 + SPECIAL) * channels
    return work("batch_norm", elements, fp_add, fp_mul)


def _batch_norm_backward(call: Call) -> ElementOps:
    """dx = gamma/sigma * (dy - mean(dy) - xhat * mean(dy * xhat)), dgamma = sum(dy * xhat), dbeta = sum(dy).

    Per element: xhat again 1 sub, 1 mul; dbeta 1 add; dgamma 1 mul, 1 add; dx 2 sub, 2 mul, if it is needed.
    Per channel, for dx: gamma/sigma and the two means are 3 mul.
    """
    elements, channels = call.args["input"].numel(), call.args["input"].shape[1]
    dx = int(call.args["output_mask"][0])
    return work("batch_norm", elements, (3 + 2 * dx) * elements, (2 + 2 * dx) * elements + 3 * dx * channels)


def _standardised(kind: str, x: Tensor, rows: int, weight: Any, bias: Any) -> ElementOps:
    """Per element: mean 1 add; variance 1 sub, 1 mul, 1 add; normalise 1 sub, 1 mul; weight 1 mul; bias 1 add.

    Per row of the statistics: two divisions by its length as 2 mul; + eps 1 add; rsqrt.
    """
    fp_add = (4 + (bias is not None)) * x.numel() + rows
    fp_mul = (2 + (weight is not None)) * x.numel() + (2 + SPECIAL) * rows
    return work(kind, x.numel(), fp_add, fp_mul)


def _standardised_backward(kind: str, x: Tensor, rows: int, weight: Any, mask: list[bool]) -> ElementOps:
    """With g = dy * weight: dx = rstd * (g - mean(g) - xhat * mean(g * xhat)); dweight = sum(dy * xhat).

    Per element: xhat again 1 sub, 1 mul; dx 1 mul for the weight, 2 mul, 2 add for the sums and 2 mul, 2 sub less one
    mul that dweight shares; dweight 1 mul, 1 add; dbias 1 add; each only if it is needed. Per row, for dx: 2 mul.
    """
    dx, dweight, dbias = map(int, mask)
    fp_add = (1 + 4 * dx + dweight + dbias) * x.numel()
    fp_mul = (1 + dx * (3 + (weight is not None)) + dweight) * x.numel() + 2 * dx * rows
    return work(kind, x.numel(), fp_add, fp_mul)


def _rows(call: Call) -> int:
    """Rows that a layer norm takes its statistics of."""
    x = call.args["input"]
    normalized = 1
    for length in call.args["normalized_shape"]:
        normalized *= length
    return int(x.numel() // max(1, normalized))


def _layer_norm(call: Call) -> ElementOps:
    """See `_standardised`: a row is what is normalised together."""
    return _standardised("layer_norm", call.args["input"], _rows(call), call.args["weight"], call.args["bias"])


def _layer_norm_backward(call: Call) -> ElementOps:
    """See `_standardised_backward`."""
    args = call.args
    return _standardised_backward("layer_norm", args["input"], _rows(call), args["weight"], args["output_mask"])


def _group_norm(call: Call) -> ElementOps:
    """See `_standardised`: a row is a group of channels of a sample."""
    args = call.args
    return _standardised("group_norm", args["input"], args["N"] * args["group"], args["weight"], args["bias"])


def _group_norm_backward(call: Call) -> ElementOps:
    """See `_standardised_backward`."""
    args = call.args
    rows = args["N"] * args["group"]
    return _standardised_backward("group_norm", args["input"], rows, args["weight"], args["output_mask"])


def _rms_norm(call: Call) -> ElementOps:
    """Per element: square 1 mul, 1 add; normalise 1 mul; weight 1 mul. Per row: mean 1 mul; + eps 1 add; rsqrt."""
    elements, rows = call.args["input"].numel(), _rows(call)
    fp_mul = (2 + (call.args["weight"] is not None)) * elements + (1 + SPECIAL) * rows
    return work("rms_norm", elements, elements + rows, fp_mul)


def _rms_norm_backward(call: Call) -> ElementOps:
    """With g = dy * weight: dx = rstd * (g - xhat * mean(g * xhat)), dweight = sum(dy * xhat).

    Per element: xhat again 1 mul; dx 1 mul for the weight, 1 mul, 1 add for the sum, 2 mul, 1 sub; dweight 1 mul,
    1 add. Per row, for dx: 1 mul.
    """
    elements = call.args["input"].numel()
    dx, dweight = map(int, call.args["output_mask"])
    per_element = 1 + dx * (3 + (call.args["weight"] is not None)) + dweight
    return work("rms_norm", elements, (2 * dx + dweight) * elements, per_element * elements + dx * _rows(call))


def _weight_norm(call: Call) -> ElementOps:
    """w = v * (g / |v|). Per element: 1 mul, 1 add for the norm, 1 mul. Per row: square root, division."""
    elements, rows = call.args["v"].numel(), call.args["g"].numel()
    return work("weight_norm", elements, elements, 2 * elements + 2 * SPECIAL * rows)


def _weight_norm_backward(call: Call) -> ElementOps:
    """dg = sum(dw * v) / |v|, dv = g / |v| * (dw - v * dg / |v|).

    Per element: 1 mul, 1 add for the sum; 2 mul, 1 sub. Per row: the reciprocal of the norm, 3 mul.
    """
    elements, rows = call.args["saved_v"].numel(), call.args["saved_g"].numel()
    return work("weight_norm", elements, 2 * elements, 3 * elements + (3 + SPECIAL) * rows)


def softmax_ops(elements: int, width: int) -> ElementOps:
    """Per element: maximum 1 compare; 1 sub, 1 exp, 1 add, 1 mul. Per row of `width`: 1 reciprocal."""
    rows = elements // max(1, width)
    return work("softmax", elements, 2 * elements, (SPECIAL + 1) * elements + SPECIAL * rows, elements)


def softmax_backward_ops(elements: int) -> ElementOps:
    """y * (dy - sum(dy * y)): 2 mul, 1 add, 1 sub per element."""
    return work("softmax", elements, 2 * elements, 2 * elements)


def _softmax(call: Call) -> ElementOps:
    x = call.args["self"]
    return softmax_ops(x.numel(), x.shape[call.args["dim"]] if x.dim() else 1)


def _softmax_backward(call: Call) -> ElementOps:
    return softmax_backward_ops(call.results[0].numel())


def _log_softmax(call: Call) -> ElementOps:
    """Per element: maximum 1 compare; 1 sub, 1 exp, 1 add, 1 sub. Per row: 1 log."""
    x = call.args["self"]
    elements, rows = x.numel(), x.numel() // (x.shape[call.args["dim"]] if x.dim() else 1)
    return work("loss", elements, 3 * elements, SPECIAL * (elements + rows), elements)


def _log_softmax_backward(call: Call) -> ElementOps:
    """dy - exp(y) * sum(dy): 1 exp, 1 mul, 1 add, 1 sub per element."""
    elements = call.results[0].numel()
    return work("loss", elements, 2 * elements, (SPECIAL + 1) * elements)


def _logsumexp(call: Call) -> ElementOps | None:
    """Per element: maximum 1 compare; 1 sub, 1 exp, 1 add. Per result: 1 log, 1 add."""
    if is_bookkeeping(call):
        return None
    elements, results = call.args["self"].numel(), call.results[0].numel()
    return work("softmax", elements, 2 * elements + results, SPECIAL * (elements + results), elements)


NORMALIZATION: dict[str, ElementFormula] = {
    "aten::native_batch_norm": _batch_norm,
    "aten::_native_batch_norm_legit": _batch_norm,
    "aten::_batch_norm_with_update": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::batch_norm_backward": _batch_norm_backward,
    "aten::native_layer_norm": _layer_norm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
    "aten::native_group_norm": _group_norm,
    "aten::native_group_norm_backward": _group_norm_backward,
    "aten::_fused_rms_norm": _rms_norm,
    "aten::_fused_rms_norm_backward": _rms_norm_backward,
    "aten::_weight_norm_interface": _weight_norm,
    "aten::_weight_norm_interface_backward": _weight_norm_backward,
    "aten::_softmax": _softmax,
    "aten::_safe_softmax": _softmax,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::_log_softmax": _log_softmax,
    "aten::_log_softmax_backward_data": _log_softmax_backward,
    "aten::logsumexp": _logsumexp,
}
