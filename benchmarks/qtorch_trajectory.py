"""Whether 8-bit block floating point trains as qtorch's does: `python benchmarks/qtorch_trajectory.py` trains a VGG for
digits with qtorch's `lower` and `OptimLP`, and with the recipe `swalp8`, which has the same places, over several seeds.

The two round with different random numbers, so only distributions can agree: the loss after every epoch and the test
accuracy, as mean and standard deviation over seeds. Evaluation differs by design: qtorch rounds stochastically there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from step_contenders import lowered_by_qtorch
from torch import nn

import lowprec_eb as lp
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.train import Callback, EpochReport, TrainSettings, train

MODEL = VGGSettings(widths=(8, "M", 32, 32, "M", 64))  # configs/digits.yaml
DIGITS = TaskSettings(data="digits", batch_size=64)


class _Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_epoch(self, report: EpochReport) -> bool:
        self.losses.append(report.loss)
        return False


def _lowered_by_lp(model: nn.Module, optimizer: torch.optim.Optimizer) -> lp.LowPrecisionOptimizer:
    lp.lower(model, "swalp8")
    return lp.LowPrecisionOptimizer(optimizer, "swalp8")


WAYS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Any]] = {
    "fp32": lambda model, optimizer: optimizer,
    "lowprec-eb, swalp8": _lowered_by_lp,
    "qtorch, BlockFloatingPoint(8)": lowered_by_qtorch,
}


def run(way: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training: loss after every epoch, and test accuracy of the last one in percent."""
    task = make_task(DIGITS, seed)
    model = build_model(MODEL, task.input_shape, 10, seed)
    settings = TrainSettings(epochs=epochs)
    torch.manual_seed(seed)
    optimizer = WAYS[way](model, settings.optimizer(model))
    recorder = _Losses()
    train(model, optimizer, task, range(epochs), settings, seed=seed, callbacks=[recorder])
    return {"way": way, "seed": seed, "losses": recorder.losses, "accuracy": 100 * task.evaluate(model, "test")[1]}


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(runs: list[dict[str, Any]], epochs: int) -> str:
    """Markdown: one row for each way, loss at some epochs and accuracy, mean and standard deviation over seeds."""
    shown = sorted({0, epochs // 4, epochs // 2, epochs - 1})
    lines = [f"| trained by | {' | '.join(f'loss, epoch {epoch + 1}' for epoch in shown)} | test accuracy [%] |"]
    lines.append(f"|{' --- |' * (len(shown) + 2)}")
    for way in WAYS:
        own = [one for one in runs if one["way"] == way]
        losses = [_spread([one["losses"][epoch] for one in own], 4) for epoch in shown]
        lines.append(f"| {way} | {' | '.join(losses)} | {_spread([one['accuracy'] for one in own], 2)} |")
    return "\n".join(lines)


def main(
    seeds: Annotated[int, typer.Option(min=2)] = 5,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    json_file: Annotated[Path, typer.Option("--json", help="every loss and accuracy")] = Path("qtorch_trajectory.json"),
) -> None:
    """Train each way with each seed; print Markdown, write JSON after each run and go on from it."""
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(json_file.read_text()) if json_file.exists() else []
    runs = [one for one in runs if len(one["losses"]) == epochs]
    known = {(one["way"], one["seed"]) for one in runs}
    for seed in range(seeds):
        for way in WAYS:
            if (way, seed) in known:
                continue
            typer.echo(f"seed {seed}: {way}", err=True)
            runs.append(run(way, seed, epochs))
            json_file.write_text(json.dumps(runs, indent=1))
    typer.echo(table(runs, epochs))


if __name__ == "__main__":
    typer.run(main)
