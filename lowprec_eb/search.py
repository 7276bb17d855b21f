"""A search by itself: the stage of a comparison that draws a ticket, the smaller model, and their files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from energy_models import load_profile, totals
from lowprec_eb import checkpoints
from lowprec_eb.compare import load_task
from lowprec_eb.config import Config
from lowprec_eb.report.detector_pictures import detector_curves
from lowprec_eb.report.figures import save_picture
from lowprec_eb.report.ticket_pictures import widths_picture
from lowprec_eb.stage_data import Progress, StageResult
from lowprec_eb.strict_config import to_plain
from lowprec_eb.tickets import DrawnTicket, EarlyBird, Replay, replay
from lowprec_eb.tickets.savings import Savings
from lowprec_eb.tickets.step_times import StepTimes
from lowprec_eb.training_lab import TrainingLab
from lowprec_eb.versions import versions

TICKET_FILE, MODEL_FILE, RESULT_FILE = "ticket.safetensors", "model.safetensors", "result.json"


@dataclass(frozen=True, eq=False)
class Search:
    """A finished search: its stage, and by ratio the ticket with what it saves."""

    config: Config
    seed: int
    precision: str
    stage: StageResult
    drawn: Mapping[float, DrawnTicket]

    @property
    def name(self) -> str:
        """Of its folder: settings that decide the result have a folder of their own."""
        return f"{self.config.name}-search-{self.stage.key}"

    @property
    def epochs(self) -> int:
        """How many the search has begun."""
        return self.stage.state.epoch

    def replays(self) -> dict[str, Replay]:
        """What the detector saw, by ratio."""
        history, ticket = self.stage.history, self.config.ticket
        assert history is not None
        of_one = {ratio: EarlyBird.from_settings(replace(ticket, ratio=ratio, also=())) for ratio in ticket.ratios}
        return {
            f"ratio {ratio:g}": replay(history, detector, every=ticket.check_every)
            for ratio, detector in of_one.items()
        }


def run_search(
    config: Config, out: Path, *, precision: str = "fp32", seed: int | None = None, progress: Progress | None = None
) -> Search:
    """Search with the model, data and settings of a comparison; killed at any moment, the same call goes on.

    The stage is that of the comparison's early-bird arms in ``precision``: in one ``out`` it is run once for both.

    Raises:
        ValueError: the precision is unknown, the seed out of range, or the device is not there.
        StageDiverged: the training went wrong.
    """
    seed = config.seeds[0] if seed is None else seed
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be a whole number from 0 to 2**31 - 1, got {seed}")
    torch.set_num_threads(config.threads)
    task = replace(load_task(config.task, config.device), seed=seed)
    profile = load_profile(config.profile)
    lab = TrainingLab(config.lab, task, profile, seed, out / "stages", config.run_name, progress)
    result = lab.train(lab.initial(), "search", precision, sparsity=lab.tickets.sparsity, detect=True)
    example = torch.zeros(task.batch_size, *task.input_shape, device=config.device)
    drawn = {
        ratio: DrawnTicket.of(
            ticket,
            start.model.to(config.device),
            example,
            history=result.history,
            profile=profile,
            precision=lab.recipe(precision),
        )
        for ratio, (ticket, start) in result.drawn.items()
    }
    return Search(config, seed, precision, result, drawn)


def search_folder(search: Search, out: Path, ratio: float) -> Path:
    """Where the files of one ratio go: those of the first one in the search's folder itself."""
    folder = out / search.name
    return folder if ratio == search.config.ticket.ratio else folder / f"ratio-{ratio:g}"


def saved_times(folder: Path) -> StepTimes | None:
    """The step times that were measured when the files of a finished search were written; None: there are none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        return StepTimes.from_tree(json.loads(path.read_text())["step_times"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the result of a search ({error!r}); delete it, and it is written anew"
        ) from error


def write_search(search: Search, ratio: float, savings: Savings, folder: Path) -> list[Path]:
    """Write ticket, smaller model, widths, pictures and, last of all, the result, which says that the others are whole.
    Where it is there, only what is missing is written. Return the paths of what was."""
    drawn = search.drawn[ratio]
    state = {name: tensor.cpu() for name, tensor in drawn.model.state_dict().items()}
    meta = {"model": to_plain(search.config.model), "widths": drawn.ticket.widths}
    title = f"{search.config.name}, {search.precision}, seed {search.seed}"
    of_widths, of_distances = (
        f"{title}, ratio {ratio:g}: before and after",
        f"{title}: rule {search.config.ticket.rule}",
    )
    writers: dict[str, Callable[[Path], object]] = {
        TICKET_FILE: drawn.ticket.save,
        MODEL_FILE: lambda path: checkpoints.save(path, state, meta),
        "widths.csv": lambda path: checkpoints.write_text(path, _csv(drawn.rows())),
        "widths.png": lambda path: save_picture(widths_picture(drawn.layers(), of_widths), path),
        "distances.png": lambda path: save_picture(detector_curves(search.replays(), of_distances), path),
        RESULT_FILE: lambda path: checkpoints.write_text(path, _result(search, ratio, savings)),
    }
    finished = (folder / RESULT_FILE).exists()
    wanted = [folder / name for name in writers if not (finished and (folder / name).exists())]
    for path in wanted:
        writers[path.name](path)
    return wanted


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _result(search: Search, ratio: float, savings: Savings) -> str:
    drawn, bill = search.drawn[ratio], totals(search.stage.rows)
    assert savings.times is not None
    ticket = drawn.ticket
    tree = {
        "name": search.config.name,
        "stage": search.stage.key,
        "seed": search.seed,
        "precision": search.precision,
        "ticket": {
            "ratio": ratio,
            "epoch": ticket.epoch,
            "on_time": ticket.on_time,
            "distances": list(ticket.distances),
            "channels_kept": ticket.channels_kept,
            "channels_total": ticket.channels_total,
        },
        "groups": drawn.group_rows(),
        "unprunable": dict(drawn.unprunable),
        "batch": search.config.task.batch_size,
        "profile": search.config.profile,
        "savings": savings.rows(),
        "step_times": savings.times.to_tree(),
        "search": {
            "epochs": search.epochs,
            "modelled_j": [bill.modelled.low_j, bill.modelled.nominal_j, bill.modelled.high_j],
            "duration_s": bill.duration_s,
        },
        "config": to_plain(search.config),
        "versions": versions(),
    }
    return json.dumps(tree, indent=2) + "\n"
