"""How known zeros pass through operators. One without a rule makes no known zeros and needs all that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from energy_models.tracing.call import Call
from energy_models.tracing.patterns import (
    Pattern,
    both,
    channels,
    either,
    of_channels,
    ranked,
    summed_to,
)
from energy_models.tracing.zero_rule import Known, Reverse, Rule, Uses, nothing
from energy_models.tracing.zero_views import VIEWS


def _back_to(x: Tensor) -> Reverse:
    shape = tuple(x.shape)
    return lambda dead: summed_to(dead, shape)


def _kept(name: str) -> Rule:
    """f(x) element by element with f(0) = 0, or a factor of x that is not looked at."""

    def zero(call: Call, known: Known) -> Pattern | None:
        return ranked(known(call.args[name]), call.results[0].dim())

    def needless(call: Call, known: Known) -> Uses:
        x = call.args[name]
        return [(x, _back_to(x))] if isinstance(x, Tensor) else []

    return Rule(zero, needless)


def _product(first: str, second: str) -> Rule:
    def zero(call: Call, known: Known) -> Pattern | None:
        rank = call.results[0].dim()
        return either(*(ranked(known(call.args[name]), rank) for name in (first, second)))

    def needless(call: Call, known: Known) -> Uses:
        uses = []
        for name, other in ((first, second), (second, first)):
            if isinstance(call.args[name], Tensor):
                uses.append((call.args[name], _times(call.args[name], known(call.args[other]))))
        return uses

    return Rule(zero, needless)


def _times(x: Tensor, factor: Pattern | None) -> Reverse:
    shape = tuple(x.shape)

    def reverse(dead: Pattern | None) -> Pattern | None:
        rank = max(len(shape), *(p.dim() for p in (dead, factor) if p is not None), 0)
        return summed_to(either(ranked(dead, rank), ranked(factor, rank)), shape)

    return reverse


def _sum_zero(call: Call, known: Known) -> Pattern | None:
    rank = call.results[0].dim()
    return both(*(_term(call.args[name], known, rank) for name in ("self", "other")))


def _term(value: Any, known: Known, rank: int) -> Pattern | None:
    if isinstance(value, Tensor):
        return ranked(known(value), rank)
    return torch.ones((1,) * rank, dtype=torch.bool, device="cpu") if value == 0 else None


def _sum_needless(call: Call, known: Known) -> Uses:
    terms = (call.args["self"], call.args["other"])
    return [(term, _back_to(term)) for term in terms if isinstance(term, Tensor)]


def _gated_backward(gate: str, shuts_at_zero: Callable[[Call], bool]) -> Rule:
    """An error that passes where the activation was above a threshold."""

    def shut(call: Call, known: Known) -> Pattern | None:
        return known(call.args[gate]) if shuts_at_zero(call) else None

    def zero(call: Call, known: Known) -> Pattern | None:
        return either(known(call.args["grad_output"]), shut(call, known))

    def needless(call: Call, known: Known) -> Uses:
        error = call.args["grad_output"]
        return [(error, _times(error, shut(call, known)))]

    return Rule(zero, needless)


# Normalisation: gamma and beta of a channel are zero.


def _norm_zero(call: Call, known: Known) -> Pattern | None:
    return both(known(call.args["weight"]), _shift(call, known))


def _shift(call: Call, known: Known) -> Pattern | None:
    if call.args["bias"] is None:
        return torch.ones(1, dtype=torch.bool, device="cpu")
    return known(call.args["bias"])


def _of_channel(call: Call, vector: Pattern | None) -> Pattern | None:
    x = call.args["input"]
    return None if vector is None else of_channels(vector.expand(x.shape[1]), x.dim())


def _batch_norm_zero(call: Call, known: Known) -> Pattern | None:
    x = call.args["input"]
    scale = known(call.args["weight"])
    if call.args.get("training"):  # a channel that is zero in all of a batch is its own mean
        constant = channels(known(x), x.shape[1])
        scale = either(scale, constant)
    return _of_channel(call, both(scale, _shift(call, known)))


def _scaled_by_gamma(*names: str) -> Callable[[Call, Known], Uses]:
    def needless(call: Call, known: Known) -> Uses:
        scale = _of_channel(call, known(call.args["weight"]))
        return [(call.args[name], _times(call.args[name], scale)) for name in names]

    return needless


def _batch_norm_backward_zero(call: Call, known: Known) -> Pattern | None:
    if not call.args["output_mask"][0]:
        return None
    error = call.args.get("grad_out", call.args.get("grad_output"))
    return _of_channel(call, either(known(call.args["weight"]), channels(known(error), error.shape[1])))


def _batch_norm_backward_needless(call: Call, known: Known) -> Uses:
    """A dropped channel's error and input make the gradient of its gamma alone, which a dropped channel has not."""
    return _scaled_by_gamma("grad_out" if "grad_out" in call.args else "grad_output", "input")(call, known)


def _layer_norm_zero(call: Call, known: Known) -> Pattern | None:
    return ranked(_norm_zero(call, known), call.results[0].dim())


def _group_norm_zero(call: Call, known: Known) -> Pattern | None:
    return _of_channel(call, _norm_zero(call, known))


# Windows and reductions: all that goes into a result is zero.


def _window(name: str) -> Rule:
    def zero(call: Call, known: Known) -> Pattern | None:
        return _whole_channels(known(call.args[name]), call.args[name])

    def needless(call: Call, known: Known) -> Uses:
        x, out = call.args[name], call.results[0]
        return [(x, lambda dead: _whole_channels(dead, out))]

    return Rule(zero, needless)


def _whole_channels(pattern: Pattern | None, x: Tensor) -> Pattern | None:
    return of_channels(channels(pattern, x.shape[1]), x.dim()) if x.dim() > 2 else None


def _reduced_dims(call: Call) -> list[int]:
    rank, dims = call.args["self"].dim(), call.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return sorted({dim % rank for dim in dims}) if dims else list(range(rank))


def _reduction_zero(call: Call, known: Known) -> Pattern | None:
    pattern = known(call.args["self"])
    if pattern is None:
        return None
    for dim in reversed(_reduced_dims(call)):
        pattern = pattern.all(dim, keepdim=bool(call.args.get("keepdim")))
    return pattern


def _reduction_needless(call: Call, known: Known) -> Uses:
    dims, keeps = _reduced_dims(call), bool(call.args.get("keepdim"))

    def reverse(dead: Pattern | None) -> Pattern | None:
        if dead is None or keeps:
            return dead
        for dim in dims:
            dead = dead.unsqueeze(dim)
        return dead

    return [(call.args["self"], reverse)]


def _masked_zero(call: Call, known: Known) -> Pattern | None:
    rank = call.results[0].dim()
    pattern = ranked(known(call.args["self"]), rank)
    return pattern if call.args["value"] == 0 else None


def _copied_zero(call: Call, known: Known) -> Pattern | None:
    return ranked(known(call.args["src"]), call.results[0].dim())


def _copied_needless(call: Call, known: Known) -> Uses:
    return [(call.args["src"], _back_to(call.args["src"]))]


_ODD = ("relu", "gelu", "silu", "mish", "tanh", "hardswish", "leaky_relu", "elu", "abs", "neg", "sign", "sqrt", "erf")
_SAME = ("alias", "clone", "contiguous", "detach", "expand", "lift_fresh", "_to_copy", "div", "round", "floor")
_ERRORS = ("gelu", "silu", "mish", "tanh", "sigmoid", "hardswish", "leaky_relu", "elu")
_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d")
_MORE_POOLS = ("_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
_WINDOW_ERRORS = (*_POOLS, *_MORE_POOLS)


def _clamps_to_zero(call: Call) -> bool:
    low, high = (call.args.get(name) for name in ("min_val", "max_val"))
    return low is not None and high is not None and low <= 0 <= high


def _hardtanh_zero(call: Call, known: Known) -> Pattern | None:
    return known(call.args["self"]) if _clamps_to_zero(call) else None


RULES: dict[str, Rule] = {
    **{f"aten::{name}": _kept("self") for name in (*_ODD, *_SAME)},
    "lowprec_eb::quantize": _kept("x"),
    "aten::native_dropout": _kept("input"),
    "aten::native_dropout_backward": _kept("grad_output"),
    **{f"aten::{name}_backward": _kept("grad_output") for name in _ERRORS},
    "aten::mul": _product("self", "other"),
    "aten::add": Rule(_sum_zero, _sum_needless),
    "aten::sub": Rule(_sum_zero, _sum_needless),
    "aten::masked_fill": Rule(_masked_zero, nothing),
    "aten::copy": Rule(_copied_zero, _copied_needless),
    "aten::hardtanh": Rule(_hardtanh_zero, nothing),
    "aten::threshold_backward": _gated_backward("self", lambda call: call.args["threshold"] >= 0),
    "aten::hardtanh_backward": _gated_backward("self", lambda call: call.args["min_val"] >= 0),
    "aten::native_batch_norm": Rule(_batch_norm_zero, _scaled_by_gamma("input")),
    "aten::cudnn_batch_norm": Rule(_batch_norm_zero, _scaled_by_gamma("input")),
    "aten::native_batch_norm_backward": Rule(_batch_norm_backward_zero, _batch_norm_backward_needless),
    "aten::native_layer_norm": Rule(_layer_norm_zero, nothing),
    "aten::native_group_norm": Rule(_group_norm_zero, nothing),
    **{f"aten::{name}": _window("self") for name in (*_POOLS, *_MORE_POOLS)},
    **{f"aten::{name}_backward": _window("grad_output") for name in _WINDOW_ERRORS},
    **{f"aten::{name}": Rule(_reduction_zero, _reduction_needless) for name in ("mean", "sum")},
    **VIEWS,
}
