"""What a rule for following known zeros through an operator is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from energy_models.tracing.call import Call
from energy_models.tracing.patterns import Pattern

Known = Callable[[Any], Pattern | None]
Reverse = Callable[[Pattern | None], Pattern | None]
Uses = Sequence[tuple[Tensor, Reverse]]


@dataclass(frozen=True, slots=True)
class Rule:
    """How known zeros pass through an operator, forward (what is zero) and in reverse (what nobody needs).

    zero: the pattern of the first result.
    needless: arguments, each with a function from the pattern of first results that nobody needs to that of the
        argument's elements that nobody needs because of it: those that are multiplied by a known zero, or that only
        needless results are made of. Arguments that are not listed are needed.
    """

    zero: Callable[[Call, Known], Pattern | None]
    needless: Callable[[Call, Known], Uses]


def nothing(call: Call, known: Known) -> Uses:
    """All arguments are needed."""
    return []
