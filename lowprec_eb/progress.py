"""Progress of a comparison: a live bar on a terminal, one line per arm elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from energy_models import LedgerRow
from lowprec_eb.lab import ArmSettings
from lowprec_eb.outcome import Outcome
from lowprec_eb.stage import Stage


class CompareProgress:
    """Shows which arm of which seed runs, and its epoch, loss, accuracy, mask distance and energy so far."""

    def __init__(self, console: Console, arms: int) -> None:
        self.console, self.done = console, 0
        self.arms = arms
        self.label = ""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[now]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=1, now="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, seed: int, arm: ArmSettings) -> None:
        self.label = f"[{self.done + 1}/{self.arms}] seed {seed}, {arm.name}"
        self.bar.update(self.task, description=self.label, completed=0, total=1, now="")

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        metrics, epochs = row.metrics, stage.epochs
        distance = metrics.get("mask_distance")
        parts = [
            f"{stage.phase} epoch {row.key.epoch + 1}/{epochs.stop}",
            f"loss {metrics['loss']:.3f}",
            f"validation {100 * float(metrics['validation_accuracy'] or 0):.1f} %",
            "" if distance is None else f"mask distance {distance:.3f}",
            f"{energy_j:.3g} J modelled",
        ]
        now = ", ".join(part for part in parts if part)
        self.bar.update(self.task, completed=row.key.epoch + 1 - epochs.start, total=len(epochs), now=now)

    def end(self, outcome: Outcome) -> None:
        self.done += 1
        if not self.console.is_terminal:
            self.console.print(f"{self.label}: test {100 * outcome.test_accuracy:.1f} %", highlight=False)
