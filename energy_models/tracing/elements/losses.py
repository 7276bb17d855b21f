"""Loss functions that are one operator; others arrive as the operators that they are made of."""

from __future__ import annotations

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, each, work

S = SPECIAL
_NO_REDUCTION, _MEAN = 0, 1


def _nll_loss(call: Call) -> ElementOps:
    """One add per row and the mean's scaling."""
    rows = call.args["target"].numel()
    return work("loss", rows, fp_add=rows, fp_mul=1)


def _nll_loss_backward(call: Call) -> ElementOps:
    rows = call.args["target"].numel()
    return work("loss", rows, fp_mul=rows)


def _reduced(fp_add: int, fp_mul: int, int_add: int = 0) -> ElementFormula:
    """So much per element; summing them is 1 add more, a mean scales once, weights are 1 mul."""

    def formula(call: Call) -> ElementOps:
        elements, reduction = call.args["self"].numel(), call.args["reduction"]
        adds = fp_add + (reduction != _NO_REDUCTION)
        muls = fp_mul + sum(call.args.get(name) is not None for name in ("weight", "pos_weight"))
        return work("loss", elements, adds * elements, muls * elements + (reduction == _MEAN), int_add * elements)

    return formula


def _ctc(passes: int) -> ElementFormula:
    """The sum over alignments as log-sums of three neighbours, for each step and each of 2 L + 1 states.

    Per entry: maximum 2 compares; 3 sub, 3 exp, 2 add, 1 log, 1 add, and 1 add for the step's own probability. The
    backward pass does it again from the end; then gathers both by class: 1 add, 1 exp, 1 add.
    Source: Graves et al. 2006 ("Connectionist Temporal Classification"), equations 6 to 16.
    """

    def formula(call: Call) -> ElementOps:
        entries = call.args["log_alpha"].numel() if "log_alpha" in call.args else call.results[1].numel()
        return work("loss", entries, (7 + 2 * passes) * entries, (4 + passes) * S * entries, 2 * entries)

    return formula


_NAMED: dict[str, ElementFormula] = {
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _nll_loss),
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), _nll_loss_backward),
    "mse_loss": _reduced(1, 1),
    "mse_loss_backward": each("loss", 1, 2),  # (x - t) * 2 / n * dy
    "smooth_l1_loss": _reduced(2, 2, 2),  # |x - t|; z - b / 2 or z * z / (2 b)
    "smooth_l1_loss_backward": each("loss", 1, 2, 2),
    "huber_loss": _reduced(2, 2, 2),
    "huber_loss_backward": each("loss", 1, 2, 2),
    "binary_cross_entropy": _reduced(3, 2 + 2 * S),  # (t - 1) * log(1 - x) - t * log(x)
    "binary_cross_entropy_backward": each("loss", 2, 2 + S),  # dy * (x - t) / (x * (1 - x))
    "binary_cross_entropy_with_logits": _reduced(4, 1 + 2 * S, 2),  # (1 - t) * x - log_sigmoid(x)
    "soft_margin_loss": _reduced(1, 1 + 2 * S),  # log(1 + exp(-t * x))
    "soft_margin_loss_backward": each("loss", 1, 3 + 2 * S),
    "multi_margin_loss": _reduced(2, 0, 1),  # max(0, margin - x[t] + x[i])
    "multi_margin_loss_backward": each("loss", 3, 1, 1),
    "multilabel_margin_loss_forward": _reduced(2, 0, 1),
    "multilabel_margin_loss_backward": each("loss", 3, 1, 1),
    "_ctc_loss": _ctc(0),
    "_ctc_loss_backward": _ctc(1),
}
LOSSES: dict[str, ElementFormula] = {f"aten::{name}": formula for name, formula in _NAMED.items()}
