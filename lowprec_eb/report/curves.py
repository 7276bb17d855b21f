"""An arm's run as a curve over its trained epochs, through all the stages it is charged for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_models.ledger import LedgerRow
from lowprec_eb.outcome import Outcome
from lowprec_eb.report.summary import TRAINING_PHASES, Comparison

ACCURACY = "validation_accuracy"
_ORDER_IN_EPOCH = {"search": 1, "train": 1, "retrain": 1, "detect": 2, "average": 3, "eval": 4}


@dataclass(frozen=True, eq=False)
class Curve:
    """Over epochs 0 (untrained) to E: nominal energy so far, and validation accuracy (NaN: none); both (E + 1,).

    What a stage pays before its first epoch (choosing channels, pruning) is spent where the stage begins.
    """

    energy_j: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def epoch_curve(comparison: Comparison, outcome: Outcome) -> Curve:
    """The curve of one arm and seed."""
    energy_j, accuracy = [0.0], [float("nan")]
    for stage in outcome.stages:
        step: tuple[str, int] | None = None
        for row in sorted(comparison.rows[stage], key=_in_time):
            if _trains(row) and step != (row.key.phase, row.key.epoch):
                step = (row.key.phase, row.key.epoch)
                energy_j.append(energy_j[-1])
                accuracy.append(float("nan"))
            energy_j[-1] += row.modelled.nominal_j
            value = row.metrics.get(ACCURACY)
            if isinstance(value, float | int):
                accuracy[-1] = float(value)
    return Curve(np.array(energy_j), np.array(accuracy))


def mean_curve(curves: list[Curve]) -> Curve:
    """Mean over seeds, as far as every seed went: beyond that the mean would jump each time a seed drops out."""
    length = min(len(curve.energy_j) for curve in curves)
    return Curve(
        np.mean([curve.energy_j[:length] for curve in curves], axis=0),
        np.mean([curve.accuracy[:length] for curve in curves], axis=0),
    )


def mask_distances(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mask distance of every pair of epochs: 1 - matches / channels. (epochs, channels) -> (epochs, epochs)."""
    kept = masks.astype(np.float64)
    matches = kept @ kept.T + (1 - kept) @ (1 - kept).T
    return np.asarray(1 - matches / masks.shape[1])


def _trains(row: LedgerRow) -> bool:
    """Whether it is an epoch of training: what it takes to begin a stage may be called a search, but has no samples."""
    return row.key.phase in TRAINING_PHASES and row.samples > 0


def _in_time(row: LedgerRow) -> tuple[int, int, str, int]:
    before = row.key.phase == "prune" or (row.key.phase in TRAINING_PHASES and not _trains(row))
    order = 0 if before else _ORDER_IN_EPOCH[row.key.phase]
    return (row.key.epoch, order, row.key.phase, row.key.rank)
