"""The numbers of a comparison: what each arm reached and what it cost, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from energy_models.energy import ModelledEnergy, Range
from energy_models.footprint import Footprint
from energy_models.ledger import PHASES, LedgerRow, totals
from lowprec_eb.outcome import DivergedOutcome, Outcome, TicketSummary
from lowprec_eb.report.intervals import check_confidence

_KIND = ("pipeline", "search_precision", "precision", "weights", "averaging", "ratio")
TRAINING_PHASES = ("search", "train", "retrain")


@dataclass(frozen=True, eq=False)
class MaskHistory:
    """The channel masks of one recorded dense run with the gamma penalty.

    ``masks`` is bool (epochs, channels); row i is the mask after i + 1 trained epochs. ``ticket_epoch`` counts the
    epochs trained when the early-bird ticket was drawn with the same precision and seed (None: no such arm).
    """

    label: str
    seed: int
    masks: NDArray[np.bool_]
    ticket_epoch: int | None

    def __post_init__(self) -> None:
        if self.masks.ndim != 2 or self.masks.size == 0 or self.masks.dtype != np.bool_:
            raise ValueError(
                f"mask history {self.label!r}, seed {self.seed}: masks must be bool (epochs, channels), not empty, "
                f"but is {self.masks.dtype} {self.masks.shape}"
            )


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a report is made of: all arms and seeds of one experiment, priced under one hardware profile.

    ``profile`` is one line with the profile's name and description; ``rows`` are the settled ledger rows by stage, each
    stage once, however many arms it is charged to; ``splits`` are the sizes of "train", "validation" and "test";
    ``notes`` are printed as they are; ``margin`` is the difference in accuracy (a fraction) that counts as none, and
    ``confidence`` the level of intervals over seeds and of verdicts; ``baselines`` names the arms that the others are
    tested against (none: full training and network slimming in fp32, where they are there); ``diverged`` are the arms
    and seeds that have no outcome: they are named, and are in no mean; with a ``footprint`` CO2e and cost are reported;
    ``missing`` are the arms and seeds that have not ended yet.

    Raises ValueError when there is no outcome, an arm has two outcomes for a seed or describes itself in two ways, or a
    stage is charged twice to one outcome, is not in ``rows`` or has no rows.
    """

    name: str
    profile: str
    outcomes: tuple[Outcome, ...]
    rows: Mapping[str, tuple[LedgerRow, ...]]
    mask_histories: tuple[MaskHistory, ...]
    splits: Mapping[str, int]
    notes: tuple[str, ...]
    margin: float = 0.01
    diverged: tuple[DivergedOutcome, ...] = ()
    footprint: Footprint | None = None
    confidence: float = 0.95
    baselines: tuple[str, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise ValueError(f"comparison {self.name!r} has no outcomes; run at least one arm first")
        if not 0 <= self.margin < 1:
            raise ValueError(f"comparison {self.name!r}: margin must be a fraction in [0, 1), got {self.margin}")
        check_confidence(self.confidence)
        kinds: dict[str, tuple[str | float | None, ...]] = {}
        seen: set[tuple[str, int]] = set()
        everything: tuple[Outcome | DivergedOutcome, ...] = (*self.outcomes, *self.diverged)
        for outcome in everything:
            where = f"comparison {self.name!r}, arm {outcome.arm!r}, seed {outcome.seed}"
            kind = tuple(getattr(outcome, name) for name in _KIND)
            if kinds.setdefault(outcome.arm, kind) != kind:
                raise ValueError(f"{where}: is {kind}, but another seed is {kinds[outcome.arm]}; name two arms")
            if (outcome.arm, outcome.seed) in seen:
                raise ValueError(f"{where}: has two outcomes; keep one")
            seen.add((outcome.arm, outcome.seed))
            self._check_stages(outcome, where)
        arms = [*kinds, *(arm for arm, _ in self.missing if arm not in kinds)]
        if unknown := [name for name in self.baselines if name not in arms]:
            raise ValueError(f"comparison {self.name!r}: the baseline {unknown[0]!r} is none of the arms {arms}")

    def _check_stages(self, outcome: Outcome | DivergedOutcome, where: str) -> None:
        if not outcome.stages or len(set(outcome.stages)) != len(outcome.stages):
            raise ValueError(f"{where}: charge at least one stage, and each once; got {outcome.stages}")
        for stage in outcome.stages:
            if not self.rows.get(stage):
                raise ValueError(
                    f"{where}: is charged for stage {stage!r}, which has no ledger rows; run it, or read its ledger"
                )

    @property
    def runs_ended(self) -> str | None:
        """How many arms and seeds have ended, for a reader; None: all have."""
        ended = len(self.outcomes) + len(self.diverged)
        return f"{ended} of {ended + len(self.missing)} runs have ended" if self.missing else None

    def charged_rows(self, outcome: Outcome | DivergedOutcome) -> list[LedgerRow]:
        """The rows of all stages that an outcome is charged for, in the order of its stages."""
        return [row for stage in outcome.stages for row in self.rows[stage]]


@dataclass(frozen=True)
class Spread:
    """Mean over ``n`` seeds and sample standard deviation (n - 1 in the denominator; None for one seed)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        values = list(values)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class SeedSummary:
    """One arm, one seed. Shares and accuracies are fractions.

    ``training_macs`` and ``training_bit_ops`` are of the phases search, train and retrain; energies, ``measured_j`` and
    ``duration_s`` are of all phases. ``measured_j`` is None unless a sensor measured every row. ``stages`` names the
    ledger stages that are charged, which other arms may share.
    """

    seed: int
    stages: tuple[str, ...]
    test_accuracy: float
    validation_accuracy: float
    best_epoch: int
    ticket: TicketSummary | None
    channels_left: float
    flops_left: float
    training_macs: int
    training_bit_ops: int
    energy: ModelledEnergy
    energy_by_phase: Mapping[str, ModelledEnergy]
    measured_j: float | None
    duration_s: float


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds (in ascending order); the fields without a spread are means.

    The arm pays for every stage it needs, shared ones too: sums over arms pay twice for those and mean nothing.
    ``diverged_seeds`` are in no mean. ``vs_full`` and ``vs_slimming`` are the mean energy over that of the fp32
    baselines `full` and `network_slimming` (None: no such arm). ``conditions``: see :class:`Outcome`.
    """

    arm: str
    pipeline: str
    search_precision: str | None
    precision: str
    weights: str
    seeds: tuple[SeedSummary, ...]
    test_accuracy: Spread
    validation_accuracy: Spread
    channels_left: float
    flops_left: float
    training_macs: float
    training_bit_ops: float
    energy: ModelledEnergy
    energy_by_phase: Mapping[str, ModelledEnergy]
    measured_j: float | None
    duration_s: float
    vs_full: Range | None = None
    vs_slimming: Range | None = None
    averaging: str | None = None
    diverged_seeds: tuple[int, ...] = ()
    ratio: float | None = None
    conditions: tuple[str | int | bool | None, ...] = ()

    @property
    def precision_label(self) -> str:
        return precision_label(self)


def precision_label(arm: ArmSummary | DivergedOutcome) -> str:
    """The precision, or "search > training" where they differ."""
    if arm.search_precision in (None, arm.precision):
        return arm.precision
    return f"{arm.search_precision} > {arm.precision}"


def diverged_arms(comparison: Comparison) -> dict[str, list[DivergedOutcome]]:
    """Arms without any outcome, by name: every seed of them diverged."""
    finished = {outcome.arm for outcome in comparison.outcomes}
    arms: dict[str, list[DivergedOutcome]] = {}
    for outcome in comparison.diverged:
        if outcome.arm not in finished:
            arms.setdefault(outcome.arm, []).append(outcome)
    return arms


def summarise(comparison: Comparison) -> tuple[ArmSummary, ...]:
    """The arms in the order of their first appearance."""
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in comparison.outcomes:
        by_arm.setdefault(outcome.arm, []).append(outcome)
    costs = [_mean_over_seeds(comparison, outcomes) for outcomes in by_arm.values()]
    full = find_arm(costs, "full", "fp32")
    slimming = find_arm(costs, "network_slimming", "fp32")
    return tuple(_with_ratios(arm, full, slimming) for arm in costs)


def find_arm(arms: Iterable[ArmSummary], pipeline: str, precision: str) -> ArmSummary | None:
    """The first arm of a pipeline that works in one precision from start to end."""
    matches = (a for a in arms if (a.pipeline, a.precision_label) == (pipeline, precision))
    return next(matches, None)


def _mean_over_seeds(comparison: Comparison, outcomes: list[Outcome]) -> ArmSummary:
    seeds = tuple(_of_seed(comparison, outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.seed))
    measured = [seed.measured_j for seed in seeds if seed.measured_j is not None]
    phases = [phase for phase in PHASES if any(phase in seed.energy_by_phase for seed in seeds)]
    first = outcomes[0]
    diverged = sorted(outcome.seed for outcome in comparison.diverged if outcome.arm == first.arm)
    return ArmSummary(
        diverged_seeds=tuple(diverged),
        arm=first.arm,
        pipeline=first.pipeline,
        search_precision=first.search_precision,
        precision=first.precision,
        weights=first.weights,
        seeds=seeds,
        test_accuracy=Spread.of(seed.test_accuracy for seed in seeds),
        validation_accuracy=Spread.of(seed.validation_accuracy for seed in seeds),
        channels_left=statistics.fmean(seed.channels_left for seed in seeds),
        flops_left=statistics.fmean(seed.flops_left for seed in seeds),
        training_macs=statistics.fmean(seed.training_macs for seed in seeds),
        training_bit_ops=statistics.fmean(seed.training_bit_ops for seed in seeds),
        energy=_mean_energy([seed.energy for seed in seeds]),
        energy_by_phase={
            phase: _mean_energy([seed.energy_by_phase.get(phase, ModelledEnergy.zero()) for seed in seeds])
            for phase in phases
        },
        measured_j=statistics.fmean(measured) if len(measured) == len(seeds) else None,
        duration_s=statistics.fmean(seed.duration_s for seed in seeds),
        averaging=first.averaging,
        ratio=first.ratio,
        conditions=first.conditions,
    )


def _of_seed(comparison: Comparison, outcome: Outcome) -> SeedSummary:
    bill = totals(comparison.charged_rows(outcome))
    training = [bill.by_phase[phase] for phase in TRAINING_PHASES if phase in bill.by_phase]
    return SeedSummary(
        seed=outcome.seed,
        stages=outcome.stages,
        test_accuracy=outcome.test_accuracy,
        validation_accuracy=outcome.validation_accuracy,
        best_epoch=outcome.best_epoch,
        ticket=outcome.ticket,
        channels_left=outcome.channels_kept / outcome.channels_total,
        flops_left=outcome.forward_macs / outcome.dense_forward_macs,
        training_macs=sum(sum(phase.macs.values()) for phase in training),
        training_bit_ops=sum(phase.bit_ops for phase in training),
        energy=bill.modelled,
        energy_by_phase={phase: part.modelled for phase, part in bill.by_phase.items()},
        measured_j=bill.measured_j,
        duration_s=bill.duration_s,
    )


def _mean_energy(energies: list[ModelledEnergy]) -> ModelledEnergy:
    return ModelledEnergy.total(energies) * (1 / len(energies))


def _with_ratios(arm: ArmSummary, full: ArmSummary | None, slimming: ArmSummary | None) -> ArmSummary:
    return replace(
        arm,
        vs_full=None if full is None else arm.energy.ratio_to(full.energy),
        vs_slimming=None if slimming is None else arm.energy.ratio_to(slimming.energy),
    )
