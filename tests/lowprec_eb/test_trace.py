"""trace_quantization(): numbers worked out by hand, and a model that is left as it was."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from layer_cases import SelfAttention
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from torch import nn

import lowprec_eb as lp
from lowprec_eb import rounder
from lowprec_eb.report.trace_pictures import trace_picture, write_trace_picture

FIXED = lp.FixedPoint(4, 1)  # -4 to 3.5 in steps of 0.5


def one_layer(precision, weight):
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    lp.lower(model, precision)
    return model


def found(trace, operand, gemm=None, layer="0", product=0):
    (one,) = (
        item
        for item in trace.operands
        if (item.layer, item.product, item.operand, item.gemm) == (layer, product, operand, gemm)
    )
    return one


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    lp.lower(model, lp.precision("bfp8", activation=lp.Rounded(lp.Int(8), running=0.9), normalization=lp.Int(8)))
    return model, torch.randn(2, 3, 6, 6)


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_rates_noise_and_range_by_hand():
    model = one_layer(lp.Precision(activation=FIXED), torch.ones(1, 4))
    trace = lp.trace_quantization(model, torch.tensor([[5.0, 0.2, -0.6, 0.0]]))  # rounded: 3.5, 0, -0.5, 0
    (item,) = trace.operands
    assert (item.operand, item.gemm, item.fmt, item.rounding) == ("activation", None, FIXED, "nearest")
    assert (item.elements, item.saturation_rate, item.overflow_rate, item.nonfinite_rate) == (4, 1 / 4, 0, 0)
    assert item.underflow_rate == pytest.approx(1 / 3)
    assert item.snr_db == pytest.approx(10 * math.log10((25 + 0.04 + 0.36) / (1.5**2 + 0.2**2 + 0.1**2)), abs=1e-5)
    assert (item.smallest, item.largest) == (pytest.approx(0.2), 5)


def test_errors_are_those_of_the_loss():
    model = one_layer(lp.Precision(error=FIXED), torch.tensor([[1.0], [2.0]]))
    x, factors = torch.ones(1, 1), torch.tensor([[0.1, 3.0]])
    item = found(lp.trace_quantization(model, x, lambda y: (y * factors).sum()), "error")
    assert (item.underflow_rate, item.saturation_rate, item.largest) == (1 / 2, 0, 3)
    assert item.snr_db == pytest.approx(10 * math.log10(9.01 / 0.01), abs=1e-4)
    item = found(lp.trace_quantization(model, x), "error")  # mean square of (1, 2): errors (1, 2)
    assert (item.smallest, item.largest, item.snr_db) == (1, 2, math.inf)


def test_every_operand_by_gemm_and_only_what_is_rounded():
    precision = lp.Precision(
        weight=lp.PerGemm(output=FIXED, grad_input=lp.Int(8)), activation=FIXED, error=FIXED, output=FIXED,
        accumulator=lp.FP16,
    )  # fmt: skip
    model = one_layer(precision, torch.ones(1, 2))
    trace = lp.trace_quantization(model, torch.ones(3, 2, requires_grad=True))
    assert [(item.operand, item.gemm) for item in trace.operands] == [
        ("activation", None), ("weight", "output"), ("weight", "grad_input"), ("error", None),
        ("accumulator", "output"), ("accumulator", "grad_input"), ("accumulator", "grad_weight"), ("output", None),
    ]  # fmt: skip
    assert found(trace, "weight", "grad_input").fmt == lp.Int(8)
    assert found(trace, "accumulator", "output").elements == 3
    model.requires_grad_(False)
    for wanted in (False, True):
        trace = lp.trace_quantization(model, torch.ones(3, 2, requires_grad=wanted))
        assert any(item.operand == "error" for item in trace.operands) == wanted


def test_overflow_infinities_and_zeros():
    overflowing = lp.Float(4, 3, specials="ieee", overflow="infinity")
    model = one_layer(lp.Precision(activation=overflowing, weight=overflowing), torch.zeros(1, 4))
    trace = lp.trace_quantization(model, torch.tensor([[1e6, 1.0, math.nan, math.inf]]))
    item = found(trace, "activation")
    assert (item.overflow_rate, item.nonfinite_rate, item.saturation_rate) == (1 / 4, 2 / 4, 0)
    assert (item.snr_db, item.smallest, item.largest) == (-math.inf, 1, 1e6)
    zeros = found(trace, "weight")
    assert (zeros.snr_db, zeros.smallest, zeros.largest, zeros.underflow_rate) == (math.inf, 0, 0, 0)


@pytest.mark.parametrize(
    ("fmt", "ratio", "saturated"),
    [
        (lp.Float(4, 3, specials="nan", overflow="nan"), -math.inf, 0),
        (lp.FP8_E4M3, 10 * math.log10((1e6**2 + 1) / (1e6 - 448) ** 2), 2 / 3),
    ],
)
def test_an_infinity_that_came_is_no_noise_and_a_nan_from_rounding_is(fmt, ratio, saturated):
    model = one_layer(lp.Precision(activation=fmt), torch.zeros(1, 3))
    item = found(lp.trace_quantization(model, torch.tensor([[1e6, 1.0, math.inf]])), "activation")
    assert item.snr_db == pytest.approx(ratio) and item.saturation_rate == saturated
    assert (item.overflow_rate > 0) == (ratio < 0 and math.isinf(ratio))


def test_blocks_beyond_their_range_and_the_prescale_that_prevents_it():
    x = torch.full((1, 32), 0.5)
    x[0, 0] = 7.5  # at the block's scale of 1, elements end at 6; 3/4 of it is 5.625
    plain, scaled = (one_layer(lp.Precision(activation=fmt), torch.ones(1, 32)) for fmt in (
        lp.MXFP4, lp.Rounded(lp.MXFP4, prescale=3 / 4)))  # fmt: skip
    assert found(lp.trace_quantization(plain, x), "activation", "output").saturation_rate == 1 / 32
    assert found(lp.trace_quantization(scaled, x), "activation", "output").saturation_rate == 0


def test_set_bits_are_the_format():
    model = one_layer(lp.Precision(activation=lp.Int(8)), torch.ones(1, 4))
    x = torch.tensor([[1.0, 0.4, 0.1, -1.0]])
    lp.set_bits(model, {"activation": 2})
    item = found(lp.trace_quantization(model, x), "activation")
    assert item.fmt == lp.Int(2) and item.underflow_rate == 1 / 2
    assert item.snr_db == pytest.approx(10 * math.log10(2.17 / 0.17), abs=1e-4)


def test_a_rotation_is_rounded_as_it_is():
    model = one_layer(lp.Precision(activation=FIXED, hadamard=2), torch.ones(1, 2))
    item = found(lp.trace_quantization(model, torch.tensor([[3.0, 0.0]])), "activation", "output")
    assert item.largest == item.smallest == pytest.approx(3 / math.sqrt(2))  # rounded to 2
    assert item.snr_db == pytest.approx(20 * math.log10(2.12132 / 0.12132), abs=1e-3)


def test_shared_layers_and_several_calls_add_up():
    layer = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(layer, layer)
    lp.lower(model, lp.Precision(activation=FIXED))
    assert found(lp.trace_quantization(model, torch.ones(3, 2)), "activation").elements == 12


def test_attention_has_four_products_and_a_second_activation():
    torch.manual_seed(0)
    model = SelfAttention()
    lp.lower(model, lp.Precision(activation=lp.MXFP8_E4M3, weight=lp.MXFP8_E4M3, error=lp.MXFP8_E4M3))
    trace = lp.trace_quantization(model, torch.randn(2, 5, 8))
    weights = {item.product for item in trace.operands if item.operand == "weight"}
    second = {item.product for item in trace.operands if item.operand == "second activation"}
    assert weights == {0, 3} and second == {1, 2}
    assert {item.layer for item in trace.operands} == {"attention"}
    assert found(trace, "second activation", "output", "attention", 1).elements == 2 * 2 * 5 * 4
    assert "attention #2" in text_of(trace.table())


def test_normalisation_and_the_error_at_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    lp.lower(model, lp.Precision(normalization=FIXED))
    factors = torch.tensor([[5.0, 0.1]])
    trace = lp.trace_quantization(model, torch.tensor([[1.0, 2.0]]), lambda y: (y * factors).sum())
    assert [(item.layer, item.operand) for item in trace.operands] == [("1", "error"), ("1", "normalization")]
    error, result = trace.operands
    assert (error.saturation_rate, error.underflow_rate, error.largest) == (1 / 2, 1 / 2, 5)
    assert error.snr_db == pytest.approx(10 * math.log10(25.01 / 2.26), abs=1e-4)
    assert result.largest == pytest.approx(1, abs=1e-2)


# ---- what is left alone ------------------------------------------------------------------------------------------


def state_of(model):
    scopes = [m.lowering for m in model.modules() if hasattr(m, "lowering")]
    tensors = [*model.state_dict().values(), *(r for s in scopes for r in s.ranges.values()), torch.get_rng_state()]
    return [t.clone() for t in tensors], [p.grad for p in model.parameters()], [m.training for m in model.modules()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(training, fails):
    model, x = convolutions()
    model(x).sum().backward()
    model.train(training)
    called = []
    model[0].weight.register_post_accumulate_grad_hook(called.append)
    tensors, gradients, modes = state_of(model)
    values = [gradient.clone() for gradient in gradients]
    buffers = list(model.buffers())
    if fails:
        with pytest.raises(ZeroDivisionError):
            lp.trace_quantization(model, x, lambda y: 1 / 0)
    else:
        lp.trace_quantization(model, x)
    tensors_after, gradients_after, modes_after = state_of(model)
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_after, strict=True))
    assert all(a is b for a, b in zip(gradients, gradients_after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, values, strict=True))
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert modes == modes_after and called == [] and rounder.watchers == []


def test_it_sees_what_the_next_step_will_do():
    model, x = convolutions()
    trace = lp.trace_quantization(model, x)
    assert trace == lp.trace_quantization(model, x)
    assert found(trace, "weight").rounding == "stochastic"
    seen = []
    with rounder.watching(seen.append):
        model(x)
    weight = next(one for one in seen if one.operand == "weight")
    exact, rounded = weight.x.detach().double(), weight.rounded.double()
    noise = (rounded - exact).square().sum()
    ratio = 10 * (exact.square().sum() / noise).log10()
    assert found(trace, "weight").snr_db == pytest.approx(float(ratio))
    model.eval()
    assert found(lp.trace_quantization(model, x), "weight").rounding == "nearest"


def test_under_no_grad_and_beside_another_model():
    model, x = convolutions()
    other, y = convolutions()

    def loss(output):
        other(y)  # another lowered model runs meanwhile
        return output.square().mean()

    alone = lp.trace_quantization(model, x)
    with torch.no_grad():
        assert lp.trace_quantization(model, x, loss) == alone


def test_compiled_models_run_as_written_and_need_not_be_compiled_again():
    from torch._dynamo.testing import CompileCounter  # takes seconds

    model, x = convolutions()
    counter = CompileCounter()
    compiled = torch.compile(model.eval(), backend=counter, fullgraph=True)
    before = compiled(x)
    frames = counter.frame_count
    assert lp.trace_quantization(compiled, x) == lp.trace_quantization(model, x)
    assert torch.equal(compiled(x), before) and counter.frame_count == frames == 1


# ---- batches and refusals ----------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x, y):
        return {"first": self.layer(x), "second": [y]}


def test_batches_of_several_inputs_and_layers_that_were_not_reached():
    model = TwoInputs()
    lp.lower(model, "bfp8")
    x, y = torch.ones(1, 2), torch.ones(1, 2)
    torch.manual_seed(0)
    assert lp.trace_quantization(model, (x, y)) == lp.trace_quantization(model, {"y": y, "x": x})
    trace = lp.trace_quantization(model, [x, y], lambda out: out["first"].sum())
    assert trace.not_reached == ("unused",) and "Nothing to round: unused" in text_of(trace.table())


def test_refusals():
    model = nn.Sequential(nn.Linear(2, 2))
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="no lowered layer"):
        lp.trace_quantization(model, x)
    lp.lower(model, "fp32")
    with pytest.raises(ValueError, match="rounded anything"):
        lp.trace_quantization(model, x)
    lp.lower(model, "bfp8")
    with pytest.raises(ValueError, match=r"one element, got shape \(1, 2\)"):
        lp.trace_quantization(model, x, lambda y: y)
    with pytest.raises(ValueError, match="got a float"):
        lp.trace_quantization(model, x, lambda y: 1.0)
    with pytest.raises(ValueError, match="'worst' or 'layer'"):
        lp.trace_quantization(model, x).table("size")


# ---- what people see ---------------------------------------------------------------------------------------------


def text_of(table):
    console = Console(width=120, color_system=None)
    with console.capture() as text:
        console.print(table)
    return text.get()


def test_worst_first_or_by_layer():
    model, x = convolutions()
    trace = lp.trace_quantization(model, x)
    ratios = [item.snr_db for item in trace.worst()]
    assert ratios == sorted(ratios) and trace.worst(2) == trace.worst()[:2]
    layers = [item.layer for item in trace.operands]
    assert layers == sorted(layers) and set(layers) == {"0", "1", "5"}
    first = [line.split()[0] for line in text_of(trace.table("layer")).splitlines()[4 : 4 + len(layers)]]
    assert first == layers
    assert len(str(trace).splitlines()) == len(layers)
    assert "NaN" not in text_of(trace.table())


def test_json_and_csv_hold_every_number(tmp_path):
    model = one_layer(lp.Precision(activation=FIXED, output=lp.FP32), torch.ones(1, 2))
    trace = lp.trace_quantization(model, torch.tensor([[0.7, 2.0]]))
    trace.to_json(tmp_path / "trace.json")
    trace.to_csv(tmp_path / "trace.csv")
    tree = json.loads((tmp_path / "trace.json").read_text())
    with (tmp_path / "trace.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [row["snr_db"] for row in tree["operands"]] == [trace.operands[0].snr_db, "inf"]
    for line, row, item in zip(lines, tree["operands"], trace.operands, strict=True):
        assert float(line["snr_db"]) == float(row["snr_db"]) == item.snr_db
        assert float(line["largest"]) == row["largest"] == item.largest
        assert line["fmt"] == row["fmt"] == repr(item.fmt)
    assert lines[1]["gemm"] == "" and tree["operands"][1]["gemm"] is None


def deep(layers):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(layers)))
    lp.lower(model, lp.Precision(weight=FIXED, activation=lp.FP16, error=lp.FP8_E5M2, output=lp.Int(8)))
    return lp.trace_quantization(model, torch.randn(4, 8))


@pytest.mark.parametrize("layers", [1, 60])
def test_the_picture_is_legible(layers, tmp_path):
    trace = deep(layers)
    figure = trace_picture(trace)
    FigureCanvasAgg(figure).draw()
    noise, saturated, underflow = figure.axes
    labels = [label for label in noise.get_yticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == [f"{n}.0" for n in range(layers)]
    boxes = np.array([label.get_window_extent().extents for label in labels])
    assert (boxes[:-1, 1] >= boxes[1:, 3]).all()  # one above the other
    ticks = np.array([t.label1.get_window_extent().extents for t in noise.xaxis.get_major_ticks()])
    ticks = ticks[np.argsort(ticks[:, 0])]
    assert (ticks[:-1, 2] <= ticks[1:, 0]).all()
    for axes in (noise, saturated, underflow):
        assert "[" in axes.get_xlabel() and len(axes.lines) >= len({(i.operand, i.gemm) for i in trace.operands})
        assert axes.xaxis.get_label().get_window_extent().x1 < figure.bbox.x1
    assert figure.get_figheight() < 16
    path = write_trace_picture(trace, tmp_path / "new" / "trace.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="PNG"):
        write_trace_picture(trace, tmp_path / "trace.pdf")


def test_points_lie_where_the_numbers_are():
    trace = deep(2)
    noise, _, underflow = trace_picture(trace).axes
    series = {item.operand + (f" for {item.gemm}" if item.gemm else "") for item in trace.operands}
    lines = {line.get_label(): line for line in noise.lines if line.get_marker() != "None"}
    below = {line.get_label(): line for line in underflow.lines}
    assert lines.keys() == below.keys() == series
    for name, line in lines.items():
        items = [i for i in trace.operands if name == i.operand + (f" for {i.gemm}" if i.gemm else "")]
        known = [item.snr_db for item in items if math.isfinite(item.snr_db)]
        finite = [math.isfinite(item.snr_db) for item in items]
        assert np.asarray(line.get_xdata())[finite] == pytest.approx(known)
        assert list(below[name].get_xdata()) == pytest.approx([100 * item.underflow_rate for item in items])
        assert [round(row) for row in line.get_ydata()] == [int(item.layer[0]) for item in items]
