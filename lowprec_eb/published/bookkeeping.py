"""What You et al. 2020 charge for each method, and which arm of a comparison is which method of theirs.

Training FLOPs are 3 x 2 x forward MACs x images x epochs (`energy_models.compat.early_bird`). A method's epochs are
those of the dense network and those of the pruned one; methods whose weights are masked and not taken out (SNIP, the
lottery ticket) are charged dense throughout. Read off the paper's own table: SNIP there costs what the dense model
does, a lottery ticket twice that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from energy_models.compat import early_bird_flops
from lowprec_eb.published.tables import Method

_EIGHT_BITS = ("swalp8", "bfp8")
_FP32 = "fp32"


class Kind(Protocol):
    """What tells an arm's method: satisfied by outcomes."""

    @property
    def pipeline(self) -> str: ...
    @property
    def search_precision(self) -> str | None: ...
    @property
    def precision(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def schedule(self) -> str | None: ...
    @property
    def penalty(self) -> bool | None: ...


@dataclass(frozen=True)
class Charge:
    """Epochs that are charged at the dense network's cost and at the pruned one's."""

    dense: float
    pruned: float


def charge(method: Method, epochs: float, emergence: float | None = None) -> Charge | None:
    """What the paper charges for a method.

    Args:
        method: of the table. epochs: of the whole schedule. emergence: epochs of an early-bird search.

    Returns:
        None where it is not known how the paper charges it (ThiNet).

    Raises:
        ValueError: an early-bird method without an emergence epoch.
    """
    if method in ("dense", "snip"):
        return Charge(epochs, 0)
    if method == "lt":
        return Charge(2 * epochs, 0)
    if method == "ns":
        return Charge(epochs, epochs)
    if method == "thinet":
        return None
    if emergence is None:
        raise ValueError(f"{method}: an early-bird method is charged by its emergence epoch, and there is none")
    return Charge(emergence, epochs if method == "eb_reinit" else epochs - emergence)


def training_flops(charged: Charge, forward_macs: float, images: float, remaining: float = 1.0) -> float:
    """Training FLOPs in the paper's bookkeeping.

    Args:
        charged: the epochs. forward_macs: of the dense network, of one image. images: of an epoch. remaining: forward
            MACs of the pruned network over those of the dense one.
    """
    return early_bird_flops(forward_macs, images * (charged.dense + remaining * charged.pruned))


def method_of(arm: Kind) -> Method | None:
    """The paper's method that an arm follows; None: it is none of them."""
    if arm.pipeline == "early_bird":
        return _early_bird(arm)
    if arm.precision != _FP32:
        return None
    plain: dict[str, Method] = {
        "full": "dense",
        "one_shot_ticket": "lt",
        "snip": "snip",
        "network_slimming": "ns",
        "thinet": "thinet",
    }
    return plain.get(arm.pipeline)


def _early_bird(arm: Kind) -> Method | None:
    bits = (arm.search_precision or arm.precision, arm.precision)
    if arm.penalty:
        return None
    if arm.weights == "reinit":
        return "eb_reinit" if bits == (_FP32, _FP32) and arm.schedule in (None, "restart") else None
    if arm.weights != "inherit" or arm.schedule not in (None, "continue"):
        return None
    if bits == (_FP32, _FP32):
        return "eb_ff"
    if bits[0] in _EIGHT_BITS and bits[1] == _FP32:
        return "eb_lf"
    return "eb_ll" if bits[0] == bits[1] and bits[0] in _EIGHT_BITS else None
