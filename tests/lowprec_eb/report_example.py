"""Made-up comparisons: one as large as a real one (14 arms, 3 seeds, 20 epochs, shared stages), and small ones."""

import math
from dataclasses import replace

import numpy as np

from energy_models import LedgerKey, LedgerRow, ModelledEnergy, Range
from energy_models.estimate import CORNERS
from lowprec_eb.outcome import Outcome, TicketSummary
from lowprec_eb.report import Comparison, MaskHistory

EPOCHS, CHANNELS = 20, 160
COST = {"fp32": 1.0, "bf16": 0.45, "bfp8": 0.19, "swalp8": 0.8}
BITS = {"fp32": 32, "bf16": 16, "bfp8": 8, "swalp8": 8}
DENSE_MACS = 1_000_000

# name, pipeline, search precision, precision, mean accuracy
ARMS = (
    ("full fp32", "full", None, "fp32", 0.985),
    ("full bf16", "full", None, "bf16", 0.984),
    ("full 8 bit", "full", None, "bfp8", 0.981),
    ("slimming fp32", "network_slimming", None, "fp32", 0.986),
    ("slimming 8 bit", "network_slimming", None, "bfp8", 0.982),
    ("one-shot ticket", "one_shot_ticket", None, "fp32", 0.983),
    ("early-bird FF", "early_bird", "fp32", "fp32", 0.983),
    ("early-bird LF", "early_bird", "bfp8", "fp32", 0.982),
    ("early-bird LL", "early_bird", "bfp8", "bfp8", 0.979),
    ("early-bird LL re-init", "early_bird", "bfp8", "bfp8", 0.972),
    ("early-bird FF re-init", "early_bird", "fp32", "fp32", 0.978),
    ("random fp32", "random_ticket", "fp32", "fp32", 0.974),
    ("random 8 bit", "random_ticket", "bfp8", "bfp8", 0.969),
    ("early-bird LL swalp8", "early_bird", "swalp8", "swalp8", 0.977),
)


def energy(nominal_j: float, bits: int = 32) -> ModelledEnergy:
    """Compute, memory, other; the fewer bits the larger memory's share, and memory is less certain than compute."""
    memory = 0.3 + 0.3 * (1 - bits / 32)
    shares = ((0.95 - memory, 0.8, 1.2), (memory, 0.5, 2.2), (0.05, 0.7, 1.5))
    parts = [Range(low * share * nominal_j, share * nominal_j, high * share * nominal_j) for share, low, high in shares]
    traffic = Range(*(1e7 * nominal_j * factor for factor in (1, 2, 3)))
    arithmetic = parts[0].nominal + parts[2].nominal
    corners = tuple(
        arithmetic + parts[1].nominal * (0.5 + corner * 11 / 6 / (CORNERS - 1)) for corner in range(CORNERS)
    )
    components = dict(zip(("compute", "dram", "other"), parts, strict=True))
    return ModelledEnergy(components, {"dram": traffic}, corners)


def row(
    stage: str,
    phase: str,
    epoch: int,
    nominal_j: float,
    bits: int = 32,
    accuracy: float | None = None,
    measured_j: float | None = None,
) -> LedgerRow:
    macs = round(nominal_j * 1e10)
    by_gemm = {
        "output": {f"{bits}x{bits}": macs},
        "grad_input": {f"{bits}x{bits}": macs},
        "grad_weight": {"32x32": macs},
    }
    return LedgerRow(
        key=LedgerKey("run", stage, phase, epoch),  # type: ignore[arg-type]
        samples=1078,
        macs=by_gemm,
        element_ops={"relu": 10},
        modelled=energy(nominal_j, bits),
        measured_j=measured_j,
        duration_s=0.5,
        metrics={} if accuracy is None else {"validation_accuracy": accuracy, "loss": 1 - accuracy},
    )


def stage_rows(
    stage: str, phase: str, precision: str, epochs: range, size: float, top: float, noise: np.random.Generator
) -> tuple[LedgerRow, ...]:
    """Sorted by key, as a ledger gives them: by phase first, not by time."""
    joules = 0.011 * COST[precision] * size
    rows = []
    for epoch in epochs:
        accuracy = top - 0.7 * math.exp(-(epoch + 1) / 2.5) + 0.006 * noise.standard_normal()
        rows.append(row(stage, phase, epoch, joules, BITS[precision], min(accuracy, 1.0)))
        rows.append(row(stage, "eval", epoch, 0.04 * joules, BITS[precision]))
        if phase == "search":
            rows.append(row(stage, "detect", epoch, 1e-6))
    if phase == "retrain":
        rows.append(row(stage, "prune", epochs.start, 2e-6))
    rows.append(row(stage, "eval", epochs.stop, 0.05 * joules, BITS[precision]))
    return tuple(sorted(rows, key=lambda r: r.key))


def outcome(
    arm: str,
    pipeline: str,
    search: str | None,
    precision: str,
    seed: int,
    stages: tuple[str, ...],
    accuracy: float,
    ticket: TicketSummary | None,
) -> Outcome:
    pruned = pipeline != "full"
    return Outcome(
        arm=arm,
        pipeline=pipeline,
        seed=seed,
        search_precision=search,
        precision=precision,
        weights="reinit" if "re-init" in arm else "inherit",
        stages=stages,
        test_accuracy=accuracy,
        validation_accuracy=accuracy + 0.002,
        best_epoch=17,
        ticket=ticket,
        channels_kept=CHANNELS // 2 if pruned else CHANNELS,
        channels_total=CHANNELS,
        forward_macs=round((0.34 + 0.02 * seed) * DENSE_MACS) if pruned else DENSE_MACS,
        dense_forward_macs=DENSE_MACS,
    )


def example_comparison(seeds: tuple[int, ...] = (0, 1, 2)) -> Comparison:
    outcomes, rows = [], {}
    for seed in seeds:
        noise = np.random.default_rng(seed)
        for arm, pipeline, search, precision, mean in ARMS:
            stages, ticket = _stages(rows, arm, pipeline, search, precision, seed, mean, noise)
            accuracy = round(450 * (mean + 0.003 * noise.standard_normal())) / 450
            outcomes.append(outcome(arm, pipeline, search, precision, seed, stages, accuracy, ticket))
    return Comparison(
        name="digits",
        profile="45nm: a 45 nm accelerator with 64 KB of buffer and DRAM",
        outcomes=tuple(outcomes),
        rows=rows,
        mask_histories=tuple(_history(p, s) for s in seeds for p in ("fp32", "bfp8")),
        splits={"train": 1078, "validation": 269, "test": 450},
        notes=("bfp8: the first layer's image and the last layer are 8 bits too.",),
    )


def built(*arms: tuple[str, str, str, str, float, tuple[float, ...]], **changes) -> Comparison:
    """Arms (name, pipeline, search precision, precision, nominal J, test accuracy of each seed); a stage a seed."""
    outcomes, rows = [], {}
    for name, pipeline, search, precision, joules, accuracies in arms:
        for seed, accuracy in enumerate(accuracies):
            stage = f"{name}-{seed}"
            bits = 8 if precision == "bfp8" else 32
            rows[stage] = (row(stage, "train", 0, joules, bits),)
            outcomes.append(outcome(name, pipeline, search, precision, seed, (stage,), accuracy, None))
    comparison = Comparison("built", "chip: a chip.", tuple(outcomes), rows, (), {"train": 800, "test": 200}, ())
    return replace(comparison, **changes)


def _stages(rows, arm, pipeline, search, precision, seed, mean, noise):
    """The stages of an arm (new ones are added to ``rows``) and its ticket."""
    retrain, ticket = range(EPOCHS), None
    if search is not None:
        drawn = {"fp32": 6, "bfp8": 7, "swalp8": 8}[search] + seed
        late = search == "bfp8" and seed == 2
        ticket = TicketSummary(10 if late else drawn, not late, 0.13 if late else 0.08)
        first = ("search", search, range(ticket.epoch))
        retrain = range(0 if "re-init" in arm else ticket.epoch, EPOCHS)
    else:
        first = ("train", precision, range(EPOCHS))
        ticket = None if pipeline == "full" else TicketSummary(EPOCHS, True, None)
    stages = [f"{'plain' if pipeline == 'full' else 'penalty'}-{first[0]}-{first[1]}-{seed}"]
    rows.setdefault(stages[0], stage_rows(stages[0], *first, 1.0, mean, noise))
    if pipeline != "full":
        stages.append(f"retrain-{arm}-{seed}")
        rows[stages[1]] = stage_rows(stages[1], "retrain", precision, retrain, 0.36, mean, noise)
    return tuple(stages), ticket


def _history(precision: str, seed: int) -> MaskHistory:
    noise = np.random.default_rng([seed, precision == "fp32"])
    base = noise.standard_normal(CHANNELS)
    masks = []
    for epoch in range(EPOCHS):
        scores = base + (0.05 + (1.2 if precision == "fp32" else 1.8) * math.exp(-epoch / 3)) * noise.standard_normal(
            CHANNELS
        )
        masks.append(scores > np.median(scores))
    return MaskHistory(precision, seed, np.stack(masks), ticket_epoch=6 + seed if precision == "fp32" else 7 + seed)
