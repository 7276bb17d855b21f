"""A finished comparison on the disk, to be reported again without its models, data or sources.

``comparison.json`` in the run's folder has all but the ledger rows, which stay in the ledgers of the stages; ``stages``
lies beside the run's folder.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from energy_models import CountStore, HardwareProfile, Ledger, LedgerRow, reprice
from energy_models.footprint import Footprint
from lowprec_eb.checkpoints import write_text
from lowprec_eb.outcome import DivergedOutcome, Outcome
from lowprec_eb.report.summary import Comparison, MaskHistory
from lowprec_eb.stage_data import COUNTS_FOLDER, LEDGER_FILE

SCHEMA = 1
FILE = "comparison.json"
STAGES = "stages"


@dataclass(frozen=True)
class _SavedMasks:
    label: str
    seed: int
    shape: tuple[int, int]
    masks: str  # bits, row by row, deflated, in base64
    ticket_epoch: int | None


@dataclass(frozen=True)
class _Saved:
    schema: int
    name: str
    profile: str
    margin: float
    splits: dict[str, int]
    notes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    diverged: tuple[DivergedOutcome, ...]
    mask_histories: tuple[_SavedMasks, ...]
    footprint: Footprint | None
    confidence: float = 0.95  # files of older versions do not have these
    baselines: tuple[str, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()


def save_comparison(comparison: Comparison, run: Path) -> Path:
    """Write ``comparison.json`` into the folder of the run; returns its path."""
    shared = [field.name for field in dataclasses.fields(_Saved) if field.name not in ("schema", "mask_histories")]
    saved = _Saved(
        schema=SCHEMA,
        mask_histories=tuple(map(_packed, comparison.mask_histories)),
        **{name: getattr(comparison, name) for name in shared},
    )
    write_text(run / FILE, json.dumps(dataclasses.asdict(saved), indent=1) + "\n")
    return run / FILE


def load_comparison(run: Path, profile: HardwareProfile | None = None) -> Comparison:
    """The comparison of a finished run, with the energies of its ledgers, or priced afterwards under ``profile``.

    Raises ValueError with the file when the run is not finished, is of another version, or lacks a stage, and when a
    row holds no counts to price.
    """
    saved = _read(run)
    stages = {key: None for outcome in saved.outcomes for key in outcome.stages}
    stages |= {key: None for outcome in saved.diverged for key in outcome.stages}
    rows = {key: _rows(run.parent / STAGES / key, profile) for key in stages}
    shared = {name: value for name, value in vars(saved).items() if name not in ("schema", "mask_histories")}
    histories = tuple(map(_unpacked, saved.mask_histories))
    comparison = Comparison(rows=rows, mask_histories=histories, **shared)
    return comparison if profile is None else _under(comparison, profile)


def _under(comparison: Comparison, profile: HardwareProfile) -> Comparison:
    afterwards = (
        f"Priced afterwards, from the stored counts, under the profile {profile.name}; nothing was trained again. The "
        f"run itself was priced under {comparison.profile.rstrip('.')}."
    )
    told = f"{profile.name}: {profile.description}"
    return dataclasses.replace(comparison, profile=told, notes=(afterwards, *comparison.notes))


def _read(run: Path) -> _Saved:
    path = run / FILE
    if not path.is_file():
        if not run.is_dir():
            raise ValueError(f"{run}: there is no such folder; give that of a run, such as runs/digits-0123456789")
        raise ValueError(
            f"{run}: holds no {FILE}, so the run is not finished, or was made by a version that kept neither that nor "
            "the counts of its stages; run `lowprec-eb compare` with its settings"
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        schema = tree.get("schema") if isinstance(tree, dict) else None
        if type(schema) is int and schema > SCHEMA:
            raise ValueError(
                f"{path}: has schema {schema}, and this version reads up to {SCHEMA}: update lowprec-eb"
            ) from None
        return TypeAdapter(_Saved).validate_json(json.dumps(tree), strict=True, extra="forbid")
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not a saved comparison ({told}); run `lowprec-eb compare` with its settings again"
        ) from error


def _rows(stage: Path, profile: HardwareProfile | None) -> tuple[LedgerRow, ...]:
    ledger = Ledger(stage / LEDGER_FILE)
    if not ledger.path.is_file():
        raise ValueError(f"{ledger.path}: the ledger of a stage of this run is missing; restore it from a copy")
    rows = ledger.settled()
    if profile is None:
        return tuple(rows)
    try:
        return tuple(reprice(rows, CountStore(stage / COUNTS_FOLDER), profile))
    except ValueError as error:
        raise ValueError(f"{ledger.path}: {error}") from error


def _packed(history: MaskHistory) -> _SavedMasks:
    bits = base64.b64encode(zlib.compress(np.packbits(history.masks).tobytes())).decode()
    epochs, channels = history.masks.shape
    return _SavedMasks(history.label, history.seed, (epochs, channels), bits, history.ticket_epoch)


def _unpacked(saved: _SavedMasks) -> MaskHistory:
    packed = np.frombuffer(zlib.decompress(base64.b64decode(saved.masks)), dtype=np.uint8)
    epochs, channels = saved.shape
    masks: NDArray[np.bool_] = np.unpackbits(packed, count=epochs * channels).reshape(epochs, channels).astype(np.bool_)
    return MaskHistory(saved.label, saved.seed, masks, saved.ticket_epoch)
