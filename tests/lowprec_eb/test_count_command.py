"""`lowprec-eb count`: models by name, what it prints, writes, draws and refuses."""

import csv
import json
import sys
import types
from itertools import pairwise

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from typer.testing import CliRunner

import energy_models as em
from lowprec_eb import named_models
from lowprec_eb.cli import app
from lowprec_eb.named_models import NamedModel, example_inputs, load_model
from lowprec_eb.named_optimizers import named_optimizer
from lowprec_eb.report.count_pictures import MOST_LAYERS, count_picture, write_count_picture
from lowprec_eb.report.count_tables import build_layer_table, largest, layer_work

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
import neighbour

@dataclass
class Sizes:
    width: int = 4

def neighbours():
    return nn.Linear(Sizes().width, neighbour.WIDTH)

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))

def with_inputs():
    return net(), torch.zeros(5, 3, 8, 8)

def tokens():
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 6))

def reads_values():
    rate = torch.linspace(0, 1, 3)[1].item()
    return nn.Linear(4, int(8 * rate))

class Odd(nn.Module):
    def forward(self, x):
        return torch.special.i0(self.inner(x))
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

def number():
    return 3

class Gram(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
    def forward(self, x):
        return self.inner(x) @ x.T

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(3, 4, 5)
    def forward(self, left, right):
        return self.inner(left, right)
"""
STEM, HEAD = 64 * 4 * 27, 256 * 10


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 7")
    yield path
    sys.modules.pop("neighbour", None)


def invoke(*arguments):
    return CliRunner().invoke(app, ["count", *map(str, arguments)])


def words(text):
    return " ".join(text.split())


# ---- models by name ----------------------------------------------------------------------------------------------


def test_a_function_of_a_file_is_built_without_values(file):
    named = load_model(f"{file}:net")
    assert named.inputs is None and all(parameter.is_meta for parameter in named.module.parameters())
    assert not any(parameter.is_meta for parameter in load_model(f"{file}:net", in_memory=True).module.parameters())


def test_a_file_may_import_its_neighbours(file):
    before = list(sys.path)
    assert load_model(f"{file}:neighbours").module.out_features == 7
    assert sys.path == before


def test_a_function_may_bring_inputs(file):
    named = load_model(f"{file}:with_inputs")
    assert named.inputs.shape == (5, 3, 8, 8)
    assert example_inputs(named, (), 1) is named.inputs
    assert example_inputs(named, ("3x8x8",), 2)[0].shape == (2, 3, 8, 8)


def test_a_function_of_a_module_in_the_working_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        assert isinstance(load_model("nets:net").module, nn.Sequential)
    finally:
        sys.modules.pop("nets", None)
    assert load_model("torch.nn:Identity").name == "torch.nn:Identity"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:nett", r"nets\.py has no function 'nett'; near names: net"),
        ("{file}:number", "must return a torch.nn.Module"),
        ("{file}:reads_values", "cannot be built on the meta device, without values; --in-memory builds it"),
        ("{file}x.py:net", "there is no such file"),
        ("no.such.module:net", "there is no module 'no.such.module'"),
        ("torch.nn:Linaer", "torch.nn has no function 'Linaer'; near names: Linear"),
    ],
)
def test_errors_of_functions(file, name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name.format(file=file))


def test_a_constructor_that_reads_values_is_built_in_memory(file):
    assert load_model(f"{file}:reads_values", in_memory=True).module.out_features == 4


def test_without_libraries_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(named_models, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"no model is called 'resnet50'; not installed: torchvision \(pip install"):
        load_model("resnet50")
    with pytest.raises(ImportError, match=r'timm is not installed: pip install "lowprec-eb\[vision\]"'):
        load_model("timm:resnet50")


def test_a_library_that_cannot_be_imported_is_no_missing_name(monkeypatch):
    def broken(package):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(named_models, "find_spec", lambda package: package)
    monkeypatch.setattr(named_models.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="torchvision is installed but cannot be imported: operator"):
        load_model("torchvision:resnet50")


def fake_torchvision(made):
    def get_model(name, **settings):
        made.append((name, settings))
        return nn.Linear(4, 2)

    models = types.SimpleNamespace(
        list_models=lambda: ["resnet18", "resnet50", "fcn"],
        get_model=get_model,
        get_model_builder=lambda name: (lambda weights_backbone: None) if name == "fcn" else (lambda: None),
    )
    return types.SimpleNamespace(models=models)


def test_libraries_are_asked_for_no_weights(monkeypatch):
    made = []
    monkeypatch.setattr(named_models, "find_spec", lambda package: package if package == "torchvision" else None)
    monkeypatch.setattr(named_models.importlib, "import_module", lambda package: fake_torchvision(made))
    assert load_model("resnet50").name == load_model("torchvision:resnet50").name == "torchvision:resnet50"
    load_model("torchvision:fcn")
    assert made == [*2 * [("resnet50", {"weights": None})], ("fcn", {"weights": None, "weights_backbone": None})]
    with pytest.raises(ValueError, match="torchvision has no model 'resnet5'; near names: resnet50, resnet18"):
        load_model("torchvision:resnet5")
    with pytest.raises(ValueError, match=r"near names: resnet50.*; not installed: timm .*, transformers "):
        load_model("resnet51")


# ---- inputs ------------------------------------------------------------------------------------------------------

PLAIN = NamedModel("plain", nn.Identity())
IMAGES = NamedModel("images", nn.Identity(), defaults={"": "3x6x6"})
TEXT = NamedModel("text", nn.Identity(), None, {"input_ids": "tokens:16", "decoder_input_ids": "tokens:16"}, 50)


def test_inputs_without_values():
    image, tokens, mask = example_inputs(PLAIN, ("3x6x6", "tokens:7", "bool:7"), 4)
    assert image.is_meta and (image.shape, image.dtype) == ((4, 3, 6, 6), torch.float32)
    assert not tokens.is_meta and (tokens.shape, tokens.dtype, mask.dtype) == ((4, 7), torch.int64, torch.bool)


def test_inputs_by_name_and_by_the_library():
    assert example_inputs(IMAGES, (), 2)[0].shape == (2, 3, 6, 6)
    named = example_inputs(PLAIN, ("left=3", "right=bfloat16:4"), 2)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in named.items()} == {
        "left": ((2, 3), torch.float32),
        "right": ((2, 4), torch.bfloat16),
    }
    assert {
        name: x.shape for name, x in example_inputs(TEXT, ("tokens:9", "decoder_input_ids=int64:3"), 2).items()
    } == {
        "input_ids": (2, 9),
        "decoder_input_ids": (2, 3),
    }


def test_inputs_with_values():
    inputs = example_inputs(TEXT, (), 2, values=True)["input_ids"]
    assert 0 <= inputs.min() < inputs.max() < 50
    assert not example_inputs(IMAGES, (), 2, values=True)[0].is_meta


@pytest.mark.parametrize(
    ("named", "specs", "batch", "message"),
    [
        (PLAIN, (), 1, "plain does not say what it takes: give --input"),
        (
            NamedModel("audio", nn.Identity(), defaults={"input_values": ""}),
            (),
            1,
            "audio does not say what shape input_values has",
        ),
        (PLAIN, ("3x",), 1, "write it as 64x3x3"),
        (PLAIN, ("int65:3",), 1, "'int65' is no type of torch"),
        (PLAIN, ("a=3", "4"), 1, "give each input a name"),
        (PLAIN, ("3",), 0, "--batch must be 1 or more, got 0"),
    ],
)
def test_errors_of_inputs(named, specs, batch, message):
    with pytest.raises(ValueError, match=message):
        example_inputs(named, specs, batch)


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_row_a_layer_and_totals(file):
    result = invoke(f"{file}:net", "--input", "3x8x8", "--batch", "2")
    assert result.exit_code == 0, result.output
    text = words(result.output)
    assert "2x3x8x8 float32; one training step: forward, backward" in text
    assert "0 Conv2d 1: 128 x 4 x 27 13.8 k 0 13.8 k 32x32 64.3 %" in text
    assert "3 Linear 1: 2 x 10 x 256 5.12 k 5.12 k 5.12 k 32x32 35.7 %" in text
    assert "MACs 43.0 k" in text and "FLOPs of the GEMMs (2 a MAC) 86.0 k" in text
    assert "1 MAC is 1 multiplication and 1 addition" in text and "not counted: nothing" in text
    assert "built in" in text and "counted in" in text


def test_inference_and_the_inputs_of_the_function(file):
    text = words(invoke(f"{file}:with_inputs", "--inference").output)
    assert "5x3x8x8 float32; one inference: forward" in text and f"MACs {5 * (STEM + HEAD) / 1000:.1f} k" in text
    assert "grad_input" not in text


def test_precisions_stand_side_by_side(file):
    result = invoke(f"{file}:net", "--input", "3x8x8", "--precision", "bfp8", "--precision", "fp32")
    text = words(result.output)
    assert "total bfp8 fp32" in text and "8 x 8 21.5 k 0" in text and "32 x 32 0 21.5 k" in text
    assert f"bit-ops (MACs x bits x bits) {(2 * STEM + 3 * HEAD) * 64 / 1e6:.2f} M" in text
    assert "8x8" in text and "All but the totals is in bfp8" in text


def test_what_a_precision_leaves_alone_is_said(file):
    arguments = f"{file}:Gram", "--input", "4", "--batch", "2", "--precision", "bfp8"
    assert "bfp8 leaves in float32 33.3 % of the MACs, in (model)" in words(invoke(*arguments).output)
    assert "leaves in float32" not in invoke(*arguments, "--functional").output


def test_a_precision_needs_something_to_lower(file):
    result = invoke(f"{file}:Two", "--input", "3", "--input", "4", "--precision", "bfp8")
    assert result.exit_code == 2 and "nothing" in result.output


def test_an_optimizers_step_is_added(file, tmp_path):
    table = tmp_path / "rows.csv"
    arguments = f"{file}:net", "--input", "3x8x8", "--optimizer", "sgd:momentum=0.9", "--csv", table
    text = words(invoke(*arguments).output)
    assert "forward, backward, sgd:momentum=0.9" in text and "optimizer ops" in text
    rows = [row for row in csv.DictReader(table.open()) if row["part"] == "optimizer"]
    assert sum(int(row["elements"]) for row in rows) == 4 * 27 + 4 + 256 * 10 + 10
    quantized = words(invoke(*arguments, "--precision", "bfp8").output)
    assert "optimizer ops" in quantized
    kinds = [row["kind"] for row in csv.DictReader(table.open()) if row["part"] == "optimizer"]
    assert "quantizer" in kinds  # the recipe's formats of what the optimizer keeps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamx", "torch has no optimizer 'adamx'; did you mean 'adam"),
        ("sgd:momentun=0.9", "unexpected keyword argument 'momentun'"),
        ("sgd:0.9", "settings need names"),
        ("sgd:momentum=", "write it as sgd:momentum=0.9"),
        ("sgd:momentum=-1", "Invalid momentum value"),
    ],
)
def test_errors_of_optimizers(text, message):
    with pytest.raises(ValueError, match=message):
        named_optimizer(text, nn.Linear(2, 2))


def test_settings_of_optimizers_are_python_values():
    optimizer = named_optimizer("AdamW:betas=(0.9,0.95),weight_decay=5e-4", nn.Linear(2, 2))
    assert optimizer.defaults["betas"] == (0.9, 0.95) and optimizer.defaults["weight_decay"] == 5e-4


def test_a_papers_bookkeeping_stands_beside_the_exact_count(file):
    text = words(invoke(f"{file}:net", "--input", "3x8x8", "--compat", "early_bird").output)
    assert "MACs exact MACs early_bird ratio" in text
    assert f"all {(2 * STEM + 3 * HEAD) / 1000:.1f} k {3 * (STEM + HEAD) / 1000:.1f} k" in text


def test_tokens_and_the_tree(file):
    text = words(invoke(f"{file}:tokens", "--input", "tokens:7", "--by", "tree", "--depth", "1").output)
    assert "(model)" in text and "MACs share output grad_input grad_weight" in text and "1x7 int64" in text


def test_by_kind_shows_totals_alone(file):
    text = words(invoke(f"{file}:net", "--input", "3x8x8", "--by", "kind").output)
    assert "Conv2d" not in text and "relu" in text and "forward ops" in text


def test_what_has_no_formula_is_named_or_an_error(file):
    arguments = f"{file}:Odd", "--input", "4"
    assert "not counted: aten.i0 in (model)" in words(invoke(*arguments).output)
    strict = invoke(*arguments, "--strict")
    assert strict.exit_code == 2 and "strict: no formula" in words(strict.output)


def test_two_inputs_and_values(file):
    for extra in ((), ("--values",)):
        text = words(invoke(f"{file}:Two", "--input", "left=3", "--input", "right=4", *extra).output)
        assert "left: 1x3 float32, right: 1x4 float32" in text and "not counted" in text


def test_files_parse_back(file, tmp_path):
    table, tree, png = tmp_path / "new" / "rows.csv", tmp_path / "count.json", tmp_path / "pictures"
    result = invoke(*(f"{file}:net", "--input", "3x8x8", "--csv", table, "--json", tree, "--plot", "--out", png))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.open()))
    whole = json.loads(tree.read_text())
    assert sum(int(row["macs"]) for row in rows) == whole["totals"]["total_macs"] == 2 * STEM + 3 * HEAD
    assert [row["layer"] for row in rows if row["gemm"] == "output"] == ["0", "3"]
    [picture] = png.iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert all(f"wrote {path}" in result.output for path in (table, tree, picture))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "4x8x8"], "fails on input 1x4x8x8 float32"),
        (["--input", "3x8x8", "--precision", "bpf8"], "did you mean 'bfp8'?"),
        (["--input", "3x8x8", "--limit", "0"], "--limit must be 1 or more"),
        (["--input", "3x8x8", "--plot", "--out", "picture.svg"], "pictures are PNG files"),
        (["--input", "3x8x8", "--by", "tree", "--depth", "-1"], "depth must be 0 or more"),
        ([], "does not say what it takes"),
        (["--input", "3x8x8", "--inference", "--optimizer", "adam"], "--optimizer needs a training step"),
    ],
)
def test_bad_input_stops_with_a_clear_line(file, arguments, message):
    result = invoke(f"{file}:net", *arguments)
    assert result.exit_code == 2
    assert message in words(result.output) and "Traceback" not in result.output


# ---- the table ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    layers = [nn.Linear(8, 8 if n % 3 else 16) if n % 3 != 1 else nn.Linear(16, 8) for n in range(9)]
    return em.count(nn.Sequential(*layers), torch.zeros(4, 8))


def test_the_table_keeps_the_largest_layers_in_order(deep):
    work = layer_work(deep)
    assert [item.layer for item in largest(work, 4)] == ["1", "3", "4", "6"]
    _, shown = build_layer_table(work, {}, limit=3)
    assert len(shown) == 3 and len(build_layer_table(work, {})[1]) == 9
    assert [item.total for item in layer_work(deep, "largest")] == sorted((w.total for w in work), reverse=True)


def test_a_shortened_table_says_so(file):
    text = words(invoke(f"{file}:net", "--input", "3x8x8", "--limit", "1").output)
    assert "The 1 largest of 2 layers with GEMMs, 64.3 % of the MACs; --all shows all." in text
    assert "--all shows all" not in invoke(f"{file}:net", "--input", "3x8x8", "--limit", "1", "--all").output


# ---- the picture -------------------------------------------------------------------------------------------------


def chain(layers):
    blocks = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))) for _ in range(layers // 4)]
    return em.count(nn.Sequential(*blocks), torch.zeros(2, 4))


def panels(figure):
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    return figure.axes


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_bars_are_macs_by_layer_and_gemm(deep):
    layers, kinds, traffic = panels(count_picture(deep, "title"))
    assert labels(layers) == [str(n) for n in range(9)]
    widths = {bars.get_label().split(":")[0]: [bar.get_width() for bar in bars] for bars in layers.containers}
    assert list(widths) == ["output", "grad_input", "grad_weight"] and widths["grad_input"][0] == 0
    assert widths["output"][0] / widths["output"][2] == 2
    assert "[k] by layer" in layers.get_xlabel()
    assert "[GB]" not in kinds.get_xlabel() and "B]" in traffic.get_xlabel()
    assert set(labels(traffic)) >= {"output", "grad_weight", "forward ops"}


def test_the_largest_layers_come_first_where_asked(deep):
    work = layer_work(deep, "largest")
    assert labels(panels(count_picture(deep, order="largest"))[0]) == [item.layer for item in work]


def test_many_layers_are_summed_by_module():
    layers = panels(count_picture(chain(MOST_LAYERS + 4)))[0]
    assert labels(layers) == [str(n) for n in range(MOST_LAYERS // 4 + 1)]
    assert f"by module ({MOST_LAYERS + 4} layers)" in layers.get_xlabel()


def test_more_modules_than_there_is_room_for_have_one_bar_for_the_rest(monkeypatch):
    monkeypatch.setattr("lowprec_eb.report.count_pictures.MOST_LAYERS", 5)
    names = labels(panels(count_picture(chain(32)))[0])
    assert len(names) == 6 and names[-1] == "3 smaller"


@pytest.mark.parametrize("layers", [4, 40, 152])
def test_labels_do_not_overlap(layers):
    for axes in panels(count_picture(chain(layers), "title")):
        extents = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(extents))
        texts = [text.get_window_extent() for text in axes.texts]
        assert all(text.x1 <= axes.get_window_extent().x1 for text in texts)


def test_only_png_and_only_gemms(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        count_picture(em.OpCounts())
    with pytest.raises(ValueError, match=r"ends in \.png"):
        write_count_picture(chain(4), tmp_path / "a.pdf")


def test_a_profile_prices_the_count_and_draws_it(file, tmp_path):
    picture = tmp_path / "count.png"
    result = invoke(f"{file}:net", "--input", "3x8x8", "--profile", "7nm", "--plot", "--out", picture)
    assert result.exit_code == 0, result.output
    assert "modelled energy, 7nm" in words(result.output) and "forward GEMMs" in result.output
    assert picture.stat().st_size > 5000 and (tmp_path / "count_energy.png").stat().st_size > 5000
    unknown = invoke(f"{file}:net", "--input", "3x8x8", "--profile", "3nm")
    assert unknown.exit_code == 2 and "no hardware profile '3nm'" in words(unknown.output)
