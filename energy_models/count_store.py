"""Counts by key in a folder, so that the rows of a ledger say what they pay for; and rows under another profile."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from energy_models.counts import OpCounts
from energy_models.energy import ModelledEnergy
from energy_models.estimate import estimate
from energy_models.files import replacing
from energy_models.ledger import LedgerRow
from energy_models.profiles import HardwareProfile
from energy_models.serialize import from_plain, to_plain

_KEY_LENGTH = 16


class CountStore:
    """Counts in files ``<key>.json.gz``; the key is a hash of the content, so each content stands once and a damaged
    file is noticed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._known: dict[str, OpCounts] = {}
        self._keys: dict[int, tuple[OpCounts, str]] = {}  # holds on to the counts: no other object takes over an id

    def put(self, counts: OpCounts) -> str:
        """Store the counts if they are not there, safe against a kill, and return their key."""
        if id(counts) not in self._keys:
            content = json.dumps(to_plain(counts), separators=(",", ":")).encode()
            key = hashlib.sha256(content).hexdigest()[:_KEY_LENGTH]
            if not self._path(key).exists():
                with replacing(self._path(key)) as temporary:
                    temporary.write_bytes(gzip.compress(content, mtime=0))
            self._keys[id(counts)] = (counts, key)
            self._known.setdefault(key, counts)
        return self._keys[id(counts)][1]

    def put_all(self, parts: Iterable[tuple[OpCounts, int]]) -> dict[str, int]:
        """Store several counts; returns key -> how often it was done, as ``LedgerRow.counts`` has it."""
        kept: dict[str, int] = {}
        for counts, times in parts:
            key = self.put(counts)
            kept[key] = kept.get(key, 0) + times
        return kept

    def get(self, key: str) -> OpCounts:
        """The counts of a key. Raises ValueError naming the file when it is missing or damaged."""
        if key not in self._known:
            path = self._path(key)
            try:
                content = gzip.decompress(path.read_bytes())
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: the counts of ledger rows cannot be read ({error}); {_REMEDY}") from error
            if hashlib.sha256(content).hexdigest()[:_KEY_LENGTH] != key:
                raise ValueError(f"{path}: the content is not what was stored; {_REMEDY}")
            self._known[key] = from_plain(json.loads(content))
        return self._known[key]

    def total(self, kept: Mapping[str, int]) -> OpCounts:
        """The sum of what ``put_all`` stored."""
        return sum((self.get(key) * times for key, times in kept.items()), OpCounts())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json.gz"


_REMEDY = "restore the file from a copy, or run the stage again"


def reprice(rows: Iterable[LedgerRow], store: CountStore, profile: HardwareProfile) -> list[LedgerRow]:
    """The rows with their modelled energy under ``profile``; all else, measured energy too, stays.

    Under the profile that a row was written with this gives the row's own energy, to the last bit. Raises ValueError
    for a row that refers to no counts.
    """
    energies: dict[tuple[tuple[str, int], ...], ModelledEnergy] = {}
    repriced = []
    for row in rows:
        if row.counts is None:
            raise ValueError(
                f"the ledger row of stage {row.key.stage!r}, phase {row.key.phase!r}, epoch {row.key.epoch} holds no "
                "counts (it was written by a version that kept none), so no other profile can price it: run it again"
            )
        parts = tuple(row.counts.items())
        if parts not in energies:
            energies[parts] = estimate(store.total(row.counts), profile)
        repriced.append(replace(row, modelled=energies[parts], profile=profile.name))
    return repriced
