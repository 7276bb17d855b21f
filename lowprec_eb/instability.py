"""What went wrong in one training step, as plain data that the ledger keeps and the report reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Response = Literal["stop", "skip", "raise_precision"]
_KINDS = {"nan": "NaN", "inf": "infinite", "exploding": "exploding"}


@dataclass(frozen=True)
class Instability:
    """The first operand that went bad in a step, and what was done.

    Args:
        epoch, step: of the training; steps count from 0 in each epoch. None: found in the mean loss of the epoch, by a
            loop that watches no steps.
        layer: its name in the model; empty for the loss, and for the model itself.
        operand: a field of :class:`lowprec_eb.Precision`, ``"loss"``, or a tensor of the optimizer's own name.
        parameter: the full name of the parameter, for operands that belong to one; else empty.
        kind: ``"nan"``, ``"inf"`` or ``"exploding"``.
        value: what showed it: the loss, the L2 norm of a tensor that belongs to a parameter, or NaN or an infinity.
        response: what was done.
    """

    epoch: int
    step: int | None
    layer: str
    operand: str
    parameter: str
    kind: Literal["nan", "inf", "exploding"]
    value: float
    response: Response

    def __str__(self) -> str:
        if self.step is None:
            return f"the mean loss of epoch {self.epoch} is {self.value}"
        of = f" of layer {self.layer!r}" if self.layer else ""
        name = f" ({self.parameter})" if self.parameter else ""
        value = f", at {self.value:g}" if math.isfinite(self.value) else ""
        return f"{self.operand}{of}{name} is {_KINDS[self.kind]}{value} in epoch {self.epoch}, step {self.step}"

    def to_tree(self) -> dict[str, Any]:
        """JSON-able; NaN and infinities, which JSON has not, as texts."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else str(self.value)}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Instability:
        return replace(cls(**tree), value=float(tree["value"]))


def to_text(events: Iterable[Instability]) -> str:
    """One line of JSON, as it stands in a ledger row's metric ``instabilities``."""
    return json.dumps([event.to_tree() for event in events], allow_nan=False)


def from_text(text: str) -> list[Instability]:
    return [Instability.from_tree(tree) for tree in json.loads(text)]


class Diverged(FloatingPointError):
    """Training cannot go on; ``event`` says where it broke."""

    def __init__(self, event: Instability, advice: str) -> None:
        super().__init__(f"training diverged: {event}; {advice}")
        self.event = event
