"""`lowprec-eb search` and `lowprec-eb ticket show`: what they print, write, draw and refuse; kills."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import energy_models as em
import lowprec_eb as lp
from lowprec_eb import search as search_module
from lowprec_eb.cli import app
from lowprec_eb.config import load_config
from lowprec_eb.models import build_model
from lowprec_eb.report.figures import save_picture
from lowprec_eb.report.ticket_pictures import MOST_LAYERS, compared_tickets, ticket_picture, widths_picture
from lowprec_eb.search import run_search
from lowprec_eb.stage import StageRun
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets.widths import LayerWidths
from lowprec_eb.training_lab import TrainingLab

SETTINGS = """
name: tiny
task: {max_train: 150, max_test: 60, batch_size: 32}
model: {widths: [6, M, 8]}
training: {epochs: 5, learning_rate: 0.05}
ticket: {ratio: 0.4, window: 2, threshold: 0.3, deadline: 3}
seeds: [0, 1]
pipelines: [{name: FF, pipeline: early_bird}]
"""
FILES = ["distances.png", "model.safetensors", "result.json", "ticket.safetensors", "widths.csv", "widths.png"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    result = call("search", config, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.output


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def folder_of(out):
    (folder,) = out.glob("*-search-*")
    return folder


def ticket_of(out):
    return lp.Ticket.load(folder_of(out) / "ticket.safetensors")


# ---- a search ----------------------------------------------------------------------------------------------------


def test_it_prints_widths_savings_and_notes(finished):
    out, text = finished
    result = json.loads((folder_of(out) / "result.json").read_text())
    assert f"ticket after {result['ticket']['epoch']} epochs" in text and "tiny, fp32, seed 0, ratio 0.4" in text
    assert "measured step time" in text and "search epoch 1/3" in text and "cannot be pruned: classifier" in text
    assert f"6 files in {folder_of(out)}" in text


def test_it_writes_ticket_model_widths_pictures_and_result(finished):
    folder = folder_of(finished[0])
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in FILES if name.endswith("png"))
    result = json.loads((folder / "result.json").read_text())
    ticket = ticket_of(finished[0])
    assert {row["group"]: row["after"] for row in result["groups"]} == ticket.widths
    assert result["ticket"]["channels_kept"] == ticket.channels_kept == 8 and ticket.precision == "fp32"
    rows = list(csv.DictReader((folder / "widths.csv").open()))
    convolutions = [row for row in rows if row["type"] == "Conv2d"]
    assert [int(row["out_after"]) for row in convolutions] == list(ticket.widths.values())
    ledger = em.Ledger(finished[0] / "stages" / result["stage"] / "ledger.jsonl")
    assert result["search"]["modelled_j"][1] == em.totals(ledger.rows()).modelled.nominal_j
    of_energy = next(row for row in result["savings"] if "energy" in row["quantity"])
    assert of_energy["ratio_low"] < of_energy["ratio"] <= of_energy["ratio_high"] < 1


def test_the_smaller_model_is_loaded_in_three_lines(finished, config):
    folder, settings = folder_of(finished[0]), load_config(config)
    model = build_model(settings.model, (1, 8, 8), 10, seed=5)
    small = lp.compact(model, lp.Ticket.load(folder / "ticket.safetensors"), torch.zeros(2, 1, 8, 8))
    small.load_state_dict(load_file(folder / "model.safetensors"))
    found = run_search(settings, finished[0])
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(small.eval()(images), found.drawn[0.4].model.eval()(images))


def test_a_finished_one_is_only_read(finished, config, monkeypatch):
    out, text = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(StageRun, "_train", None)
    again = call("search", config, "--out", out)
    assert again.exit_code == 0 and f"read from {folder_of(out)}" in again.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert again.output.splitlines()[:-1] == [line for line in text.splitlines() if "search epoch" not in line][:-1]


def test_files_that_are_gone_are_written_anew(finished, config, monkeypatch):
    folder = folder_of(finished[0])
    kept = (folder / "result.json").read_bytes()
    before = {name: (folder / name).read_bytes() for name in FILES if not name.endswith("png")}
    lost = [name for name in FILES if name not in ("result.json", "widths.csv")]
    for name in lost:
        (folder / name).unlink()
    untouched = (folder / "widths.csv").stat().st_mtime_ns
    monkeypatch.setattr(StageRun, "_train", None)
    again = call("search", config, "--out", finished[0])
    assert again.exit_code == 0, again.output
    *_, last = again.output.splitlines()
    assert last == f"read from {folder}; written anew: ticket.safetensors, model.safetensors, widths.png, distances.png"
    assert sorted(path.name for path in folder.iterdir()) == FILES and (folder / "result.json").read_bytes() == kept
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert (folder / "widths.csv").stat().st_mtime_ns == untouched


def test_its_stage_is_that_of_the_comparison(finished, config, monkeypatch):
    settings = load_config(config)
    task = make_task(settings.task, 0)
    lab = TrainingLab(settings.lab, task, em.load_profile("45nm"), 0, finished[0] / "stages", "run")
    monkeypatch.setattr(StageRun, "_train", None)
    stage = lab.train(lab.initial(), "search", "fp32", sparsity=1e-4, detect=True)
    assert stage.ticket.distance(ticket_of(finished[0])) == 0


def test_precision_seed_and_settings_make_another_search(config, tmp_path):
    flags = ("--precision", "bfp8", "--seed", "1", "--set", "ticket.also=[0.6]", "--set", "ticket.rule=consecutive")
    result = call("search", config, "--out", tmp_path, *flags)
    assert result.exit_code == 0, result.output
    folder = folder_of(tmp_path)
    other = folder / "ratio-0.6"
    assert sorted(path.name for path in other.iterdir()) == FILES
    first, second = (lp.Ticket.load(place / "ticket.safetensors") for place in (folder, other))
    assert (first.channels_kept, second.channels_kept) == (8, 6) and second.ratio == 0.6
    saved = json.loads((other / "result.json").read_text())
    assert (saved["seed"], saved["precision"], saved["config"]["ticket"]["rule"]) == (1, "bfp8", "consecutive")
    assert "seed 1, ratio 0.6" in result.output and "energies are of bfp8" in result.output


@pytest.mark.parametrize("groups", ["batch_norm", "coupled"])
def test_a_residual_stream_narrows_with_coupled_groups_alone(config, tmp_path, groups):
    settings = ("model={name: preresnet, depth: 8, width: 4}", f"ticket.groups={groups}")
    result = call("search", config, "--out", tmp_path, *(part for of in settings for part in ("--set", of)))
    assert result.exit_code == 0, result.output
    folder = folder_of(tmp_path)
    rows = {row["layer"]: row for row in csv.DictReader((folder / "widths.csv").open())}
    stream, first = rows["layer2.0.conv2"], rows["layer2.0.conv1"]
    assert (int(stream["out_after"]) < int(stream["out_before"])) == (groups == "coupled")
    assert int(first["out_after"]) < int(first["out_before"])
    ticket = lp.Ticket.load(folder / "ticket.safetensors")
    model = build_model(load_config(config, settings).model, (1, 8, 8), 10, seed=5)
    small = lp.compact(model, ticket, torch.zeros(2, 1, 8, 8))
    small.load_state_dict(load_file(folder / "model.safetensors"))
    assert (ticket.groups is None) == (groups == "batch_norm")


# ---- kills -------------------------------------------------------------------------------------------------------


def test_interrupted_after_an_epoch_it_goes_on(finished, config, tmp_path, monkeypatch):
    real, trained = StageRun._advance, []

    def advance(self, epoch, accuracy):
        real(self, epoch, accuracy)
        trained.append(epoch)
        if len(trained) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRun, "_advance", advance)
    stopped = call("search", config, "--out", tmp_path)
    assert stopped.exit_code == 130 and "run the same command again" in stopped.output
    assert call("search", config, "--out", tmp_path).exit_code == 0
    assert len(trained) == len(set(trained)) and ticket_of(tmp_path).distance(ticket_of(finished[0])) == 0


@pytest.mark.parametrize("killed_at", ["save_picture", "widths_picture"])
def test_killed_while_the_files_are_written(finished, config, tmp_path, monkeypatch, killed_at):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(search_module, killed_at, die)
        assert call("search", config, "--out", tmp_path).exit_code == 130
    assert not (folder_of(tmp_path) / "result.json").exists()
    monkeypatch.setattr(StageRun, "_train", None)
    assert call("search", config, "--out", tmp_path).exit_code == 0
    assert sorted(path.name for path in folder_of(tmp_path).iterdir()) == FILES
    assert ticket_of(tmp_path).distance(ticket_of(finished[0])) == 0


def test_kill_9_and_the_same_command_again(finished, config, tmp_path):
    command = [sys.executable, "-c", "from lowprec_eb.cli import app; app()", "search", str(config), "--out"]
    killed = subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("stages/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    result = call("search", config, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert ticket_of(tmp_path).distance(ticket_of(finished[0])) == 0
    mine, other = (load_file(folder_of(out) / "model.safetensors") for out in (tmp_path, finished[0]))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--precision", "bpf8"), "bpf8"),
        (("--set", "ticket.ratoi=0.3"), "ratio"),
        (("--set", "ticket.ratio=1.5"), "ratio must be between 0 and 1"),
        (("--set", "device=cuda"), "torch sees no GPU"),
        (("--seed", "-1"), "seed must be"),
    ],
)
def test_settings_that_are_refused(config, tmp_path, flags, message):
    if message.startswith("torch") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = call("search", config, "--out", tmp_path, *flags)
    assert result.exit_code == 2 and message in result.output
    assert not list(tmp_path.rglob("state.safetensors"))


def test_a_damaged_result_is_named(finished, config, tmp_path):
    assert call("search", config, "--out", tmp_path).exit_code == 0
    (folder_of(tmp_path) / "result.json").write_text("{}")
    result = call("search", config, "--out", tmp_path)
    assert result.exit_code == 2 and "not the result of a search" in result.output and "delete it" in result.output


def test_a_search_that_diverges(config, tmp_path):
    result = call("search", config, "--out", tmp_path, "--set", "training.learning_rate=1e18")
    assert result.exit_code == 2 and "learning_rate" in result.output and not list(tmp_path.glob("*-search-*"))


# ---- tickets -----------------------------------------------------------------------------------------------------


def ticket(seed, ratio=0.5, widths=(8, 40)):
    generator = torch.Generator().manual_seed(seed)
    masks = {f"norm{place}": torch.rand(width, generator=generator) > ratio for place, width in enumerate(widths)}
    return lp.Ticket(masks, ratio, 4, precision="bfp8")


def test_a_ticket_is_shown(tmp_path):
    one = ticket(0)
    one.save(tmp_path / "one.safetensors")
    result = call("ticket", "show", tmp_path / "one.safetensors", "--plot", "--out", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    for name, mask in one.masks.items():
        assert [name, "channel", str(mask.numel()), str(one.widths[name])] in [line[:4] for line in lines]
    assert "settled after 4 epochs, one group per BatchNorm, precision bfp8" in result.output
    assert (tmp_path / "pictures" / "one.png").read_bytes()[:4] == b"\x89PNG"


def test_two_tickets_are_compared(tmp_path):
    one, two = ticket(0), replace(ticket(1), on_time=False)
    for name, of in (("a/ticket", one), ("b/ticket", two)):
        of.save(tmp_path / f"{name}.safetensors")
    files = tmp_path / "a/ticket.safetensors", "--compare", tmp_path / "b/ticket.safetensors"
    result = call("ticket", "show", *files, "--plot", "--out", tmp_path / "both.png")
    assert result.exit_code == 0, result.output
    assert f"mask distance {one.distance(two):.4g}" in result.output and "not settled, of epoch 4" in result.output
    sums = next(line.split() for line in result.output.splitlines() if line.startswith("all"))
    parts = list(one.compare(two).values())
    assert sums[-4:] == [str(sum(of[part] for of in parts)) for part in ("both", "first", "second", "neither")]
    assert (tmp_path / "both.png").exists()


def test_tickets_of_different_models_and_other_files(tmp_path):
    ticket(0).save(tmp_path / "one.safetensors")
    ticket(0, widths=(8, 41)).save(tmp_path / "two.safetensors")
    result = call("ticket", "show", tmp_path / "one.safetensors", "--compare", tmp_path / "two.safetensors")
    assert result.exit_code == 2 and "same layers and widths" in result.output
    result = call("ticket", "show", tmp_path / "none.safetensors")
    assert result.exit_code == 2 and "no such" in result.output
    (tmp_path / "text.safetensors").write_text("text")
    assert call("ticket", "show", tmp_path / "text.safetensors").exit_code == 2


# ---- pictures ----------------------------------------------------------------------------------------------------


def layer(name, before, after, macs):
    return LayerWidths(name, "Conv2d", (3, 3), (before, after), (9, 9), macs)


def test_a_picture_of_widths_has_a_bar_before_and_after_for_each_layer(tmp_path):
    layers = [layer("one", 8, 4, (80, 40)), layer("two", 16, 16, (60, 30)), layer("norm", 8, 8, (0, 0))]
    figure = widths_picture(layers, "title")
    channels, macs = figure.axes
    assert [bar.get_width() for bar in channels.patches] == [8, 16, 4, 16]
    assert [bar.get_width() for bar in macs.patches] == [80, 60, 40, 30]
    assert [text.get_text() for text in channels.texts] == ["8 → 4", "16"]
    assert [label.get_text() for label in channels.get_yticklabels()] == ["one", "two"]
    save_picture(figure, tmp_path / "widths.png")
    many = [layer(f"l{place}", 4, 2, (place + 1, 1)) for place in range(MOST_LAYERS + 5)]
    figure = widths_picture(many, "title")
    assert len(figure.axes[0].texts) == MOST_LAYERS and "of 65" in figure.get_suptitle()
    assert figure.axes[0].get_yticklabels()[0].get_text() == "l5"
    with pytest.raises(ValueError, match="no layer that multiplies"):
        widths_picture(layers[2:], "title")


def test_a_picture_of_a_ticket_has_a_strip_a_group():
    one, two = ticket(0), ticket(1)
    axes = ticket_picture(one, "one").axes[0]
    drawn = [image.get_array()[0] for image in axes.images]
    for cells, mask in zip(drawn, one.masks.values(), strict=True):
        each = cells.reshape(mask.numel(), -1, 3)
        colours = {tuple(row[0]) for row, kept in zip(each, mask, strict=True) if kept}
        others = {tuple(row[0]) for row, kept in zip(each, mask, strict=True) if not kept}
        assert len(colours) == len(others) == 1 and colours != others and (each == each[:, :1]).all()
    figure = compared_tickets(one, two, ("a", "b"), "a and b")
    assert f"{one.distance(two):.3f}" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["both keep", "only a", "only b", "neither"]
    assert len({tuple(map(tuple, image.get_array()[0])) for image in figure.axes[0].images}) == 2
    with pytest.raises(ValueError, match="same layers"):
        compared_tickets(one, ticket(0, widths=(8,)), ("a", "b"), "")
