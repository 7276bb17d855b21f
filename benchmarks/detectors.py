"""What a look of each detector takes, beside a training step of the same model, in one process.

Each look follows a step, as in training, so that it finds the caches as a step leaves them; medians over the rounds. A
share is of an epoch with one look at its end, and of training with a look after every hundred steps. The epoch counts
its steps alone: no loading of data, no evaluation.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional as F

import lowprec_eb as lp
from lowprec_eb.models import ResNetSettings, VGGSettings, build_model
from lowprec_eb.tickets import DETECTORS, batch_norms

_WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """A model, its images and how many steps its epoch has."""

    model: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]
    steps: int
    what: str


def _digits() -> nn.Module:
    return build_model(VGGSettings(widths=(8, "M", 32, 32, "M", 64)), (1, 8, 8), 10, 0)


def _resnet50() -> nn.Module:
    return build_model(ResNetSettings(depth=50), (3, 64, 64), 10, 0)


CASES = {
    "digits": Case(_digits, (64, 1, 8, 8), 17, "configs/digits.yaml, the smallest epoch there is here"),
    "resnet50": Case(_resnet50, (32, 3, 64, 64), 5004, "ImageNet's 5,004 steps, though of 32 images of 64x64"),
    "resnet50 cifar": Case(_resnet50, (32, 3, 32, 32), 1563, "50,000 images of 32x32"),
}


@dataclass(frozen=True)
class Row:
    """Medians: microseconds of a look, milliseconds of a step; shares in percent."""

    case: str
    rule: str
    channels: int
    look_us: float
    step_ms: float
    share_of_epoch_percent: float
    share_every_100_steps_percent: float


def _measure(name: str, case: Case, rounds: int, device: str) -> list[Row]:
    torch.manual_seed(0)
    model = case.model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.randn(case.batch, device=device)
    labels = torch.randint(10, case.batch[:1], device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    detectors = {rule: lp.EarlyBird(0.5, rule=rule) for rule in DETECTORS}
    averaged = lp.EarlyBird(0.5, normalised="layer", score_momentum=0.9)
    looks: dict[str, Callable[[], object]] = {rule: _look(detector, model) for rule, detector in detectors.items()}
    looks["window, normalised by layer, averaged"] = _look(averaged, model)
    times: dict[str, list[float]] = {"step": [], **{rule: [] for rule in looks}}
    for number in range(rounds + _WARM_UP):
        for rule, look in looks.items():
            seconds = {"step": _seconds(step, device), rule: _seconds(look, device)}
            if number >= _WARM_UP:
                for key, value in seconds.items():
                    times[key].append(value)
    taken = {key: statistics.median(of) for key, of in times.items()}
    channels = sum(norm.num_features for norm in batch_norms(model).values())
    return [_row(name, rule, channels, taken[rule], taken["step"], case.steps) for rule in looks]


def _look(detector: lp.EarlyBird, model: nn.Module) -> Callable[[], object]:
    return lambda: detector.update(model)


def _row(case: str, rule: str, channels: int, look_s: float, step_s: float, steps: int) -> Row:
    shares = (100 * look_s / (step_s * steps), 100 * look_s / (step_s * 100))
    return Row(case, rule, channels, 1e6 * look_s, 1e3 * step_s, *shares)


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(
    cases: Annotated[list[str] | None, typer.Argument()] = None,
    rounds: int = 30,
    device: str = "cpu",
    threads: int = 1,
    figures: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Time the detectors on CASES (default: all)."""
    if unknown := set(cases or ()) - set(CASES):
        raise typer.BadParameter(f"unknown case {', '.join(sorted(unknown))}; one of {', '.join(CASES)}")
    torch.set_num_threads(threads)
    rows = [row for name in cases or CASES for row in _measure(name, CASES[name], rounds, device)]
    typer.echo("| case | channels | rule | look [us] | step [ms] | of an epoch [%] | every 100 steps [%] |")
    typer.echo("|---|---|---|---|---|---|---|")
    for row in rows:
        shares = f"{row.share_of_epoch_percent:.3g} | {row.share_every_100_steps_percent:.3g}"
        typer.echo(f"| {row.case} | {row.channels} | {row.rule} | {row.look_us:.0f} | {row.step_ms:.3g} | {shares} |")
    for name in cases or CASES:
        typer.echo(f"{name}: {CASES[name].what}, {CASES[name].steps} steps")
    if figures is not None:
        figures.write_text(
            json.dumps({"device": device, "threads": threads, "rows": [asdict(r) for r in rows]}, indent=2)
        )


if __name__ == "__main__":
    typer.run(main)
