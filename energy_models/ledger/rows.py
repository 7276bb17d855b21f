"""One row of the ledger: which work it pays for, and what that cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from energy_models.counts import OpCounts
from energy_models.energy import ModelledEnergy

Phase = Literal["search", "train", "prune", "retrain", "detect", "average", "eval"]
PHASES: tuple[Phase, ...] = get_args(Phase)
GEMMS = ("output", "grad_input", "grad_weight")  # of every row; an optimizer that multiplies adds "optimizer"
_KNOWN_GEMMS = (*GEMMS, "optimizer")


@dataclass(frozen=True, order=True)
class LedgerKey:
    """Which work a row pays for. ``attempt`` counts how often the same (run, stage, phase, epoch, rank) was redone."""

    run: str
    stage: str
    phase: Phase
    epoch: int
    rank: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"ledger key: phase is {self.phase!r}; it must be one of {', '.join(PHASES)}")
        if not self.run or not self.stage:
            raise ValueError(f"ledger key: run is {self.run!r} and stage is {self.stage!r}; both need a name")
        for name in ("epoch", "rank", "attempt"):
            if getattr(self, name) < 0:
                raise ValueError(f"ledger key: {name} is {getattr(self, name)}; it counts from 0")

    @property
    def work(self) -> tuple[str, str, str, int, int]:
        """The key without its attempt."""
        return (self.run, self.stage, self.phase, self.epoch, self.rank)


@dataclass(frozen=True)
class LedgerRow:
    """The cost of one epoch of one phase on one rank, all its steps together.

    ``macs`` is {GEMM: {"8x32": MACs}} by the bits of the two operands, every name of ``GEMMS`` in it; ``element_ops``
    is {kind: elements}. ``measured_j`` is None where no sensor measured; it never mixes with ``modelled``, which is
    under the hardware profile named ``profile`` (None: not said). A metric may be nan (a run that diverged). ``counts``
    is {key of a :class:`energy_models.CountStore`: times}, whose sum the row pays for: other profiles price it
    afterwards. None: no counts were kept.
    """

    key: LedgerKey
    samples: int
    macs: dict[str, dict[str, int]]
    element_ops: dict[str, int]
    modelled: ModelledEnergy
    measured_j: float | None
    duration_s: float
    metrics: dict[str, float | str | None]
    profile: str | None = None
    counts: dict[str, int] | None = None

    def __post_init__(self) -> None:
        for gemm, by_bits in self.macs.items():
            if gemm not in _KNOWN_GEMMS or not all(re.fullmatch(r"\d+x\d+", bits) for bits in by_bits):
                raise ValueError(
                    f"ledger row: macs[{gemm!r}] is {by_bits}; expected a GEMM of {_KNOWN_GEMMS} and bits as '8x8'"
                )
        object.__setattr__(self, "macs", {gemm: {} for gemm in GEMMS} | self.macs)
        for name in ("samples", "duration_s", "measured_j"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"ledger row: {name} is {value}; it must be finite and not negative")
        for name, metric in self.metrics.items():
            if not (metric is None or isinstance(metric, float | int | str)):
                raise ValueError(f"ledger row: metric {name!r} is a {type(metric).__name__}; make it a number or text")

    @property
    def total_macs(self) -> int:
        """MACs of all GEMMs."""
        return sum(sum(by_bits.values()) for by_bits in self.macs.values())

    @property
    def bit_ops(self) -> int:
        """Sum over the GEMMs of MACs x bits of one operand x bits of the other."""
        return sum(number * _bits_product(bits) for by_bits in self.macs.values() for bits, number in by_bits.items())

    @classmethod
    def from_counts(
        cls,
        key: LedgerKey,
        counts: OpCounts,
        modelled: ModelledEnergy,
        samples: int,
        measured_j: float | None,
        duration_s: float,
        metrics: Mapping[str, float | str | None],
        *,
        profile: str | None = None,
        kept: Mapping[str, int] | None = None,
    ) -> LedgerRow:
        """A row from the operations and the modelled energy of the whole epoch (not of one step).

        ``kept`` is where the counts are stored, as ``CountStore.put`` names them, and how often each was done.
        """
        macs: dict[str, dict[str, int]] = {gemm: {} for gemm in GEMMS}
        for (gemm, bits_a, bits_b), number in counts.macs_by_bits.items():
            macs.setdefault(gemm, {})[f"{bits_a}x{bits_b}"] = number
        return cls(
            key=key,
            samples=samples,
            macs=macs,
            element_ops=dict(counts.element_ops_by_kind),
            modelled=modelled,
            measured_j=measured_j,
            duration_s=duration_s,
            metrics=dict(metrics),
            profile=profile,
            counts=None if kept is None else dict(kept),
        )


def _bits_product(bits: str) -> int:
    a, _, b = bits.partition("x")
    return int(a) * int(b)
