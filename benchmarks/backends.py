"""A whole early-bird run (8-bit search and training, digits, one seed) with each back end of the quantizers.

One run after the other, each in a process of its own with one worker and one thread; prints a Markdown table of wall
time and results, and with ``--profile`` where the time of the ``fast`` run goes.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
ARM = "pipelines=[{name: early-bird LL, pipeline: early_bird, precision: bfp8}]"
SETTINGS = ("seeds=[0]", "workers=1", ARM)


def _arguments(backend: str, out: Path) -> list[str]:
    changed = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["--config", str(CONFIG), "--backend", backend, "--out", str(out), *changed]


def _run(backend: str) -> tuple[float, dict[str, float]]:
    """Seconds, and what came out."""
    script = Path(__file__).parent / "compare_energy.py"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, str(script), *_arguments(backend, Path(folder))], check=True, capture_output=True
        )
        seconds = time.perf_counter() - started
        (summary,) = Path(folder).glob("*/summary.json")
        arm = json.loads(summary.read_text())["arms"][0]
    return seconds, {key: arm[key] for key in ("test_accuracy_mean", "energy_nominal_j")}


def _profile() -> None:
    from lowprec_eb.cli import compare

    with tempfile.TemporaryDirectory() as folder:
        profiler = cProfile.Profile()
        profiler.enable()
        compare(config=CONFIG, out=Path(folder), settings=list(SETTINGS), backend="fast")
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main(
    backends: Annotated[list[str] | None, typer.Argument()] = None, rounds: int = 1, profile: bool = False
) -> None:
    """Time a whole run with each of BACKENDS (default: reference, fast, qtorch)."""
    typer.echo("| back end | seconds | test accuracy | modelled [J] |\n|---|---|---|---|")
    for _ in range(rounds):
        for backend in backends or ("reference", "fast", "qtorch"):
            seconds, result = _run(backend)
            accuracy, energy = result["test_accuracy_mean"], result["energy_nominal_j"]
            typer.echo(f"| {backend} | {seconds:.1f} | {accuracy:.4f} | {energy:.6f} |")
    if profile:
        _profile()


if __name__ == "__main__":
    typer.run(main)
