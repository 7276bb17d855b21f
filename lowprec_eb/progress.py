"""Progress of a comparison: a live bar for each running arm on a terminal, one line an arm elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from energy_models import LedgerRow
from lowprec_eb.outcome import DivergedOutcome, Outcome
from lowprec_eb.stage_data import Stage

Label = tuple[int, str]  # seed and name of an arm


class CompareObserver(Protocol):
    """What running arms report to."""

    def begin(self, arm: Label) -> None: ...

    def epoch(self, arm: Label, stage: Stage, row: LedgerRow, energy_j: float) -> None: ...

    def end(self, arm: Label, outcome: Outcome | DivergedOutcome) -> None: ...


@dataclass(frozen=True)
class ArmObserver:
    """One arm's side of an observer; satisfies ``lowprec_eb.stage.Progress``."""

    observer: CompareObserver
    arm: Label

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        self.observer.epoch(self.arm, stage, row, energy_j)


def epoch_text(stage: Stage, row: LedgerRow, energy_j: float) -> str:
    """Where a stage is after the epoch of ``row``."""
    metrics = row.metrics
    distance = metrics["mask_distance"]
    parts = [
        f"{stage.phase} epoch {row.key.epoch + 1}/{stage.epochs.stop}",
        f"loss {metrics['loss']:.3f}",
        f"validation {100 * float(metrics['validation_accuracy'] or 0):.1f} %",
        *([] if distance is None else [f"mask distance {distance:.3f}"]),
        f"{energy_j:.3g} J modelled",
    ]
    return ", ".join(parts)


class _Bars:
    """Bars on a terminal while it is entered; elsewhere nothing is drawn."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[now]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()


class StageProgress(_Bars):
    """One stage by itself: a bar on a terminal, a line an epoch elsewhere. Satisfies ``lowprec_eb.stage.Progress``."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self.task = self.bar.add_task(name, total=None, now="")

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        now, completed = epoch_text(stage, row, energy_j), row.key.epoch + 1 - stage.epochs.start
        self.bar.update(self.task, completed=completed, total=len(stage.epochs), now=now)
        if not self.console.is_terminal:
            self.console.print(now, highlight=False, markup=False)


class PlanProgress(_Bars):
    """Which arm of a plan is counted; nothing where the output is no terminal."""

    def __init__(self, console: Console, arms: int) -> None:
        super().__init__(console)
        self.arms, self.done = arms, 0
        self.task = self.bar.add_task("counting", total=arms, now="")

    def begin(self, arm: str) -> None:
        """``arm`` is next, and those before it are done."""
        self.bar.update(self.task, completed=self.done, now=f"{self.done + 1} of {self.arms}: {arm}")
        self.done += 1


class CompareProgress(_Bars):
    """Which arm of which seed runs, with its epoch, loss, accuracy, mask distance and modelled energy so far."""

    def __init__(self, console: Console, arms: int) -> None:
        super().__init__(console)
        self.arms, self.done = arms, 0
        self.total = self.bar.add_task("all arms", total=arms, now="")
        self.running: dict[Label, TaskID] = {}

    def begin(self, arm: Label) -> None:
        self.running[arm] = self.bar.add_task(f"seed {arm[0]}, {arm[1]}", total=None, now="")

    def epoch(self, arm: Label, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        completed, epochs = row.key.epoch + 1 - stage.epochs.start, len(stage.epochs)
        now = epoch_text(stage, row, energy_j)
        self.bar.update(self.running[arm], completed=completed, total=epochs, now=now)

    def end(self, arm: Label, outcome: Outcome | DivergedOutcome) -> None:
        self.done += 1
        self.bar.remove_task(self.running.pop(arm))
        self.bar.update(self.total, completed=self.done, now=f"{self.done} of {self.arms}")
        if not self.console.is_terminal:
            ended = "diverged" if isinstance(outcome, DivergedOutcome) else f"test {outcome.test_accuracy:.1%}"
            line = f"[{self.done}/{self.arms}] seed {outcome.seed}, {outcome.arm}: {ended}"
            self.console.print(line, highlight=False, markup=False)
