"""A section for docs/reproductions.md from the results of `benchmarks/on_gpu.sh`: `python benchmarks/gpu_report.py`.

Nothing in it is typed by hand: machine, versions, commits, how each piece ended, and the tables of what was measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_results import PROVENANCE, UNFINISHED, paper_form
from measuring import markdown_table

from energy_models.units import si_text
from lowprec_eb.checkpoints import write_text
from lowprec_eb.compare import recorded_config
from lowprec_eb.outcome import Outcome
from lowprec_eb.report import Comparison, summarise, write_report
from lowprec_eb.report.measured import ABSENT, Measured, mean_measured, measured
from lowprec_eb.report.paper_table import OF_IMAGES, PaperCell, PaperTable
from lowprec_eb.report.saved import FILE, load_comparison
from lowprec_eb.report.units import energy_text, percent_text, ratio_text
from lowprec_eb.terminal import explained, new_console

BEGIN, END = "<!-- gpu_report: begin -->", "<!-- gpu_report: end -->"
_PICTURES = 6  # beside the report and the archive: some machines give no more than eight files back
_MARKDOWN = ("training_rate", "steps_")  # pieces that print Markdown
_SHORT = 7


def section(results: Path) -> str:
    """All that is known, as Markdown."""
    parts = ["# What a GPU has shown", *_machine(results), *_pieces(results)]
    for folder in comparisons(results):
        parts += _comparison(folder)
    for log in sorted((results / "logs").glob("*.out")):
        if log.stem.startswith(_MARKDOWN) and (lines := _lines(log)):
            parts += [f"## {log.stem}", "\n".join(lines)]
    return "\n\n".join([*parts, *_quantizers(results), *_sensors(results), *_studies(results)]) + "\n"


def comparisons(results: Path) -> list[Path]:
    """The folders of all comparisons with a finished arm, the paper's cells first, what was set aside last."""
    found = [path.parent for pattern in ("runs/*", "digits/*") for path in sorted(results.glob(f"{pattern}/{FILE}"))]
    return sorted(found, key=is_set_aside)


def is_set_aside(folder: Path) -> bool:
    """Whether a run of the cells has been followed by one that does not go on with it."""
    return (folder / PROVENANCE).is_file() and folder.name != load_comparison(folder).name


def merge(text: str, path: Path) -> None:
    """Put the section between its two marks in ``path``, in place of what stands there.

    Raises:
        ValueError: the file does not have both marks once, in their order.
    """
    whole = path.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"{path}: must have the lines {BEGIN} and {END}, once each and in this order")
    before, rest = whole.split(BEGIN)
    lower = text.replace("\n## ", "\n### ").replace("# What a GPU", "## What a GPU", 1)
    write_text(path, f"{before}{BEGIN}\n\n{lower}\n{END}{rest.split(END)[1]}")


# ---- parts -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _machine(results: Path) -> Iterator[str]:
    path = results / "machine.json"
    if path.is_file():
        of = _read(path)
        told = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
        yield f"Machine: {of['gpu'] or 'no GPU, a rehearsal on a CPU'}; driver {of['driver'] or 'unknown'}; {told}."


def _pieces(results: Path) -> Iterator[str]:
    path = results / "pieces.json"
    if path.is_file():
        rows = [
            (name, of["state"], str(of["status"]), f"{of['seconds']:.0f}", of["commit"][:_SHORT], _last(results, name))
            for name, of in _read(path).items()
        ]
        yield markdown_table(("piece", "state", "status", "seconds", "commit", "last line"), rows)


def _last(results: Path, name: str) -> str:
    lines = _lines(results / "logs" / f"{name}.out")
    return lines[-1].strip("=| ")[:100].replace("|", "/") if lines else ""


def _lines(path: Path) -> list[str]:
    """What a piece has printed, without the places of its files."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(line for line in text.splitlines() if not line.startswith("written:")).strip().splitlines()


def _comparison(folder: Path) -> Iterator[str]:
    comparison, config = load_comparison(folder), recorded_config(folder)
    provenance = folder / PROVENANCE
    yield f"## {folder.name if provenance.is_file() else comparison.name}"
    if is_set_aside(folder):
        yield f"Of {comparison.name}, set aside: made with other settings or images than what came after it."
    if provenance.is_file():
        yield _made(_read(provenance)["made"])
    if config is not None:
        task = config.task
        sizes = ", ".join(f"{count:,} {split}" for split, count in comparison.splits.items())
        yield f"Data {task.data}: {sizes} images; {config.training.epochs} epochs, batch {task.batch_size}."
    yield from (note for note in comparison.notes if note.startswith(OF_IMAGES))
    if comparison.runs_ended is not None:
        yield f"Not finished: {comparison.runs_ended}."
    yield f"Modelled: nominal, of everything, under {comparison.profile.rstrip('.')}. Measured: what this machine took."
    yield _arms(comparison, _devices(folder))
    if provenance.is_file():
        published = _read(provenance).get("published")
        yield _paper(paper_form(comparison, published, None if config is None else config.ticket.ratio))
    if (unfinished := folder / UNFINISHED).is_file():
        yield _unfinished(_read(unfinished))


def _made(runs: Sequence[dict[str, Any]]) -> str:
    """Which arms are of which commit and device."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for of in runs:
        found.setdefault((of["commit"][:_SHORT], of["device"]), {}).setdefault(of["arm"], []).append(str(of["seed"]))
    if len(found) == 1:
        ((commit, device),) = found
        return f"Commit {commit} on {device}."
    listed = {
        by: ", ".join(f"{arm} (seed {', '.join(seeds)})" for arm, seeds in arms.items()) for by, arms in found.items()
    }
    return "\n".join(f"- Commit {commit} on {device}: {told}." for (commit, device), told in listed.items())


def _devices(folder: Path) -> set[str]:
    """On which the arms were run; a comparison without such a record is of one call."""
    path = folder / PROVENANCE
    return {of["device"] for of in _read(path)["made"]} if path.is_file() else set()


def _arms(comparison: Comparison, devices: set[str]) -> str:
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in comparison.outcomes:
        by_arm.setdefault(outcome.arm, []).append(outcome)
    rows = []
    for arm in summarise(comparison):
        took = mean_measured([measured(comparison.charged_rows(of)) for of in by_arm[arm.arm]])
        tickets = ", ".join("none" if seed.ticket is None else str(seed.ticket.epoch) for seed in arm.seeds)
        rows.append(
            (
                *(arm.arm, ", ".join(str(seed.seed) for seed in arm.seeds), percent_text(arm.test_accuracy)),
                *(tickets if any(seed.ticket for seed in arm.seeds) else "", f"{100 * arm.flops_left:.0f}"),
                *(energy_text(arm.energy.nominal_j), ABSENT if took is None else took.text),
                *("" if arm.vs_full is None else ratio_text(arm.vs_full), _of_dense(took, comparison, by_arm, devices)),
                f"{arm.duration_s:.0f}",
            )
        )
    heads = ("arm", "seeds", "test accuracy [%]", "ticket after [epochs]", "FLOPs left [%]", "modelled", "measured")
    return markdown_table((*heads, "modelled, of dense", "measured, of dense", "seconds"), rows)


def _of_dense(
    took: Measured | None, comparison: Comparison, by_arm: dict[str, list[Outcome]], devices: set[str]
) -> str:
    if len(devices) > 1:
        return "other device"
    dense = next((of for of in by_arm.values() if (of[0].pipeline, of[0].precision) == ("full", "fp32")), None)
    base = None if dense is None else mean_measured([measured(comparison.charged_rows(of)) for of in dense])
    return "" if took is None or base is None else f"x{took.energy_j / base.energy_j:.3f}"


def _paper(table: PaperTable) -> str:
    heads = ("method", "p [%]", "accuracy [%]", "paper", "modelled", "paper", "measured", "FLOPs, the paper's books",
             "paper", "FLOPs, counted")  # fmt: skip
    rows = [
        (row.label, "" if ratio is None or row.method == "dense" else f"{100 * ratio:g}", *_cell(cell))
        for row in table.rows
        for place, (ratio, cell) in enumerate(row.cells.items())
        if cell.arm is not None and (row.method != "dense" or not place)  # it has no p
    ]
    return "\n\n".join(
        [
            markdown_table(heads, rows),
            "\n".join(f"- {reason}" for reason in table.reasons if not reason.startswith(OF_IMAGES)),
        ]
    )


def _cell(cell: PaperCell) -> Sequence[str]:
    energy, flops = cell.published_energy, cell.published_flops
    return (
        "" if cell.test_accuracy is None else percent_text(cell.test_accuracy),
        "" if cell.accuracy_percent is None else f"{cell.accuracy_percent:.2f}",
        "" if cell.energy_j is None else energy_text(cell.energy_j),
        "" if energy is None else energy_text(energy.middle),
        ABSENT if cell.measured is None else cell.measured.text,
        "" if cell.flops_booked is None else si_text(cell.flops_booked),
        "" if flops is None else si_text(flops.middle),
        "" if cell.flops_counted is None else si_text(cell.flops_counted),
    )


def _unfinished(of: dict[str, Any]) -> str:
    told = f"Not finished: {of['arm']}, seed {of['seed']}"
    if not of.get("epochs"):
        return f"{told}."
    last = of["epochs"][-1]
    return (
        f"{told}: {of['phase']} after epoch {last['epoch'] + 1} of {of['last_epoch'] + 1}, loss {last['loss']:.3f}, "
        f"validation accuracy {100 * last['validation_accuracy']:.2f} %."
    )


def _quantizers(results: Path) -> Iterator[str]:
    path = results / "quantizers.json"
    if path.is_file():
        rows = _read(path)["throughput"]
        yield "## Quantizers"
        named = [name for name in rows[0] if name not in ("ms", "copy_ms", "copies", "bits_equal")]
        cells = [(*(str(row[name]) for name in named), f"{row['copies']:.2f}", str(row["bits_equal"])) for row in rows]
        yield markdown_table((*named, "times a copy", "bits of the CPU"), cells)


def _sensors(results: Path) -> Iterator[str]:
    path = results / "energy_sensors.json"
    if path.is_file():
        of = _read(path)
        yield "## Energy sensors"
        if (why := of.get("no_sensor")) is not None:
            yield f"None: {why}"
            return
        energy, seconds = of["matmul"]["energy_j"], of["matmul"]["duration_s"]
        yield f"Matrix products for {seconds:.3g} s: {energy_text(energy)}, {energy / seconds:.0f} W."


def _studies(results: Path) -> Iterator[str]:
    for path in sorted(results.glob("study-*/study.md")):
        yield f"## Detectors, {path.parent.name}"
        yield path.read_text(encoding="utf-8").strip()


# ---- files -------------------------------------------------------------------------------------------------------


def _pictures(results: Path, out: Path) -> None:
    """The most telling ones; all are in the archive."""
    current = [folder for folder in comparisons(results) if not is_set_aside(folder)]
    found = [folder / name for folder in current for name in ("energy_accuracy.png", "energy_phases.png")]
    found += [results / f"{name}.png" for name in ("training_rate", "steps_resnet18")]
    for path in [path for path in found if path.is_file()][:_PICTURES]:
        name = path.name if path.parent == results else f"{path.parent.name}_{path.name}"
        shutil.copyfile(path, out / name)


def main(
    results: Annotated[Path, typer.Argument(help="Folder results, unpacked from results.tar.gz.")],
    out: Annotated[Path, typer.Argument(help="Folder for report.md and pictures.")],
    into: Annotated[Path | None, typer.Option(help="A document with the two marks to put the section between.")] = None,
) -> None:
    """Write the section, and draw what can be drawn."""
    with explained(new_console()):
        for folder in comparisons(results):
            write_report(load_comparison(folder), folder)
        out.mkdir(parents=True, exist_ok=True)
        text = section(results)
        write_text(out / "report.md", text)
        _pictures(results, out)
        if into is not None:
            merge(text, into)


if __name__ == "__main__":
    typer.run(main)
