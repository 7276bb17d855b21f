"""What torch's optimizers keep, by operand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import optim

from lowprec_eb.precision import Precision, check_choice

STATE_OPERANDS: tuple[str, ...] = ("momentum", "second_moment")

# Sums and means of gradients are momentum, those of their squares (or of magnitudes) second moments. What is neither
# (step counts, Rprop's step sizes, ASGD's average of weights, the mean that centered RMSprop subtracts) stays as it is.
_KEPT: dict[type[optim.Optimizer], dict[str, tuple[str, ...]]] = {
    optim.SGD: {"momentum": ("momentum_buffer",)},
    optim.Muon: {"momentum": ("momentum_buffer",)},
    optim.Adam: {"momentum": ("exp_avg",), "second_moment": ("exp_avg_sq", "max_exp_avg_sq")},
    optim.AdamW: {"momentum": ("exp_avg",), "second_moment": ("exp_avg_sq", "max_exp_avg_sq")},
    optim.SparseAdam: {"momentum": ("exp_avg",), "second_moment": ("exp_avg_sq",)},
    optim.NAdam: {"momentum": ("exp_avg",), "second_moment": ("exp_avg_sq",)},
    optim.RAdam: {"momentum": ("exp_avg",), "second_moment": ("exp_avg_sq",)},
    optim.Adamax: {"momentum": ("exp_avg",), "second_moment": ("exp_inf",)},
    optim.RMSprop: {"momentum": ("momentum_buffer",), "second_moment": ("square_avg",)},
    optim.Adagrad: {"second_moment": ("sum",)},
    optim.Adadelta: {"second_moment": ("square_avg", "acc_delta")},
    optim.Adafactor: {"second_moment": ("row_var", "col_var", "variance")},
    optim.ASGD: {},
    optim.Rprop: {},
}


def state_keys_of(
    optimizer: optim.Optimizer, precision: Precision, given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The keys under which ``optimizer``'s state holds each operand; ``given`` ones go first.

    Raises:
        ValueError: ``given`` names no operand of the state; nobody knows where this optimizer keeps an operand that the
            precision rounds; rounding would make NaN of it.
    """
    kind = type(optimizer).__name__
    for operand in given:
        check_choice("state_keys", "operand", operand, STATE_OPERANDS)
    known = next((_KEPT[base] for base in type(optimizer).__mro__ if base in _KEPT), None)
    if known is None:
        for operand in STATE_OPERANDS:
            if precision.of(operand) is not None and operand not in given:
                raise ValueError(
                    f"precision {precision.name!r} rounds the {operand}, and where {kind} keeps one is not known: pass "
                    f"state_keys={{{operand!r}: (key, ...)}}, empty if it keeps none"
                )
    if precision.of("second_moment") is not None and any(group.get("centered") for group in optimizer.param_groups):
        raise ValueError(
            f"precision {precision.name!r} rounds the second moment, and {kind} with centered=True takes the root of "
            "its distance to a squared mean, which may be negative then: set centered=False"
        )
    return {operand: tuple(given.get(operand, (known or {}).get(operand, ()))) for operand in STATE_OPERANDS}


def operand_of(optimizer: optim.Optimizer, key: str) -> str:
    """The operand that ``optimizer`` keeps under ``key`` of its state; the key itself where it is none."""
    known = next((_KEPT[base] for base in type(optimizer).__mro__ if base in _KEPT), {})
    return next((operand for operand, keys in known.items() if key in keys), key)
