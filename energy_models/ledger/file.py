"""The file of a ledger: JSON Lines, one row a line.

A row without its newline was never written: readers leave it out and say so, the next append cuts it off.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from energy_models.files import sync
from energy_models.ledger.columns import SCHEMA, Content, decode, encode, to_columns
from energy_models.ledger.rows import LedgerKey, LedgerRow
from energy_models.ledger.sums import same, settled

_PATIENCE_S = 10.0  # for another process that appends; its write takes milliseconds
_Signature = tuple[int, int, int, int]  # device, inode, size, time of the last change


class Ledger:
    """Rows in one file. Processes may append to one file in turns; ranks had better have files of their own, for
    ``merge``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        # What is in the file as it was at `_seen`, so that appending need not read it all again.
        self._attempts: dict[tuple[str, str, str, int, int], set[int]] = {}
        self._seen: _Signature | None = None

    def append(self, row: LedgerRow) -> None:
        """Write the row and wait until it is on the disk; creates the file and its folder.

        Raises ValueError when the key is already there (use ``next_attempt``) or the file is no ledger of this schema,
        and OSError with the file's name when the row cannot be written or another process keeps the file; the earlier
        rows then stay as they were.
        """
        self.extend([row])

    def extend(self, rows: Iterable[LedgerRow]) -> None:
        """Write several rows at once: all of them or none. Raises as ``append``."""
        rows = list(rows)
        lines = b"".join(map(encode, rows))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as descriptor:
            self._look(to_append=True)
            self._check_new(rows)
            _cut_torn_tail(descriptor, self.path)
            is_new = os.fstat(descriptor).st_size == 0
            _write(descriptor, lines, self.path)
            if is_new:
                sync(self.path.parent)
            self._remember(rows, _signature(os.fstat(descriptor)))

    def rows(self) -> list[LedgerRow]:
        """All complete rows in the order they were written. A ledger that does not exist raises FileNotFoundError.

        Warns when the last line is incomplete; it is left out.
        """
        content = self._read()
        if content.torn_bytes:
            warnings.warn(
                f"{self.path}: the last {content.torn_bytes} bytes are a row that was cut short by a kill or a full "
                "disk (or is being written); it is left out, the rows before it are whole",
                RuntimeWarning,
                stacklevel=2,
            )
        return content.rows

    def settled(self) -> list[LedgerRow]:
        """The rows that count: of each (run, stage, phase, epoch, rank) the last complete attempt."""
        return settled(self.rows())

    def next_attempt(self, key: LedgerKey) -> int:
        """The attempt to write next: 0 if there is no row of this work (or no file), else one more than the last."""
        self._look()
        return max(self._attempts.get(key.work, ()), default=-1) + 1

    def frame(self) -> Any:
        """All complete rows as a pandas DataFrame, a column for each of ``docs/ledger.md``; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Ledger.frame needs pandas: pip install pandas") from error
        return pandas.DataFrame([to_columns(row) for row in self.rows()])

    def _read(self) -> Content:
        return decode(self.path.read_bytes(), self.path)

    def _look(self, to_append: bool = False) -> None:
        """Learn what is in the file, if it is not as this object left it."""
        if not self.path.exists():
            self._attempts, self._seen = {}, None
            return
        now = _signature(self.path.stat())
        if now == self._seen:
            return
        content = self._read()
        if to_append and content.schema != SCHEMA:
            raise ValueError(
                f"{self.path}: this ledger has the old schema {content.schema}, which is read but not written; copy it "
                f"with `lowprec-eb ledger merge {self.path} --out NEW` and append to the copy"
            )
        self._attempts = {}
        self._remember(content.rows, now)

    def _remember(self, rows: Iterable[LedgerRow], seen: _Signature) -> None:
        for row in rows:
            self._attempts.setdefault(row.key.work, set()).add(row.key.attempt)
        self._seen = seen

    def _check_new(self, rows: Sequence[LedgerRow]) -> None:
        given: set[LedgerKey] = set()
        for row in rows:
            if row.key in given:
                raise ValueError(f"{self.path}: two of the rows to write have the key {row.key}; write one of them")
            if row.key.attempt in self._attempts.get(row.key.work, ()):
                raise ValueError(
                    f"{self.path}: already has a row for {row.key}; use attempt={self.next_attempt(row.key)}"
                )
            given.add(row.key)


def merge(ledgers: Iterable[Ledger | str | Path]) -> list[LedgerRow]:
    """The rows of several ledgers (ledger files of ranks, stages or machines), sorted by key; a row that several of
    them have stands once.

    Raises:
        ValueError: two of them have different rows with one key; it names both files, the key and what differs.
    """
    found: dict[LedgerKey, tuple[LedgerRow, Path]] = {}
    for given in ledgers:
        ledger = given if isinstance(given, Ledger) else Ledger(given)
        for row in ledger.rows():
            first, path = found.setdefault(row.key, (row, ledger.path))
            if not same(first, row):
                raise ValueError(
                    f"{path} and {ledger.path} have different rows for {row.key}: {_conflict(first, row)}. Both claim "
                    "to be the same work: leave one file out, or give one of the runs another name"
                )
    return [found[key][0] for key in sorted(found)]


def _conflict(a: LedgerRow, b: LedgerRow) -> str:
    of_a, of_b = to_columns(a), to_columns(b)
    names = [name for name in {**of_a, **of_b} if of_a.get(name) != of_b.get(name)]
    return ", ".join(f"{name} is {of_a.get(name)} and {of_b.get(name)}" for name in names[:3])


# ---- the file ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, open to append to it, with nobody else appending; the lock goes when its process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(descriptor, path):
            if time.monotonic() > deadline:
                told = f"another process has kept it locked for {_PATIENCE_S:g} s; let it finish, or end it"
                raise OSError(errno.EAGAIN, told, str(path))
            time.sleep(0.01)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        told = f"{error.strerror}: this file system cannot lock files; keep the ledger on another"
        raise OSError(error.errno, told, str(path)) from error
    return True


def _signature(stat: os.stat_result) -> _Signature:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _cut_torn_tail(descriptor: int, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, whole)
    warnings.warn(
        f"{path}: the last {size - whole} bytes were a row that had been cut short by a kill or a full disk, and are "
        "removed; all rows before it are there, and what that row paid for is to be written again",
        RuntimeWarning,
        stacklevel=4,
    )


def _write(descriptor: int, lines: bytes, path: Path) -> None:
    size, rest = os.fstat(descriptor).st_size, memoryview(lines)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]  # a short write is followed by one that fails and says why
        os.fsync(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):  # what stays is a torn tail, which readers leave out
            os.ftruncate(descriptor, size)
        told = f"{error.strerror}: the row could not be written, the rows before it are as they were"
        raise OSError(error.errno, told, str(path)) from error
