"""The paper's cells, one arm after the other, as far as the time goes: `python benchmarks/gpu_cells.py GROUP`.

What is finished stands in RESULTS at once and is not run again, on this machine or on another that is given RESULTS. An
unfinished arm goes on where the checkpoints in WORK end; without them it begins anew. Exit status 75: call again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu_data import Cifar10, find_cifar10
from gpu_pieces import UNFINISHED_STATUS
from gpu_results import Origin, Results, finished_runs

from energy_models import LedgerRow, settled
from energy_models.ledger import Ledger
from lowprec_eb import strict_config
from lowprec_eb.arms import ArmSettings
from lowprec_eb.compare import load_task, run_arm
from lowprec_eb.config import Config, load_config
from lowprec_eb.outcome import DivergedOutcome, Outcome
from lowprec_eb.progress import Label, epoch_text
from lowprec_eb.report.saved import STAGES
from lowprec_eb.stage_data import LEDGER_FILE, Stage
from lowprec_eb.terminal import explained, new_console

_LINES_A_STAGE = 16
_FIRST = 2.0  # times the seconds of training: the first epoch's, with its end
_RESERVE = 1.3  # times the last epoch's seconds: less time than that is left for no epoch


@dataclass(frozen=True)
class Group:
    """Arms that run together, all with the first seed before the next.

    config: YAML file of the comparison. arms: by name, in the order in which they run. published: name of the table
    that the results stand beside. more: arms that the file lacks. settings: overrides of the file, ``key=value``.
    study: YAML file of a study of detectors that follows.
    """

    name: str
    config: str
    arms: tuple[str, ...]
    published: str | None = None
    more: tuple[ArmSettings, ...] = ()
    settings: tuple[str, ...] = ()
    study: str | None = None


@dataclass(frozen=True)
class Cells:
    """What runs, in this order. Raises ValueError where two groups of one file differ in its settings."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"groups: two have one name among {', '.join(names)}")
        for group in self.groups:
            if any(of.config == group.config and of.settings != group.settings for of in self.groups):
                raise ValueError(f"groups.{group.name}.settings: all groups of {group.config} must have the same")

    def group(self, name: str) -> Group:
        """By name. Raises ValueError: there is none."""
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise ValueError(f"no group is named {name!r}; there are {', '.join(group.name for group in self.groups)}")
        return found

    def config_of(self, group: Group, overrides: Sequence[str]) -> Config:
        """The comparison that a group is a part of, with the arms of all its groups."""
        loaded = load_config(group.config, [*group.settings, *overrides])
        more = [arm for of in self.groups if of.config == group.config for arm in of.more]
        config = replace(loaded, pipelines=(*loaded.pipelines, *more))
        known = [arm.name for arm in config.pipelines]
        if strangers := [name for name in group.arms if name not in known]:
            raise ValueError(
                f"group {group.name}: {group.config} has no arm {strangers[0]!r}; it has {', '.join(known)}"
            )
        return config


def load_cells(path: Path) -> Cells:
    """Read a YAML file. Raises ConfigError naming the key."""
    return strict_config.load(path, Cells)


class OutOfTime(Exception):
    """The next epoch would not end in time; the last one is in its checkpoint."""


class Clock:
    """Says what runs, and ends it between two epochs. Satisfies ``CompareObserver``."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.began = deadline, time.monotonic()
        self.stage: Stage | None = None

    def begin(self, arm: Label) -> None:
        self.began, self.stage = time.monotonic(), None
        self._say(arm, "begins")

    def epoch(self, arm: Label, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        now, first, self.stage = time.monotonic(), stage != self.stage, stage
        # What comes before the first epoch, reading, compiling and counting, does not come again.
        took, self.began = _FIRST * row.duration_s if first else now - self.began, now
        late = now + _RESERVE * took > self.deadline
        if late or (row.key.epoch + 1) % max(1, len(stage.epochs) // _LINES_A_STAGE) == 0:
            self._say(arm, f"{epoch_text(stage, row, energy_j)}, {took:.2f} s")
        if late:
            raise OutOfTime

    def end(self, arm: Label, outcome: Outcome | DivergedOutcome) -> None:
        self._say(arm, "diverged" if isinstance(outcome, DivergedOutcome) else f"test {outcome.test_accuracy:.2%}")

    def _say(self, arm: Label, text: str) -> None:
        typer.echo(f"seed {arm[0]}, {arm[1]}: {text}")


def run_group(config: Config, group: Group, results: Results, work: Path, clock: Clock) -> bool:
    """Run what is not finished, with checkpoints in ``work/stages``; False: the time is over."""
    store = work / STAGES
    arms = {arm.name: arm for arm in config.pipelines}
    for seed in config.seeds:
        for name in group.arms:
            if (seed, name) in results.finished:
                continue
            try:
                results.add(run_arm(config, work, seed, arms[name], clock), store)
            except (OutOfTime, KeyboardInterrupt):
                results.note_unfinished(_so_far(seed, name, clock.stage, store))
                return False
    results.note_unfinished(None)
    return True


def is_whole(config: Config, group: Group, results: Path) -> bool:
    """Whether every arm of a group is among the results of these settings."""
    return {(seed, arm) for seed in config.seeds for arm in group.arms} <= finished_runs(config, results)


def _so_far(seed: int, arm: str, stage: Stage | None, store: Path) -> dict[str, Any]:
    """The epochs of the stage that was interrupted: more of it is known than that it is not finished."""
    tree: dict[str, Any] = {"seed": seed, "arm": arm}
    if stage is None:
        return tree
    rows = [row for row in settled(Ledger(store / stage.key / LEDGER_FILE).rows()) if row.key.phase == stage.phase]
    epochs = [
        {
            "epoch": row.key.epoch,
            **{name: row.metrics.get(name) for name in ("loss", "validation_accuracy", "mask_distance")},
            "modelled_j": row.modelled.nominal_j,
            "measured_j": row.measured_j,
            "duration_s": row.duration_s,
        }
        for row in rows
    ]
    return tree | {"phase": stage.phase, "last_epoch": stage.epochs.stop - 1, "epochs": epochs}


def config_on(cells: Cells, group: Group, data: Cifar10, device: str | None) -> Config:
    """The comparison of a group with these data, on ``device`` (None: its own)."""
    chosen = [] if device is None else [f"device={device}"]
    return cells.config_of(group, [*data.overrides, *chosen, "workers=1"])  # a meter sees all that the GPU does


def main(
    group: Annotated[str, typer.Argument(help="Name of a group in --cells.")],
    cells: Annotated[Path, typer.Option(help="YAML file with the groups.")] = Path("configs/gpu/cells.yaml"),
    data: Annotated[Path, typer.Option(help="Folder with CIFAR-10, or with cifar-10-jpeg.tar.gz.")] = Path(),
    work: Annotated[Path, typer.Option(help="Folder for checkpoints.")] = Path("build/on_gpu"),
    results: Annotated[Path, typer.Option(help="Folder for what is finished.")] = Path("build/on_gpu/results"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; left out, that of the comparison.")] = None,
    seconds: Annotated[float, typer.Option(help="Begin no epoch that would end later.")] = 540.0,
    commit: Annotated[str, typer.Option(help="For the record.")] = "unknown",
) -> None:
    """Run GROUP as far as the time goes."""
    clock = Clock(time.monotonic() + seconds)
    with explained(new_console()):
        known, found = load_cells(cells), find_cifar10(data)
        chosen = known.group(group)
        config = config_on(known, chosen, found, device)
        task = load_task(config.task, config.device)
        typer.echo(f"{found.root}: {task.samples}" + (f". {found.note}" if found.note else ""))
        name = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
        kept = Results(config, results, Origin(task.fingerprint, found.note, name, commit), chosen.published)
        done = run_group(config, chosen, kept, work, clock)
    if not done:
        typer.echo("out of time; call again to go on")
        raise typer.Exit(UNFINISHED_STATUS)


if __name__ == "__main__":
    typer.run(main)
