"""`benchmarks/on_gpu.sh`, rehearsed on a CPU: interrupted, called again, and on another machine; and its parts."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowprec_eb.config import load_config
from lowprec_eb.report.saved import load_comparison

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
CONFIG = """
name: tiny
task: {data: cifar10, batch_size: 16, validation_fraction: 0.2}
model: {widths: [4, M, 4]}
training: {epochs: 3, learning_rate: 0.05}
ticket: {ratio: 0.5, window: 2, deadline: 2}
seeds: [0, 1]
pipelines:
  - {name: dense, pipeline: full}
  - {name: FF, pipeline: early_bird, ratio: 0.5}
"""
CELLS = """
groups:
  - {name: first, config: CONFIG, arms: [dense, FF], published: vgg16_cifar10}
  - name: controls
    config: CONFIG
    arms: [random]
    published: vgg16_cifar10
    more: [{name: random, pipeline: random_ticket, ratio: 0.5}]
"""


@pytest.fixture
def benchmarks(monkeypatch):
    """The benchmarks' folder, importable as when one of them runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def supplies(tmp_path):
    """A folder with 90 training and 15 test images in an archive like the JPEG copy of CIFAR-10."""
    folder, generator = tmp_path / "supplies", np.random.default_rng(0)
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-jpeg.tar.gz", "w:gz") as archive:
        for split, count in (("train", 30), ("test", 5)):
            for label, name in enumerate(("bird", "cat", "ship")):
                for number in range(count):
                    pixels = generator.integers(0, 80, (8, 8, 3)) + 80 * (np.arange(3) == label)
                    data = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG")
                    member = tarfile.TarInfo(f"cifar-10-jpeg/{split}/{name}/{number:04}.jpg")
                    member.size = data.tell()
                    archive.addfile(member, io.BytesIO(data.getvalue()))
    return folder


@pytest.fixture
def cells(tmp_path):
    config, path = tmp_path / "tiny.yaml", tmp_path / "cells.yaml"
    config.write_text(CONFIG)
    path.write_text(CELLS.replace("CONFIG", str(config)))
    return path


@pytest.fixture
def front_door(tmp_path, supplies, cells):
    """Begins benchmarks/on_gpu.sh for the cells alone."""

    def begin(work, *more):
        environment = os.environ | {
            "DEVICE": "cpu", "WORK": str(tmp_path / work), "CELLS": str(cells), "PIECES": "cells_*",
            "COMMIT": "0123456789", "PIECE_SECONDS": "500", "PYTHON": sys.executable,
            "LOWPREC_EB_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        command = [str(BENCHMARKS / "on_gpu.sh"), str(tmp_path / "out"), str(supplies), *map(str, more)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return begin


def unpacked(out, folder):
    with tarfile.open(out / "results.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "results"


def test_interrupted_half_way_it_goes_on_and_finishes(benchmarks, front_door, tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    first = front_door("work")
    deadline = time.monotonic() + 240
    while not list(work.glob("stages/*/state.safetensors")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    printed, _ = first.communicate(timeout=240)
    assert first.returncode == 128 + signal.SIGINT, printed
    assert "call again to go on" in printed
    trained = {path: path.read_bytes() for path in work.glob("stages/*/ledger.jsonl")}
    assert (out / "results.tar.gz").is_file()

    second = front_door("work")
    printed, _ = second.communicate(timeout=400)
    assert second.returncode == 0, printed
    assert "nothing is left to run" in printed
    assert any(trained.values())
    for path, before in trained.items():
        assert path.read_bytes().startswith(before)  # what was trained stays, and is not trained again
    results = unpacked(out, tmp_path / "first")
    comparison = load_comparison(results / "runs" / "tiny")
    assert [(of.arm, of.seed) for of in comparison.outcomes] == [
        (arm, seed) for arm in ("dense", "FF", "random") for seed in (0, 1)
    ]
    assert not list(results.rglob("*.safetensors"))
    text = (out / "report.md").read_text()
    assert "Commit 0123456 on cpu" in text
    assert "re-encoded as JPEG" in text
    assert "| cells_controls | done | 0 |" in text
    assert "| EB (FF) | 50 |" in text and "absent" in text
    small = [path for path in out.iterdir() if path.is_file()]
    assert len(small) == len(list(out.rglob("*"))) <= 8
    assert all(path.stat().st_size < 16 * 2**20 for path in small)
    _on_another_machine(tmp_path, comparison)


def _on_another_machine(tmp_path, comparison):
    """What came back is enough for nothing to be run again."""
    from gpu_pieces import Piece, Pieces
    from on_gpu import restore

    results = tmp_path / "fresh" / "results"
    results.parent.mkdir()
    restore(results, tmp_path / "out", tmp_path / "nothing")  # the later ones
    again = load_comparison(results / "runs" / "tiny")
    assert again.outcomes == comparison.outcomes and again.rows == comparison.rows
    record = Pieces(results, "a", "0123456789")
    assert all(record.is_settled(Piece(f"cells_{name}", ())) for name in ("first", "controls"))
    (results / "pieces.json").unlink()
    restore(results, tmp_path / "out", None)  # what this machine has goes first
    assert not (results / "pieces.json").exists()


# ---- pieces ------------------------------------------------------------------------------------------------------


def python(code):
    return (sys.executable, "-c", code)


@pytest.fixture
def record(benchmarks, tmp_path):
    """A new record of the same results, at will with other sources."""
    from gpu_pieces import Pieces

    return lambda sources="a": Pieces(tmp_path / "results", sources, "0123456789")


def test_a_finished_piece_is_not_run_twice(benchmarks, record, tmp_path):
    from gpu_pieces import Piece

    piece = Piece("p", python("print('so it is')"))
    assert not record().is_settled(piece)
    ending = record().run(piece, 60, fresh=True)
    assert (ending.state, ending.status, ending.commit) == ("done", 0, "0123456789")
    assert record().is_settled(piece) and record("b").is_settled(piece)
    assert (tmp_path / "results" / "logs" / "p.out").read_text() == "so it is\n"


def test_a_finished_piece_whose_results_are_gone_is_run_again(benchmarks, record):
    from gpu_pieces import Piece

    piece = Piece("p", python("pass"), stands=lambda: False)
    assert record().run(piece, 60, fresh=True).state == "done"
    assert not record().is_settled(piece)


def test_what_failed_is_run_again_only_with_other_sources(benchmarks, record):
    from gpu_pieces import Piece

    piece = Piece("p", python("raise SystemExit(3)"))
    ending = record().run(piece, 60, fresh=True)
    assert (ending.state, ending.status) == ("failed", 3)
    assert record().is_settled(piece) and not record("b").is_settled(piece)


@pytest.mark.parametrize(
    ("goes_on", "fresh", "state"), [(True, True, "unfinished"), (False, False, "unfinished"), (False, True, "failed")]
)
def test_out_of_time(benchmarks, record, tmp_path, goes_on, fresh, state):
    """It is interrupted as by Ctrl-C; one that had a whole call and cannot go on will never be done."""
    from gpu_pieces import Piece

    code = (
        "import pathlib, time\ntry:\n    pathlib.Path('began').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved')\n    raise SystemExit(130)"
    )
    code = code.replace("'began'", repr(str(tmp_path / "began")))
    ending = record().run(Piece("p", python(code), goes_on=goes_on), 3, fresh)
    assert (ending.state, ending.status) == (state, 75)
    assert ending.seconds < 30
    if (tmp_path / "began").exists():
        assert (tmp_path / "results" / "logs" / "p.out").read_text() == "saved\n"


def test_a_piece_that_asks_for_another_call(benchmarks, record):
    from gpu_pieces import Piece

    piece = Piece("p", python("raise SystemExit(75)"), goes_on=True)
    assert record().run(piece, 60, fresh=True).state == "unfinished"
    assert not record().is_settled(piece)


def test_when_a_piece_is_not_begun(benchmarks, record):
    from gpu_pieces import Piece

    slow, steady = Piece("p", (), seconds=200), Piece("q", (), seconds=200, goes_on=True)
    assert record().why_not(slow, 100, fresh=False) == "waits for the next call"
    assert record().why_not(slow, 100, fresh=True) is None
    assert record().why_not(steady, 100, fresh=False) is None
    assert record().why_not(steady, 1, fresh=True) == "waits for the next call"
    lacking = Piece("r", (), needs=("torch", "no-such-package"))
    assert record().why_not(lacking, 500, fresh=True) == "lacks no-such-package"


def test_every_check_is_among_the_pieces(benchmarks, supplies, tmp_path):
    """Of a GPU: what docs/performance.md and docs/reproductions.md say is waiting."""
    import on_gpu

    data = on_gpu.find_cifar10(supplies)
    setting = on_gpu.Setting("cuda", tmp_path, tmp_path, supplies, data, ROOT / "configs" / "gpu" / "cells.yaml", "x")
    found = [piece.name for piece in on_gpu.pieces(setting)]
    cells = [name for name in found if name.startswith(("cells_", "study_"))]
    assert found[-len(cells) :] == cells
    assert cells[:2] == ["cells_vgg16_p50", "cells_vgg16_p50_controls"]
    assert {"study_paper_vgg16", "study_paper_preresnet101", "cells_preresnet101_p50"} < {*cells}
    waiting = {"gpu_tests", "triton_tests", "quantizers", "energy_sensors", "training_rate", "training_rate_compiled",
               "steps_resnet18", "steps_resnet18_compiled", "steps_gpt", "steps_vit", "digits"}  # fmt: skip
    assert {*found} - {*cells} == waiting
    for piece in on_gpu.pieces(setting):
        if piece.command[1].endswith(".py"):
            assert (ROOT / piece.command[1]).is_file()
    without = dataclasses.replace(setting, data=None)
    assert not any(piece.name.startswith("cells_") for piece in on_gpu.pieces(without))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_settings_of_the_digits_are_possible(benchmarks, tmp_path, device):
    import on_gpu

    piece = on_gpu._digits(on_gpu.Setting(device, tmp_path, tmp_path, None, None, tmp_path, "x"))
    words = piece.command
    overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load_config(ROOT / words[words.index("--config") + 1], overrides)
    assert config.workers == 1
    assert len(config.seeds) == (1 if device == "cpu" else 3)


# ---- cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cells", "rehearsal"])
def test_shipped_cells_name_arms_that_there_are(benchmarks, monkeypatch, name):
    from gpu_cells import load_cells

    monkeypatch.chdir(ROOT)
    cells = load_cells(ROOT / "configs" / "gpu" / f"{name}.yaml")
    for group in cells.groups:
        config = cells.config_of(group, [])
        assert {*group.arms} <= {arm.name for arm in config.pipelines}
    if name == "cells":
        everything = [(group.config, arm) for group in cells.groups for arm in group.arms]
        assert len(everything) == len(set(everything)) == 2 * 26  # 25 arms of the paper's, and the random ticket
        assert cells.groups[0].arms == ("dense", "EB FF p50", "EB LL p50")


def test_a_cell_that_is_not_there_is_named(benchmarks, cells):
    from gpu_cells import load_cells

    cells.write_text(cells.read_text().replace("[dense, FF]", "[dense, EF]"))
    found = load_cells(cells)
    with pytest.raises(ValueError, match=r"group first: .* has no arm 'EF'; it has dense, FF, random"):
        found.config_of(found.groups[0], [])
    with pytest.raises(ValueError, match="no group is named 'second'; there are first, controls"):
        found.group("second")


class Silent:
    stage = None

    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@pytest.fixture
def kept(benchmarks, tiny, tmp_path):
    """The results of the tiny comparison of the other tests, opened anew at will."""
    from gpu_results import Origin, Results

    def opened(commit="one", **changes):
        config = dataclasses.replace(tiny, pipelines=tiny.pipelines[:3], seeds=(0,), **changes)
        return config, Results(config, tmp_path / "results", Origin("the digits", "Images: of a test.", "cpu", commit))

    return opened


def test_results_of_other_settings_are_set_aside(kept, tmp_path, monkeypatch):
    from gpu_cells import Group, is_whole, run_group

    config, results = kept()
    group = Group("g", "", ("full fp32",))
    assert run_group(config, group, results, tmp_path, Silent())
    assert kept()[1].finished == {(0, "full fp32")}
    again = kept("two")[1]
    monkeypatch.setattr("gpu_cells.run_arm", lambda *args: pytest.fail("a finished arm was run again"))
    assert run_group(config, group, again, tmp_path, Silent())
    assert is_whole(config, group, tmp_path / "results")
    assert not is_whole(config, Group("h", "", ("full fp32", "LL")), tmp_path / "results")
    config, other = kept(margin=0.5)
    assert other.finished == set()
    assert not is_whole(config, group, tmp_path / "results")  # so it is run again
    (aside,) = (tmp_path / "results" / "runs").glob("tiny-*")
    assert load_comparison(aside).outcomes[0].arm == "full fp32"
    assert load_comparison(aside).notes[0] == "Images: of a test."
    (made,) = json.loads((aside / "provenance.json").read_text())["made"]
    assert (made["arm"], made["seed"], made["commit"]) == ("full fp32", 0, "one")


def test_arms_of_several_commits_and_devices_say_so(kept, tmp_path):
    from gpu_cells import Group, run_group
    from gpu_report import section

    for commit, arm in (("one", "full fp32"), ("two", "slimming fp32")):
        config, results = kept(commit)
        results.origin = dataclasses.replace(results.origin, device=f"GPU {commit}")
        assert run_group(config, Group("g", "", (arm,)), results, tmp_path, Silent())
    text = section(tmp_path / "results")
    assert "- Commit one on GPU one: full fp32 (seed 0)." in text
    assert "- Commit two on GPU two: slimming fp32 (seed 0)." in text
    assert "other device" in text


def test_a_stage_trained_again_elsewhere_is_charged_as_it_was(kept, tmp_path):
    """Another machine has no checkpoint of the dense run that two arms share."""
    from gpu_cells import Group, run_group

    config, results = kept()
    assert run_group(config, Group("g", "", ("slimming fp32",)), results, tmp_path / "here", Silent())
    before = {result.outcome.arm: result.rows for result in results.results}
    config, results = kept("two")
    assert run_group(config, Group("g", "", ("one-shot",)), results, tmp_path / "there", Silent())
    after = {result.outcome.arm: result for result in results.results}
    dense = after["one-shot"].outcome.stages[0]
    assert dense == after["slimming fp32"].outcome.stages[0]
    assert after["one-shot"].rows[dense] == before["slimming fp32"][dense]
    assert [(of["arm"], of["commit"]) for of in results.provenance["made"]] == [
        ("slimming fp32", "one"), ("one-shot", "two"),
    ]  # fmt: skip


def test_a_comparison_never_stands_without_saying_of_what_it_is(kept, tmp_path, monkeypatch):
    import gpu_results
    from gpu_cells import Group, run_group

    def killed(*args):
        raise KeyboardInterrupt

    config, results = kept()
    with monkeypatch.context() as patched:
        patched.setattr(gpu_results, "load_comparison", killed)  # what comes first after it is saved
        patched.setattr(gpu_results.Results, "_record", killed)
        run_group(config, Group("g", "", ("full fp32",)), results, tmp_path, Silent())
    assert not (results.folder / "comparison.json").exists()


def test_out_of_time_leaves_what_is_known(kept, tmp_path):
    from gpu_cells import Clock, Group, run_group

    config, results = kept()
    group, clock = Group("g", "", ("full fp32",)), Clock(deadline=0.0)
    for epochs in (1, 2):
        assert not run_group(config, group, results, tmp_path, clock)
        unfinished = json.loads((results.folder / "unfinished.json").read_text())
        assert (unfinished["arm"], unfinished["seed"], unfinished["last_epoch"]) == ("full fp32", 0, 4)
        assert [epoch["epoch"] for epoch in unfinished["epochs"]] == list(range(epochs))
        assert unfinished["epochs"][0]["measured_j"] is None
    assert run_group(config, group, results, tmp_path, Clock(deadline=1e12))
    assert not (results.folder / "unfinished.json").exists()


# ---- data, supplies, report --------------------------------------------------------------------------------------


def cifar_binary(folder, rows):
    folder.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(bytes(3073 * rows))


def test_which_cifar10_a_folder_holds(benchmarks, supplies, monkeypatch):
    import gpu_data

    assert gpu_data.find_cifar10(supplies).overrides[0] == "task.data=image-folder"
    cifar_binary(supplies / "cifar-10-batches-bin", 4)
    found = gpu_data.find_cifar10(supplies)  # a part of the data set is no match for all of it
    assert (found.data, found.note) == ("image-folder", gpu_data.JPEG_NOTE)
    monkeypatch.setattr(gpu_data, "TRAINING_IMAGES", 4)
    assert gpu_data.find_cifar10(supplies) == gpu_data.Cifar10("cifar10", supplies, None)
    monkeypatch.setattr(gpu_data, "TRAINING_IMAGES", 5)
    (supplies / "cifar-10-jpeg.tar.gz").unlink()
    assert gpu_data.find_cifar10(supplies).note == "Images: 4 of CIFAR-10's 5 training images, no more."


def test_a_folder_without_data_says_what_is_looked_for(benchmarks, tmp_path):
    from gpu_data import find_cifar10

    with pytest.raises(FileNotFoundError, match="has no CIFAR-10: neither data_batch_"):
        find_cifar10(tmp_path)


def test_damaged_data_keep_no_check_from_running(benchmarks, tmp_path, capsys):
    import on_gpu

    cifar_binary(tmp_path / "cifar-10-batches-bin", 4)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(bytes(3000))
    assert on_gpu._data(tmp_path) is None
    assert "data_batch_1.bin" in capsys.readouterr().out


def test_pieces_that_there_are_not(benchmarks, capsys):
    import on_gpu
    from gpu_pieces import Piece

    assert [of.name for of in on_gpu._chosen([Piece("one", ()), Piece("two", ())], "three t*")] == ["two"]
    with pytest.raises(on_gpu.typer.Exit) as ended:
        on_gpu._chosen([Piece("one", ())], "three")
    assert ended.value.exit_code == 2
    assert "PIECES='three': no piece has such a name; there are one" in capsys.readouterr().out


def test_results_of_an_earlier_call_are_taken_or_missed_aloud(benchmarks, tmp_path, capsys):
    import on_gpu

    work, out, earlier = (tmp_path / name for name in ("work", "out", "earlier"))
    results = work / "results"
    results.mkdir(parents=True)
    (results / "found").touch()
    on_gpu.pack(results, earlier)
    for broken in (None, (earlier / on_gpu.ARCHIVE).read_bytes()[:60], b"text"):
        place = tmp_path / "broken"
        place.mkdir(exist_ok=True)
        if broken is not None:
            (place / on_gpu.ARCHIVE).write_bytes(broken)
        with pytest.raises(on_gpu.typer.Exit) as ended:
            on_gpu.restore(work / "again", out, place)
        assert ended.value.exit_code == 2 and not (work / "again").exists()
        assert "begin without it" in capsys.readouterr().out
    on_gpu.restore(work / "again", out, earlier)
    assert (work / "again" / "found").is_file()
    on_gpu.restore(work / "anew", out, None)
    assert not list((work / "anew").iterdir())


def test_the_archive_is_replaced_as_a_whole(benchmarks, tmp_path, monkeypatch):
    import on_gpu

    (tmp_path / "work" / "results").mkdir(parents=True)
    # As between two file systems, killed half-way.
    monkeypatch.setattr("shutil.move", lambda source, target: Path(target).write_bytes(b"half"))
    on_gpu.pack(tmp_path / "work" / "results", tmp_path / "out")
    assert unpacked(tmp_path / "out", tmp_path / "again").is_dir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [on_gpu.ARCHIVE]


def test_wheels_of_what_is_missing_are_installed(benchmarks, tmp_path, monkeypatch):
    folder, site = tmp_path / "supplies" / "wheels", tmp_path / "site"
    folder.mkdir(parents=True)
    for name in ("nowhere_else", "numpy"):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            info, needs = f"{name}-1.0.dist-info", "Requires-Dist: nowhere_at_all\nRequires-Dist: tk; extra == 'gui'\n"
            wheel.writestr(f"{name}.py", "FOUND = True\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    command = [sys.executable, str(BENCHMARKS / "gpu_supplies.py"), str(site), str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"installed from {folder.parent}: nowhere_else\n" in done.stdout  # numpy is there, and stays what it is
    import gpu_supplies

    monkeypatch.syspath_prepend(site)
    assert gpu_supplies.absent_below(["nowhere_else", "torch"]) == {"nowhere_at_all": "nowhere_else"}
    assert (site / "nowhere_else.py").is_file() and not (site / "numpy.py").exists()


def test_what_is_missing_is_said(benchmarks, tmp_path, monkeypatch, capsys):
    import gpu_supplies

    monkeypatch.setattr(gpu_supplies, "requirements", lambda: ["torch", "no-such-package"])
    monkeypatch.setitem(gpu_supplies.OPTIONAL, "no-such-meter", "measured energy")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert gpu_supplies.main(tmp_path / "site", None) == 1
    printed = capsys.readouterr().out
    assert "lacks no-such-meter; without it goes: measured energy" in printed
    assert "this machine lacks no-such-package; put wheels of them into a folder of wheels" in printed


def test_the_section_replaces_what_stands_between_the_marks(benchmarks, tmp_path):
    from gpu_report import BEGIN, END, merge

    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\n## After\n")
    merge("# What a GPU has shown\n\n## first\n\ntext\n", page)
    once = page.read_text()
    assert once == f"# Page\n\n{BEGIN}\n\n## What a GPU has shown\n\n### first\n\ntext\n\n{END}\n\n## After\n"
    merge("# What a GPU has shown\n\n## first\n\ntext\n", page)
    assert page.read_text() == once
    page.write_text(f"{END} {BEGIN}")
    with pytest.raises(ValueError, match=r"page\.md: must have the lines"):
        merge("text", page)


def test_the_page_has_the_marks(benchmarks):
    from gpu_report import BEGIN, END

    text = (ROOT / "docs" / "reproductions.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
