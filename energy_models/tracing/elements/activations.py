"""Activation functions, dropout and the gates of recurrent cells. Each activation is a kind, by name.

exp, log, tanh, erf and a reciprocal are special functions, other functions compositions: the logistic function is
1 / (1 + exp(-x)), 1 add and 2 special functions; softplus is log(1 + exp(x)), 1 add and 2 special functions.
"""

from __future__ import annotations

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, each, work

S = SPECIAL
# Per element: (kind, adds, multiplications, integer adds).
_PER_ELEMENT: dict[str, tuple[str, int, int, int]] = {
    # Piecewise linear: a compare for each bend.
    "relu": ("relu", 0, 0, 1),
    "threshold": ("relu", 0, 0, 1),
    "threshold_backward": ("relu", 0, 0, 1),
    "hardtanh": ("hardtanh", 0, 0, 2),  # ReLU6 too
    "hardtanh_backward": ("hardtanh", 0, 0, 2),
    "leaky_relu": ("leaky_relu", 0, 1, 1),
    "leaky_relu_backward": ("leaky_relu", 0, 1, 1),
    "_prelu_kernel": ("prelu", 0, 1, 1),
    "_prelu_kernel_backward": ("prelu", 0, 2, 1),  # dx: 1 mul; x * dy for the slope: 1 mul
    "rrelu_with_noise": ("leaky_relu", 1, 2, 2),  # a random step, brought to its range; then as leaky_relu
    "rrelu_with_noise_backward": ("leaky_relu", 0, 1, 0),
    "hardshrink": ("shrink", 0, 0, 2),
    "hardshrink_backward": ("shrink", 0, 0, 2),
    "softshrink": ("shrink", 1, 0, 2),
    "softshrink_backward": ("shrink", 0, 0, 2),
    "hardsigmoid": ("hardsigmoid", 1, 1, 2),  # clamp(x / 6 + 1 / 2)
    "hardsigmoid_backward": ("hardsigmoid", 0, 1, 2),
    "hardswish": ("hardswish", 1, 2, 2),  # x * clamp(x / 6 + 1 / 2)
    "hardswish_backward": ("hardswish", 1, 2, 2),  # dy * (x / 3 + 1 / 2) between the bends
    # From the result y.
    "sigmoid": ("sigmoid", 1, 2 * S, 0),
    "sigmoid_backward": ("sigmoid", 1, 2, 0),  # dy * y * (1 - y)
    "tanh": ("tanh", 0, S, 0),
    "tanh_backward": ("tanh", 1, 2, 0),  # dy * (1 - y * y)
    # From the input x; s is the logistic function.
    "silu": ("silu", 1, 1 + 2 * S, 0),
    "silu_backward": ("silu", 3, 3 + 2 * S, 0),  # dy * s * (1 + x * (1 - s))
    "glu": ("glu", 1, 1 + 2 * S, 0),
    "elu": ("elu", 1, 1 + S, 1),  # alpha * (exp(x) - 1) below 0
    "elu_backward": ("elu", 0, 2 + S, 1),  # dy * alpha * exp(x) below 0
    "celu": ("elu", 1, 2 + S, 1),
    "softplus": ("softplus", 1, 2 * S, 1),  # a compare, because it is x above a threshold
    "softplus_backward": ("softplus", 1, 1 + 2 * S, 1),  # dy * s
    "log_sigmoid_forward": ("log_sigmoid", 2, 2 * S, 2),  # min(0, x) - log(1 + exp(-|x|))
    "log_sigmoid_backward": ("log_sigmoid", 2, 1 + S, 1),  # dy * (1 - s), exp(-|x|) was kept
    "mish": ("mish", 1, 1 + 3 * S, 0),  # x * tanh(softplus(x))
    "mish_backward": ("mish", 4, 4 + 5 * S, 0),  # t = tanh(softplus(x)): dy * (t + x * s * (1 - t * t))
    # x * mask / (1 - p): choosing is 1 compare, scaling 1 mul; drawing the mask 1 random step, 1 compare.
    "bernoulli": ("dropout", 0, 0, 2),
    "native_dropout": ("dropout", 0, 1, 3),
    "native_dropout_backward": ("dropout", 0, 1, 1),
}


def _gelu(call: Call) -> ElementOps | None:
    """x / 2 * (1 + erf(x / sqrt(2))): 1 erf, 3 mul, 1 add. With tanh(k * x * (1 + c * x * x)): 1 tanh, 6 mul, 2 add."""
    if call.args["approximate"] == "tanh":
        return each("gelu", 2, 6 + S)(call)
    return each("gelu", 1, 3 + S)(call)


def _gelu_backward(call: Call) -> ElementOps | None:
    """dy * (Phi(x) + x * phi(x)), the normal distribution and its density: 1 erf, 1 exp, 7 mul, 2 add.

    With tanh (1 tanh, 12 mul, 5 add): t once more, and x / 2 * (1 - t * t) * k * (1 + 3 * c * x * x).
    """
    if call.args["approximate"] == "tanh":
        return each("gelu", 5, 12 + S)(call)
    return each("gelu", 2, 7 + 2 * S)(call)


def _glu_backward(call: Call) -> ElementOps | None:
    """Of y = a * s(b), per element of y: da = dy * s, db = dy * a * s * (1 - s): s again, 1 sub, 4 mul."""
    return each("glu", 2, 4 + 2 * S, of="grad_output")(call)


def _lstm_cell(call: Call) -> ElementOps:
    """Per element of the state: gates 4 add, and 4 for each bias; 3 logistic functions, 2 tanh; 3 mul, 1 add.

    c' = f * c + i * g, h = o * tanh(c').
    """
    states = call.args["cx"].numel()
    biases = 4 * sum(call.args[name] is not None for name in ("input_bias", "hidden_bias"))
    return work("lstm_cell", states, (8 + biases) * states, (3 + 8 * S) * states)


def _lstm_cell_backward(call: Call) -> ElementOps:
    """Per element of the state: tanh(c) again; dc = dh * o * (1 - t * t) + dc'; do, di, dg, df and dc on 5 mul.

    The logistic functions' derivatives are 2 mul, 1 sub each, as is tanh's; adding up a bias is 4 add.
    """
    states = call.args["cx"].numel()
    return work("lstm_cell", states, (6 + 4 * call.args["has_bias"]) * states, (16 + S) * states)


def _gru_cell(call: Call) -> ElementOps:
    """Per element of the state: r and z 1 add each, and 3 for each bias; 2 logistic functions, 1 tanh; 2 mul, 3 add.

    n = tanh(x + r * y), h' = n + z * (h - n).
    """
    states = call.args["hx"].numel()
    biases = 3 * sum(call.args[name] is not None for name in ("input_bias", "hidden_bias"))
    return work("gru_cell", states, (7 + biases) * states, (2 + 5 * S) * states)


def _gru_cell_backward(call: Call) -> ElementOps:
    """Per element of the state: 11 mul, 5 sub; adding up the two biases 6 add.

    dz = dh * (h - n) * z * (1 - z), dn = dh * (1 - z) * (1 - n * n), dr = dn * y * r * (1 - r), dy = dn * r, dh * z.
    """
    states = call.args["grad_hy"].numel()
    return work("gru_cell", states, (5 + 6 * call.args["has_bias"]) * states, 11 * states)


ACTIVATIONS: dict[str, ElementFormula] = {
    **{f"aten::{name}": each(*costs) for name, costs in _PER_ELEMENT.items()},
    "aten::gelu": _gelu,
    "aten::gelu_backward": _gelu_backward,
    "aten::glu_backward": _glu_backward,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "aten::_thnn_fused_gru_cell": _gru_cell,
    "aten::_thnn_fused_gru_cell_backward": _gru_cell_backward,
}
