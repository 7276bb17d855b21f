"""What a whole training step costs against float32: `python benchmarks/step_overhead.py`.

Every contender takes its turn in every round, right behind a float32 step of the same model; slow ones skip rounds. A
figure is the median over rounds of the time divided by that of the float32 step beside it. Peak memory is measured
apart.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import missing, seconds
from step_contenders import LOWERED, OTHERS, PLAIN, QTORCH, Contender, Setting, Step, build, contenders
from step_memory import peak_bytes
from step_models import WORKLOADS, Workload
from step_picture import draw
from step_profile import profile_table
from step_report import Row, checks, report, set_bounds

from lowprec_eb.precision import check_choice
from lowprec_eb.recipes import RECIPES
from lowprec_eb.versions import versions

ON_CPU, ON_GPU = ("resnet20", "vit", "mlp", "gpt"), ("resnet18",)
_TURN_SECONDS = 0.1  # a quicker step is taken several times in a row
_SLOW = 4  # times fp32: a contender that takes longer skips rounds
_REHEARSAL_BATCH = 2


def say(text: str) -> None:
    typer.echo(text, err=True)


# ---- measuring ---------------------------------------------------------------------------------------------------


def measure(
    workload: Workload, setting: Setting, who: Sequence[Contender], rounds: int, failures: list[str]
) -> list[Row]:
    """Every contender on one model, in turns; what fails goes to ``failures``."""
    torch.set_num_threads(setting.threads)
    steps: list[tuple[Row, Step, float]] = []
    for contender in who:
        say(f"{workload.name}, {setting.name}: {contender.name}")
        try:
            step = build(contender, workload, setting)
            seconds(step, finish=setting.finish)  # compiles and allocates
            speed = seconds(step, finish=setting.finish)
        except Exception as error:
            if contender.by == PLAIN:
                raise  # nothing to measure against
            first_line = str(error).strip().partition("\n")[0]
            failures.append(_failure(workload, setting, contender, f"{type(error).__name__}: {first_line}"))
            continue
        what = (workload.name, len(step.inputs), setting.threads, setting.where, setting.compiled)
        steps.append((Row(*what, contender.recipe, contender.by), step, speed))
    _take_turns(steps, setting, rounds)
    for row, step, _ in steps:
        if not torch.isfinite(step.loss):
            failures.append(_failure(workload, setting, row, f"the loss became {step.loss.item()}"))
    return [_summarised(row) for row, step, _ in steps if torch.isfinite(step.loss)]


def _failure(workload: Workload, setting: Setting, contender: Contender | Row, error: str) -> str:
    return f"{workload.name}, {setting.name}: {contender.recipe} by {contender.by} ({error})"


def _take_turns(steps: Sequence[tuple[Row, Step, float]], setting: Setting, rounds: int) -> None:
    _, plain, plain_speed = steps[0]
    times = max(1, int(_TURN_SECONDS / plain_speed))
    started = time.monotonic()
    for turn in range(rounds):
        for row, step, speed in steps:
            if turn % max(1, round(speed / plain_speed / _SLOW)) == 0:
                fp32 = seconds(plain, times, setting.finish)
                own = seconds(step, max(1, int(_TURN_SECONDS / speed)), setting.finish)
                row.pairs.append((own, fp32))
        say(f"{steps[0][0].model}, {setting.name}: round {turn + 1} of {rounds}, {time.monotonic() - started:.0f} s")


def _summarised(row: Row) -> Row:
    row.rounds = len(row.pairs)
    row.ms = 1e3 * statistics.median(own for own, _ in row.pairs)
    multiples = [own / fp32 for own, fp32 in row.pairs]
    row.times_fp32_time = statistics.median(multiples)
    quartiles = statistics.quantiles(multiples, method="inclusive") if len(multiples) > 1 else multiples * 3
    row.middle_half = (quartiles[0], quartiles[2])
    return row


def measure_memory(workload: Workload, setting: Setting, rows: Sequence[Row]) -> None:
    """Peak memory of every contender that has a row with this model; the number of threads plays no part."""
    torch.set_num_threads(setting.threads)
    own = [row for row in rows if row.model == workload.name]
    peaks: dict[Contender, int] = {}
    for contender in dict.fromkeys(Contender(row.recipe, row.by) for row in own):
        say(f"{workload.name}, memory: {contender.name}")
        peaks[contender] = peak_bytes(lambda who=contender: build(who, workload, setting), setting.device)  # type: ignore[misc]
    for row in own:
        peak = peaks[Contender(row.recipe, row.by)]
        row.peak_mib, row.times_fp32_memory = peak / 2**20, peak / peaks[Contender("fp32", PLAIN)]


# ---- command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a call measures."""

    settings: Sequence[Setting]
    recipes: Sequence[str]
    others: Sequence[str]
    rounds: int
    memory: bool


def _measure_one(plan: Plan, workload: Workload, failures: list[str]) -> list[Row]:
    rows: list[Row] = []
    for setting in plan.settings:
        rows += measure(workload, setting, list(contenders(plan.recipes, plan.others)), plan.rounds, failures)
    if plan.memory:
        measure_memory(workload, plan.settings[-1], rows)
    return rows


def _settings(device: str, threads: Sequence[int], compile_: bool, functional: bool, quick: bool) -> list[Setting]:
    counts = sorted(set(threads)) if device == "cpu" else [1]
    return [Setting(device, count, compile_, functional, _REHEARSAL_BATCH if quick else None) for count in counts]


def _others(given: Sequence[str], compile_: bool) -> tuple[list[str], list[str]]:
    """Whom to measure beside the recipes, and whom not and why."""
    left_out = missing(["qtorch.quant"]) if QTORCH in given else []
    if QTORCH in given and compile_:
        left_out = ["qtorch, compiled (a graph cannot hold its quantizers)"]
    return [name for name in given if name != "none" and not (name == QTORCH and left_out)], left_out


def _prepare(device: str) -> None:
    if device == "cuda":
        if not torch.cuda.is_available():
            raise typer.BadParameter("--device cuda: torch sees no GPU")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def _chosen(option: str, given: Sequence[str] | None, allowed: Sequence[str], default: Sequence[str]) -> list[str]:
    for name in given or ():
        try:
            check_choice("step_overhead", option, name, allowed)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return list(given or default)


def _machine(device: str, rounds: int) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {**versions(), "device": device, "capability": where, "rounds": rounds}


def _save(rows: Sequence[Row], left_out: Sequence[str], machine: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Write all figures so far; returns the rows as they are written."""
    plain = [{key: value for key, value in asdict(row).items() if key != "pairs"} for row in rows]
    found = [asdict(check) for check in checks(rows)]
    figures = {"machine": machine, "rows": plain, "checks": found, "not_measured": left_out}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return plain


def main(
    rounds: Annotated[int, typer.Option(min=1, help="turns of each contender")] = 10,
    models: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(WORKLOADS)}")] = None,
    recipes: Annotated[list[str] | None, typer.Option(help="default: all")] = None,
    against: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(OTHERS)}, or none")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="on a CPU; default: 1 and 2")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    compile_: Annotated[bool, typer.Option("--compile", help="compile every model")] = False,
    functional: Annotated[bool, typer.Option(help="lower attention's own products too")] = False,
    memory: Annotated[bool, typer.Option(help="peak memory too")] = True,
    json_: Annotated[Path, typer.Option("--json", help="JSON file with every figure")] = Path("step_overhead.json"),
    picture: Annotated[Path, typer.Option(help="PNG file")] = Path("docs/pictures/step_overhead.png"),
    profile: Annotated[bool, typer.Option(help="only show where the time of each model and recipe goes")] = False,
    quick: Annotated[bool, typer.Option(help="batches of two, no bounds: a rehearsal")] = False,
) -> None:
    """Measure, print Markdown, write JSON and a picture. Options that name something may be given several times."""
    names = _chosen("--models", models, list(WORKLOADS), ON_GPU if device == "cuda" else ON_CPU)
    workloads, recipes = (
        [WORKLOADS[name] for name in names],
        _chosen("--recipes", recipes, list(RECIPES), list(RECIPES)),
    )
    others = _chosen("--against", against, [*OTHERS, "none"], list(OTHERS))
    _prepare(*_chosen("--device", [device], ["cpu", "cuda"], []))
    settings = _settings(device, threads or (1, 2), compile_, functional, quick)
    if profile:
        for workload, recipe in product(workloads, recipes):
            typer.echo(profile_table(Contender(recipe, LOWERED), workload, settings[-1]))
        return
    others, left_out = _others(others, compile_)
    plan, rows, failures = Plan(settings, recipes, others, rounds, memory), list[Row](), list[str]()
    for workload in workloads:
        rows += _measure_one(plan, workload, failures)
        if not quick:
            set_bounds(rows, device)
        written = _save(rows, left_out + failures, _machine(device, rounds), json_)
    draw(written, picture)
    typer.echo(report(rows, checks(rows), left_out + failures))
    typer.echo(f"\nwritten: {json_}, {picture}")
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
