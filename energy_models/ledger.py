"""The ledger: what each epoch of each phase cost, as append-only rows that survive a killed process.

A file is JSON Lines: ``{"schema": 1}``, then one row a line. A row without its newline was never written: readers skip
it, the next append cuts it off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from energy_models.counts import OpCounts
from energy_models.energy import ModelledEnergy

SCHEMA = 1
Phase = Literal["search", "train", "prune", "retrain", "detect", "average", "eval"]
PHASES: tuple[Phase, ...] = get_args(Phase)
GEMMS = ("output", "grad_input", "grad_weight")
_HEADER = json.dumps({"schema": SCHEMA}).encode() + b"\n"


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
    """The cost of one epoch of one phase, all its steps together.

    ``macs`` is {GEMM: {"8x32": MACs}} by the bits of the two operands; ``bit_ops`` is the sum of MACs x bits x bits;
    ``element_ops`` is {kind: elements}. ``measured_j`` is None where no sensor measured; it never mixes with
    ``modelled``. A metric may be nan (a run that diverged); it stands in the file as the token NaN.
    """

    key: LedgerKey
    samples: int
    macs: dict[str, dict[str, int]]
    bit_ops: int
    element_ops: dict[str, int]
    modelled: ModelledEnergy
    measured_j: float | None
    duration_s: float
    metrics: dict[str, float | str | None]

    def __post_init__(self) -> None:
        for gemm, by_bits in self.macs.items():
            if gemm not in GEMMS or not all(re.fullmatch(r"\d+x\d+", bits) for bits in by_bits):
                raise ValueError(
                    f"ledger row: macs[{gemm!r}] is {by_bits}; expected a GEMM of {GEMMS} and bits as '8x8'"
                )
        for name in ("samples", "bit_ops", "duration_s", "measured_j"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"ledger row: {name} is {value}; it must be finite and not negative")
        for name, metric in self.metrics.items():
            if not (metric is None or isinstance(metric, float | int | str)):
                raise ValueError(f"ledger row: metric {name!r} is a {type(metric).__name__}; make it a number or text")

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
    ) -> LedgerRow:
        """A row from the operations and the modelled energy of the whole epoch (not of one step)."""
        macs: dict[str, dict[str, int]] = {gemm: {} for gemm in GEMMS}
        for (gemm, bits_a, bits_b), number in counts.macs_by_bits.items():
            macs[gemm][f"{bits_a}x{bits_b}"] = number
        return cls(
            key=key,
            samples=samples,
            macs=macs,
            bit_ops=counts.bit_ops,
            element_ops=dict(counts.element_ops_by_kind),
            modelled=modelled,
            measured_j=measured_j,
            duration_s=duration_s,
            metrics=dict(metrics),
        )


_ROW = TypeAdapter(LedgerRow)


class Ledger:
    """The rows of one stage in one file. One process at a time appends to it: ranks have files of their own."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, row: LedgerRow) -> None:
        """Write the row and wait until it is on the disk; creates the file and its folder.

        Raises ValueError when the key is already there (use ``next_attempt``) or the file is no ledger, and OSError
        with the file's name when the row cannot be written; the earlier rows then stay as they were.
        """
        if self.path.exists() and any(old.key == row.key for old in self.rows()):
            raise ValueError(f"{self.path}: already has a row for {row.key}; use attempt={self.next_attempt(row.key)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(self.path) as descriptor:
            _cut_torn_tail(descriptor)
            if os.fstat(descriptor).st_size == 0:
                _write_line(descriptor, _HEADER, self.path)
                _sync_folder(self.path.parent)
            _write_line(descriptor, _encode(row), self.path)

    def rows(self) -> list[LedgerRow]:
        """All complete rows in the order they were written. A ledger that does not exist raises FileNotFoundError."""
        lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()  # what stands after the last newline
        if not lines and not _HEADER.startswith(torn):
            raise ValueError(f"{self.path}: this is not a ledger; give the path of a file that Ledger wrote")
        if lines:
            _check_header(lines[0], self.path)
        return [_decode(line, self.path, number) for number, line in enumerate(lines[1:], start=2)]

    def settled(self) -> list[LedgerRow]:
        """The rows that count: of each (run, stage, phase, epoch, rank) the last complete attempt."""
        return settled(self.rows())

    def next_attempt(self, key: LedgerKey) -> int:
        """The attempt to write next: 0 if there is no row of this work (or no file), else one more than the last."""
        rows = self.rows() if self.path.exists() else []
        return max((row.key.attempt + 1 for row in rows if row.key.work == key.work), default=0)


def settled(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """Of each (run, stage, phase, epoch, rank) the row with the highest attempt, sorted by key.

    A stage that several pipelines share may be given several times; it counts once. Two different rows with one key
    raise ValueError.
    """
    kept: dict[LedgerKey, LedgerRow] = {}
    for row in rows:
        old = kept.setdefault(row.key, row)
        if old != row and _encode(old) != _encode(row):  # a metric of nan differs from itself
            raise ValueError(f"two different ledger rows have the key {row.key}; they must come from different stages")
    last = {key.work: row for key, row in sorted(kept.items(), key=lambda item: item[0])}
    return list(last.values())


# ---- totals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseTotals:
    """Sums over settled rows. ``measured_j`` is None unless every row has a measurement (and there is a row)."""

    samples: int
    macs: dict[str, int]  # {GEMM: MACs}, all three GEMMs always
    bit_ops: int
    modelled: ModelledEnergy
    measured_j: float | None
    duration_s: float


@dataclass(frozen=True)
class Totals(PhaseTotals):
    """The sums over all rows, and the same of each phase that has rows."""

    by_phase: dict[str, PhaseTotals]


def totals(rows: Iterable[LedgerRow]) -> Totals:
    """Sum the settled rows; superseded attempts and repeated rows do not count, and the order does not matter."""
    counted = settled(rows)
    phases = [phase for phase in PHASES if any(row.key.phase == phase for row in counted)]
    by_phase: dict[str, PhaseTotals] = {
        phase: _sum([row for row in counted if row.key.phase == phase]) for phase in phases
    }
    return Totals(**vars(_sum(counted)), by_phase=by_phase)


def _sum(rows: list[LedgerRow]) -> PhaseTotals:
    measured = [row.measured_j for row in rows if row.measured_j is not None]
    return PhaseTotals(
        samples=sum(row.samples for row in rows),
        macs={gemm: sum(sum(row.macs.get(gemm, {}).values()) for row in rows) for gemm in GEMMS},
        bit_ops=sum(row.bit_ops for row in rows),
        modelled=ModelledEnergy.total(row.modelled for row in rows),
        measured_j=math.fsum(measured) if rows and len(measured) == len(rows) else None,
        duration_s=math.fsum(row.duration_s for row in rows),
    )


# ---- the file ----------------------------------------------------------------------------------------------------


def _encode(row: LedgerRow) -> bytes:
    return json.dumps(dataclasses.asdict(row)).encode() + b"\n"


def _decode(line: bytes, path: Path, number: int) -> LedgerRow:
    try:
        return _ROW.validate_json(line, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise ValueError(
            f"{path}:{number}: not a ledger row: {where}: {first['msg']}. Restore the file, or delete the folder "
            f"{path.parent}: its stage then runs again from the start"
        ) from None


def _check_header(line: bytes, path: Path) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    schema = header.get("schema") if isinstance(header, dict) else None
    if type(schema) is not int or schema < 1:
        raise ValueError(f"{path}:1: this is not a ledger; give the path of a file that Ledger wrote")
    if schema > SCHEMA:
        raise ValueError(
            f"{path}:1: the ledger has schema {schema}, and this version reads up to {SCHEMA}: update lowprec-eb"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _cut_torn_tail(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, os.pread(descriptor, size, 0).rfind(b"\n") + 1)


def _write_line(descriptor: int, line: bytes, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes of the row could be written")
        os.fsync(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):  # what stays is a torn tail, which readers skip
            os.ftruncate(descriptor, size)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
