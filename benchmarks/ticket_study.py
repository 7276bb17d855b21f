"""When does each detector fire, and on what mask? One recorded dense run for each precision and seed, and every
detector replayed over it: `python benchmarks/ticket_study.py configs/studies/digits.yaml --out DIR`.

Run it again after an interruption: it goes on where it was, and what has been recorded is not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from ticket_study_report import Study, csv_text, docs, tables

from energy_models import LedgerRow
from lowprec_eb import strict_config
from lowprec_eb.checkpoints import write_text
from lowprec_eb.detector_study import StudySettings, load_run, record
from lowprec_eb.report.figures import save_picture
from lowprec_eb.report.study_pictures import firing_times, mask_matrices, settling_curves, threshold_curves
from lowprec_eb.stage_data import Stage
from lowprec_eb.terminal import explained, new_console
from lowprec_eb.tickets.verdicts import Variant, epoch_variants

_THRESHOLDS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


class _Bar:
    """Progress of one dense run; satisfies ``lowprec_eb.stage.Progress``. One line every tenth of it in a file."""

    def __init__(self, bar: Progress, task: TaskID, name: str) -> None:
        self.bar, self.task, self.name = bar, task, name

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        done, accuracy = row.key.epoch + 1, 100 * float(row.metrics["validation_accuracy"] or 0)
        now = f"epoch {done}/{stage.epochs.stop}, loss {row.metrics['loss']:.3f}, validation {accuracy:.1f} %"
        self.bar.update(self.task, completed=done, total=stage.epochs.stop, now=now)
        if not self.bar.console.is_terminal and done % max(1, stage.epochs.stop // 10) == 0:
            self.bar.console.print(f"{self.name}: {now}", highlight=False)


def _record_all(settings: StudySettings, out: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        for seed in settings.seeds:
            for precision in settings.recorded:
                name = f"{precision}, seed {seed}"
                record(settings, precision, seed, out, _Bar(bar, bar.add_task(name, total=None, now=""), name))


def _pictures(study: Study) -> Iterator[tuple[str, Any]]:
    settings, histories = study.settings, study.shown_histories
    title, ratios, drops = settings.shown, settings.ratios, study.drops
    yield "masks.png", mask_matrices(histories, ratios, title, Variant("window"))
    yield "settling.png", settling_curves(histories, ratios, title, drops)
    yield "firing.png", firing_times(study.by_precision(), study.epochs, title, drops)
    swept = [variant for variant in epoch_variants() if variant.rule == "window"]
    yield "thresholds.png", threshold_curves(histories, swept, _THRESHOLDS, ratios, title)


def _write(study: Study, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in _pictures(study):
        save_picture(figure, folder / name)
    write_text(folder / "verdicts.csv", csv_text(study))
    write_text(folder / "study.json", json.dumps(study.tree(), indent=1) + "\n")
    write_text(folder / "study.md", docs(study))


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    out: Annotated[Path, typer.Option(help="Folder for stages, recorded scores and results.")] = Path("runs"),
    data_root: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Record the dense runs of CONFIG, replay every detector, write tables and pictures into OUT/study-NAME."""
    console = new_console()
    flags = {"task.data_root": data_root, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    with explained(console):
        study = strict_config.load(config, StudySettings, [*overrides, *(settings or [])])
        _record_all(study, out, console)
        runs = [load_run(study, precision, seed, out) for precision in study.recorded for seed in study.seeds]
        found = Study(study, runs)
        folder = out / f"study-{study.name}"
        _write(found, folder)
        for table in tables(found):
            console.print(table)
        console.print(f"written: {folder}/study.md, study.json, verdicts.csv and pictures", highlight=False)


if __name__ == "__main__":
    typer.run(main)
