"""Images a second of the training loop against a bare PyTorch loop: `python benchmarks/training_rate.py`.

In every round each contender trains an epoch, in turn and every other round in the reverse order. A figure is the
median over rounds of one contender's rate divided by that of another beside it: the loop in fp32 by the bare loop, and
`bfp8` by fp32 in the loop. The end of an epoch (ledger, checkpoint, scores) is measured apart from its steps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rate_contenders import CASES, Case, Loop, Setting, contenders, images_of
from rate_report import Row, bounds, checks, draw, report

from lowprec_eb.versions import versions

_WARM_UP = 2  # epochs: compile, allocate, make the optimizer's state


def say(text: str) -> None:
    typer.echo(text, err=True)


def measure(case: Case, setting: Setting, rounds: int, folder: Path) -> Row:
    """All contenders on one model, in turns."""
    loops: dict[str, Loop] = {}
    for name, make in contenders(case, setting, folder).items():
        say(f"{case.name}: {name}")
        loops[name] = make()
        for _ in range(_WARM_UP):
            loops[name]()
    task = images_of(case, setting)
    row = Row(case.name, case.what, task.batch_size, task.samples["train"], setting.channels_last, setting.compile)
    for turn in range(rounds):
        names = list(loops) if turn % 2 == 0 else [*reversed(loops)]
        for name in names:
            steps, end = loops[name]()
            row.steps_s.setdefault(name, []).append(steps)
            row.end_s.setdefault(name, []).append(end)
        say(f"{case.name}: round {turn + 1} of {rounds}")
    return row.summarised()


def profile_of(case: Case, setting: Setting, name: str, folder: Path) -> str:
    """Where the time of an epoch goes, by operator."""
    loop = contenders(case, setting, folder)[name]()
    for _ in range(_WARM_UP):
        loop()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * (setting.device == "cuda")]) as found:
        loop()
    by = f"self_{'device' if setting.device == 'cuda' else 'cpu'}_time_total"
    return str(found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def _machine(setting: Setting, threads: int, rounds: int) -> dict[str, Any]:
    on_gpu = setting.device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32}
    asked = {"tf32": setting.tf32 if setting.tf32 is not None else tf32} if on_gpu else {}
    images = "CIFAR-10" if setting.data_root else "random"
    return {
        **versions(),
        "device": setting.device,
        "capability": where,
        "threads": threads,
        "rounds": rounds,
        "images": images,
        **asked,
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="epochs of each contender")] = 7,
    models: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(CASES)}; default: all")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="on a CPU")] = 1,
    channels_last: Annotated[bool, typer.Option(help="memory layout of all contenders")] = True,
    compile_: Annotated[bool, typer.Option("--compile", help="compile the model of every contender")] = False,
    tf32: Annotated[bool | None, typer.Option(help="of all contenders on a GPU; left out: torch's flags")] = None,
    data_root: Annotated[Path | None, typer.Option(help="folder with CIFAR-10, in place of random images")] = None,
    json_: Annotated[Path, typer.Option("--json", help="JSON file with every figure")] = Path("training_rate.json"),
    picture: Annotated[Path, typer.Option(help="PNG file")] = Path("docs/pictures/training_rate.png"),
    profile: Annotated[str | None, typer.Option(help="only profile this contender: bare, fp32 or bfp8")] = None,
    quick: Annotated[bool, typer.Option(help="no bounds: a rehearsal")] = False,
) -> None:
    """Measure, print Markdown, write JSON and a picture. Exit status 1: a bound is missed."""
    if strangers := [name for name in models or () if name not in CASES]:
        raise typer.BadParameter(f"--models {strangers[0]}: choose from {', '.join(CASES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: torch sees no GPU")
    torch.set_num_threads(threads)
    setting, rows = Setting(device, channels_last, compile_, tf32, data_root), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for case in [CASES[name] for name in models or CASES]:
            if profile is not None:
                typer.echo(f"### {case.what}: {profile}\n\n{profile_of(case, setting, profile, Path(folder))}")
                continue
            rows.append(measure(case, setting, rounds, Path(folder)))
            found = [] if quick else checks(rows, device)
            _save(rows, _machine(setting, threads, rounds), [asdict(check) for check in found], json_)
    if rows:
        draw(rows, {} if quick else bounds(device), picture)
        typer.echo(report(rows, found))
        typer.echo(f"\nwritten: {json_}, {picture}")
        if not all(check.holds for check in found):
            raise typer.Exit(1)


def _save(rows: Sequence[Row], machine: dict[str, Any], found: list[dict[str, Any]], path: Path) -> None:
    figures = {"machine": machine, "rows": [asdict(row) for row in rows], "checks": found}
    path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
