"""What `benchmarks/on_gpu.sh` runs, in which order, and what of it comes back. The front door is the shell script."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import typer
from filelock import FileLock, Timeout
from gpu_cells import config_on, is_whole, load_cells
from gpu_data import Cifar10, find_cifar10
from gpu_pieces import UNFINISHED_STATUS, Piece, Pieces
from gpu_results import LEFT_BEHIND

from lowprec_eb.checkpoints import write_text
from lowprec_eb.versions import versions

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "results.tar.gz"
_LARGEST_BYTES = 16 * 2**20  # of a file that comes back
_PYTHON = sys.executable
_REPORT_S = 60.0


@dataclass(frozen=True)
class Setting:
    """Where everything is; ``data`` None: the folder of supplies has no CIFAR-10."""

    device: str
    work: Path
    results: Path
    supplies: Path | None
    data: Cifar10 | None
    cells: Path
    commit: str

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"


# ---- pieces ------------------------------------------------------------------------------------------------------


def pieces(setting: Setting) -> list[Piece]:
    """Everything in its order: checks, then cells, most telling first. On a CPU small stand-ins."""
    return [*_checks(setting), *_rates(setting), *_steps(setting), _digits(setting), *_cells(setting)]


def _script(name: str, *options: object) -> tuple[str, ...]:
    return (_PYTHON, f"benchmarks/{name}.py", *map(str, options))


def _checks(setting: Setting) -> Iterator[Piece]:
    results = setting.results
    # A test file that lacks a library must not keep the others from running.
    tests = (_PYTHON, "-m", "pytest", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-m", "gpu")
    yield Piece("gpu_tests", tests, 150, needs=("pytest", "hypothesis"), environment={"TRITON_INTERPRET": None})
    if not setting.on_cpu:
        yield Piece(
            "triton_tests", (*tests, "-m", "interop", "tests/interop/test_triton.py"), 150,
            needs=("pytest", "triton"), environment={"TRITON_INTERPRET": None},
        )  # fmt: skip
        yield Piece("quantizers", _script("quantizers_gpu", results / "quantizers.json"), 90, needs=("triton",))
    small = ("--quick", "--seconds", 0.2) if setting.on_cpu else ()
    files = ("--json", results / "energy_sensors.json", "--windows", results / "energy_windows.jsonl")
    yield Piece("energy_sensors", _script("energy_sensors", "--device", setting.device, *small, *files), 120)


def _rates(setting: Setting) -> Iterator[Piece]:
    small = ("--rounds", 2, "--models", "vgg_digits", "--quick") if setting.on_cpu else ("--rounds", 7)
    for name, options in (("training_rate", ()), ("training_rate_compiled", ("--compile",))):
        if options and setting.on_cpu:
            continue  # there may be no compiler
        files = ("--json", setting.results / f"{name}.json", "--picture", setting.results / f"{name}.png")
        yield Piece(name, _script("training_rate", "--device", setting.device, *small, *options, *files), 200)


def _steps(setting: Setting) -> Iterator[Piece]:
    models = ("mlp",) if setting.on_cpu else ("resnet18", "gpt", "vit")
    bounded = [word for recipe in ("swalp8", "bfp8", "int8", "fp8") for word in ("--recipes", recipe)]
    cases: list[tuple[str, Sequence[object]]] = [(f"steps_{model}", ("--models", model)) for model in models]
    if not setting.on_cpu:
        cases.append(("steps_resnet18_compiled", ("--models", "resnet18", "--compile", *bounded)))
    small = ("--quick", "--threads", 1, "--rounds", 2, "--recipes", "bfp8") if setting.on_cpu else ()
    for name, options in cases:
        files = ("--json", setting.results / f"{name}.json", "--picture", setting.results / f"{name}.png")
        command = _script("step_overhead", "--device", setting.device, "--against", "plain torch", *small)
        yield Piece(name, (*command, *map(str, (*options, *files))), 240)


def _digits(setting: Setting) -> Piece:
    small = ("training.epochs=6", "ticket.deadline=5", "seeds=[0]", "task.max_train=200") if setting.on_cpu else ()
    overrides = ("workers=1", *small)
    chosen = [word for override in overrides for word in ("--set", override)]
    options = ("--config", "configs/digits.yaml", "--device", setting.device, *chosen)
    return Piece("digits", _script("compare_energy", *options, "--out", setting.work / "digits"), goes_on=True)


def _cells(setting: Setting) -> Iterator[Piece]:
    if setting.data is None or setting.supplies is None:
        return
    cells = load_cells(setting.cells)
    for group in cells.groups:
        config = config_on(cells, group, setting.data, setting.device)
        folders = ("--data", setting.supplies, "--work", setting.work, "--results", setting.results)
        options = ("--cells", setting.cells, *folders, "--device", setting.device, "--commit", setting.commit)
        command = _script("gpu_cells", group.name, *options)
        stands = partial(is_whole, config, group, setting.results)
        yield Piece(f"cells_{group.name}", command, goes_on=True, stands=stands)
        if group.study is not None:
            where = ("--device", setting.device, "--out", setting.work / "studies")
            data = [word for override in setting.data.overrides for word in ("--set", override)]
            name = f"study_{Path(group.study).stem}"
            yield Piece(name, _script("ticket_study", group.study, *where, *data), goes_on=True)


# ---- what comes back ---------------------------------------------------------------------------------------------


def collect(setting: Setting) -> None:
    """Bring what pieces have left in their working folders to the results, without checkpoints."""
    studies = setting.work / "studies"
    found = [(setting.work / "digits", "digits"), *((path, path.name) for path in sorted(studies.glob("study-*")))]
    for source, name in found:
        if source.is_dir():
            shutil.copytree(source, setting.results / name, ignore=LEFT_BEHIND, dirs_exist_ok=True)


def pack(results: Path, out: Path) -> None:
    """One archive of all results in ``out``, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = out / f"{ARCHIVE}.new"  # beside it: a move between file systems may stop half-way
    with tarfile.open(fresh, "w:gz") as archive:
        archive.add(results, "results")
    if fresh.stat().st_size > _LARGEST_BYTES:
        say(f"{ARCHIVE} has {fresh.stat().st_size / 2**20:.1f} MiB, more than may come back from some machines")
    fresh.replace(out / ARCHIVE)


def restore(results: Path, out: Path, earlier: Path | None) -> None:
    """On a fresh machine, begin with the results of an earlier call: those in ``out``, which are the later ones and
    would be overwritten, else those in ``earlier``.

    Raises:
        typer.Exit: they cannot be read. To begin anew instead would take hours for what is there.
    """
    if results.exists():
        return
    path = out / ARCHIVE
    if not path.exists():
        if earlier is None:
            results.mkdir(parents=True)
            return
        path = earlier / ARCHIVE
    try:
        with tempfile.TemporaryDirectory(dir=results.parent) as half, tarfile.open(path) as archive:
            archive.extractall(half, filter="data")
            (Path(half) / "results").rename(results)  # whole or not at all
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        say(f"{path} does not give what an earlier call has left ({error}): fetch it again, or begin without it")
        raise typer.Exit(2) from None
    say(f"goes on from {path}")


def sources() -> str:
    """A hash of the sources and of what is installed: what failed is run again when they have changed."""
    installed = sorted(f"{of.name} {of.version}" for of in distributions())
    content = hashlib.sha256("\n".join(installed).encode())
    for folder in ("lowprec_eb", "energy_models", "benchmarks", "tests", "configs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".yaml"):
                content.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return content.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What the results are of."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = None
    if shutil.which(asked[0]):
        driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or None
    return {
        "gpu": gpu,
        "driver": driver,
        "cpus": os.cpu_count(),
        "versions": {**versions(), "cuda": torch.version.cuda},
    }


def commit() -> str:
    """Of the checkout, or what COMMIT says where there is no git."""
    if given := os.environ.get("COMMIT"):
        return given
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


# ---- the call ----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


def run_pieces(every: Sequence[Piece], record: Pieces, setting: Setting, out: Path, deadline: float) -> bool:
    """Run what is not settled while there is time; True: nothing waits."""
    fresh, waiting = True, False
    for piece in every:
        if record.is_settled(piece):
            continue
        left = deadline - time.monotonic()
        if (reason := record.why_not(piece, left, fresh)) is not None:
            say(f"{piece.name}: {reason}")
            waiting = waiting or reason.startswith("waits")
            continue
        say(f"{piece.name}: begins, {left:.0f} s left")
        command = piece.command
        if piece.name.startswith("cells_"):
            command = (*command, "--seconds", f"{max(left - 10, 1):.0f}")
        ending = record.run(Piece(**{**vars(piece), "command": command}), left, fresh)
        fresh = False
        say(f"{piece.name}: {ending.state} after {ending.seconds:.0f} s, status {ending.status}")
        waiting = waiting or ending.state == "unfinished"
        collect(setting)
        pack(setting.results, out)
    return not waiting


def _report(setting: Setting, out: Path) -> None:
    command = _script("gpu_report", setting.results, out)
    try:
        subprocess.run(command, check=True, timeout=_REPORT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        say(f"the report was not written ({error}); make it from {ARCHIVE} with benchmarks/gpu_report.py")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _data(supplies: Path | None) -> Cifar10 | None:
    if supplies is None:
        say("cells: lacks data, no folder of supplies was given")
        return None
    try:
        found = find_cifar10(supplies)
    except (FileNotFoundError, ValueError) as error:
        say(f"cells: {error}")
        return None
    say(f"data: {found.root}" + (f". {found.note}" if found.note else ""))
    return found


def main(
    out: Annotated[Path, typer.Argument(help="Folder for small results.")],
    supplies: Annotated[Path | None, typer.Argument(help="Folder with CIFAR-10, and wheels.")] = None,
    earlier: Annotated[Path | None, typer.Argument(help="OUT of an earlier call on another machine.")] = None,
    device: Annotated[str, typer.Option(envvar="DEVICE")] = "cuda",
    work: Annotated[Path, typer.Option(envvar="WORK")] = ROOT / "build" / "on_gpu",
    piece_seconds: Annotated[float, typer.Option(envvar="PIECE_SECONDS")] = 560.0,
    chosen: Annotated[str, typer.Option(envvar="PIECES", help="Patterns of names.")] = "*",
    cells: Annotated[Path | None, typer.Option(envvar="CELLS")] = None,
) -> None:
    """Run what is not finished, for as long as a call may take. Status 75: call again."""
    if device == "cuda" and not torch.cuda.is_available():
        say("torch sees no GPU here; DEVICE=cpu rehearses")
        raise typer.Exit(2)
    begin = time.monotonic() - (time.time() - float(os.environ.get("STARTED", time.time())))
    out, work = out.resolve(), work.resolve()
    supplies, earlier = (None if path is None else path.resolve() for path in (supplies, earlier))
    cells = (cells or ROOT / "configs" / "gpu" / ("rehearsal.yaml" if device == "cpu" else "cells.yaml")).resolve()
    os.chdir(ROOT)
    os.environ.setdefault("LOWPREC_EB_CACHE", str(work / "cache"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")  # what one call compiles the next one need not
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # ignored so far, if a shell began this in the background
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            restore(work / "results", out, earlier)
            setting = Setting(device, work, work / "results", supplies, _data(supplies), cells, commit())
            every = _chosen(pieces(setting), chosen)
            write_text(setting.results / "machine.json", json.dumps(machine(), indent=1) + "\n")
            record = Pieces(setting.results, sources(), setting.commit)
            status = _call(every, record, setting, out, begin + piece_seconds - min(_REPORT_S, piece_seconds / 4))
    except Timeout:
        say(f"another call is at work in {work}")
        raise typer.Exit(2) from None
    raise typer.Exit(status)


def _chosen(every: Sequence[Piece], patterns: str) -> list[Piece]:
    found = [of for of in every if any(fnmatch(of.name, pattern) for pattern in patterns.split())]
    if not found:
        say(f"PIECES={patterns!r}: no piece has such a name; there are {', '.join(of.name for of in every)}")
        raise typer.Exit(2)
    return found


def _call(every: Sequence[Piece], record: Pieces, setting: Setting, out: Path, deadline: float) -> int:
    interrupted, finished = False, False
    try:
        finished = run_pieces(every, record, setting, out, deadline)
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted")
    collect(setting)
    _report(setting, out)
    pack(setting.results, out)
    failed = [of.name for of in every if of.name in record.endings and record.endings[of.name].state == "failed"]
    for name in failed:
        say(f"{name}: failed, see logs/{name}.out and .err in {ARCHIVE}")
    if interrupted or not finished:
        say("call again to go on")
        return 128 + signal.SIGINT if interrupted else UNFINISHED_STATUS
    left_out = [of.name for of in every if of.name not in record.endings]
    if setting.data is None:
        left_out.append("cells")
    say("nothing is left to run" + (f", but these were left out: {', '.join(left_out)}" if left_out else ""))
    return 1 if failed or left_out else 0


if __name__ == "__main__":
    typer.run(main)
