"""What is kept of finished arms: outcomes, ledgers and counts, without checkpoints, so that it can travel.

RESULTS/runs/NAME/     comparison.json, config.json, provenance.json, tables; `lowprec-eb report` reads it
RESULTS/runs/stages/   a folder for each stage that a finished arm is charged for
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowprec_eb.arms import ArmSettings
from lowprec_eb.checkpoints import write_text
from lowprec_eb.compare import CONFIG_FILE, ArmResult, recorded_config, results_of, so_far
from lowprec_eb.config import Config
from lowprec_eb.outcome import Outcome
from lowprec_eb.published import Table, early_bird_paper
from lowprec_eb.report import Comparison, PaperTable, paper_table, to_csv, to_json, write_paper_table
from lowprec_eb.report.saved import FILE, STAGES, load_comparison, save_comparison
from lowprec_eb.strict_config import digest, to_plain
from lowprec_eb.versions import versions

PROVENANCE, UNFINISHED = "provenance.json", "unfinished.json"
_ANY_ARM = ArmSettings("any", "full")
LEFT_BEHIND = shutil.ignore_patterns("state.safetensors*", "lock")


@dataclass(frozen=True)
class Origin:
    """Of what results are. ``data``: a hash of the images. ``note``: what must be said of them."""

    data: str
    note: str | None
    device: str
    commit: str


class Results:
    """The finished arms of one comparison in a folder. What other settings or data have made is set aside.

    Arms may be of several commits and devices, since the cells take many sittings; each says of which. A stage is of
    one: its name is a hash of the sources too, so none goes on under others.
    """

    def __init__(self, config: Config, root: Path, origin: Origin, published: str | None = None) -> None:
        self._with_data = config
        self.config = replace(config, task=replace(config.task, data_root=None))  # a place is no part of a result
        self.origin, self.published = origin, published
        self.folder, self.stages = root / "runs" / config.name, root / "runs" / STAGES
        self.provenance = self._begin()
        found = (self.folder / FILE).is_file()
        self.results: list[ArmResult] = results_of(load_comparison(self.folder)) if found else []

    @property
    def finished(self) -> set[tuple[int, str]]:
        """Seed and name of every arm that need not be run again; one that diverged is among them."""
        return {(result.outcome.seed, result.outcome.arm) for result in self.results}

    def add(self, result: ArmResult, store: Path) -> None:
        """Keep a finished arm whose stages are in ``store``. A stage that an earlier arm has brought stays as it is:
        on another machine it was trained again for its checkpoint, and is charged once."""
        for key in result.rows:
            self._bring(store / key)
        everything = [*self.results, result]
        if not any(isinstance(of.outcome, Outcome) for of in everything):
            self.results = everything  # nothing to compare yet; read again from the store next time
            return
        comparison = so_far(self._with_data, everything)
        notes = (*([] if self.origin.note is None else [self.origin.note]), *comparison.notes)
        self._record(result)  # first: a comparison must never stand there without saying of what it is
        save_comparison(replace(comparison, notes=notes), self.folder)
        whole = load_comparison(self.folder)
        self.results = results_of(whole)
        self._tables(whole)

    def note_unfinished(self, tree: dict[str, Any] | None) -> None:
        """What is known of an arm that waits for more time; None: none does."""
        path = self.folder / UNFINISHED
        if tree is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, json.dumps(tree, indent=1) + "\n")

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _begin(self) -> dict[str, Any]:
        path = self.folder / PROVENANCE
        identity = {"settings": _settings(self.config), "data": self.origin.data}
        fresh: dict[str, Any] = {"identity": identity, "made": []}
        if not path.is_file():
            return fresh
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["identity"] == identity and _same_arms(self.config, self.folder):
            return known
        aside = _unused(self.folder.with_name(f"{self.folder.name}-{digest(known['identity'])}"))
        self.folder.rename(aside)
        return fresh

    def _record(self, result: ArmResult) -> None:
        self.provenance["published"] = self.published
        of = {"arm": result.outcome.arm, "seed": result.outcome.seed}
        by = {"device": self.origin.device, "commit": self.origin.commit, "versions": versions()}
        self.provenance["made"].append(of | by)
        write_text(self.folder / PROVENANCE, json.dumps(self.provenance, indent=1) + "\n")
        write_text(self.folder / CONFIG_FILE, json.dumps({"config": to_plain(self.config)}, indent=1) + "\n")

    def _bring(self, stage: Path) -> None:
        if (self.stages / stage.name).exists():
            return
        half = self.stages / f".{stage.name}"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(stage, half, ignore=LEFT_BEHIND)
        half.rename(self.stages / stage.name)  # whole or not at all

    def _tables(self, comparison: Comparison) -> None:
        to_csv(comparison, self.folder / "summary.csv")
        to_json(comparison, self.folder / "summary.json")
        write_paper_table(paper_form(comparison, self.published, self.config.ticket.ratio), self.folder)


def finished_runs(config: Config, root: Path) -> set[tuple[int, str]]:
    """Seed and name of the arms in ``root`` that a comparison with these settings need not run again, whatever the
    data; none if what is there has other settings."""
    folder = root / "runs" / config.name
    if not (folder / FILE).is_file() or not (folder / PROVENANCE).is_file():
        return set()
    known = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["identity"]["settings"]
    if known != _settings(replace(config, task=replace(config.task, data_root=None))) or not _same_arms(config, folder):
        return set()
    return {(of.outcome.seed, of.outcome.arm) for of in results_of(load_comparison(folder))}


def _settings(config: Config) -> str:
    """A hash of what all arms have in common."""
    return digest(replace(config, pipelines=(_ANY_ARM,), seeds=(0,), baselines=()))


def _same_arms(config: Config, folder: Path) -> bool:
    """Whether the arms that are recorded in ``folder`` are defined now as they were."""
    recorded = recorded_config(folder)
    now = {arm.name: arm for arm in config.pipelines}
    return recorded is not None and all(now.get(arm.name) == arm for arm in recorded.pipelines)


def paper_form(comparison: Comparison, published: str | None, ratio: float | None) -> PaperTable:
    """The paper's table of a comparison, beside the published one of that name."""
    beside: Table | None = None if published is None else early_bird_paper().table(published)
    return paper_table(comparison, beside, ratio)


def _unused(path: Path) -> Path:
    places: Sequence[Path] = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 1000))]
    return next(place for place in places if not place.exists())
