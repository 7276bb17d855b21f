"""Accumulation in chunks: every GEMM of every layer against plain sums of its products, one after the other."""

import math

import pytest
import torch
from accumulation_reference import accumulated, of_convolution, of_einsum, of_linear, of_matmul
from layer_cases import CASES, build, results
from torch import nn
from torch.nn import functional as F

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.precision import Precision
from lowprec_eb.quantize import draw_seeds

FP16_OF_WANG = lp.Float(6, 9)
COARSE = lp.Float(6, 3)
WHOLE = lp.FixedPoint(4, 0)  # whole numbers from -8 to 7: float32 sums of their products are exact


class Function(nn.Module):
    def __init__(self, function, weight=None):
        super().__init__()
        self.function, self.weight = function, weight

    def forward(self, *args):
        return self.function(*args) if self.weight is None else self.function(*args, self.weight)


def layer_case(layer, shape):
    return layer, shape, of_convolution(layer)


LAYERS = {
    "linear": (nn.Linear(11, 9, bias=False), (8, 11), of_linear),
    "linear on tokens": (nn.Linear(11, 9, bias=False), (2, 4, 11), of_linear),
    "einsum": (
        Function(lambda x, w: torch.einsum("nhd,hdo->nho", x, w), nn.Parameter(torch.zeros(2, 9, 8))),
        (8, 2, 9),
        of_einsum,
    ),
    "conv1d": layer_case(nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), (3, 3, 8)),
    "conv2d": layer_case(nn.Conv2d(3, 4, (3, 2), padding=(0, 1), bias=False), (2, 3, 4, 3)),
    "conv2d grouped": layer_case(nn.Conv2d(4, 6, 2, dilation=2, groups=2, padding=3, bias=False), (2, 4, 3, 3)),
    "conv2d of a larger stride": layer_case(nn.Conv2d(2, 3, 2, stride=3, bias=False), (2, 2, 6, 7)),
    "conv3d": layer_case(nn.Conv3d(2, 2, 2, stride=(1, 2, 1), bias=False), (2, 2, 2, 4, 3)),
    "transposed 1d": layer_case(nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1, bias=False), (2, 4, 5)),
    "transposed beyond": layer_case(
        nn.ConvTranspose1d(4, 4, 2, stride=2, padding=1, dilation=4, output_padding=3, bias=False), (3, 4, 5)
    ),
    "transposed grouped": layer_case(
        nn.ConvTranspose2d(4, 6, 2, stride=(2, 1), padding=1, groups=2, bias=False), (2, 4, 3, 3)
    ),
}  # fmt: skip
MATMULS = {
    "batches": ((3, 6, 11), (3, 11, 5)),
    "one matrix on the right": ((3, 6, 11), (11, 5)),
    "one matrix on the left": ((6, 11), (3, 11, 5)),
    "broadcast": ((2, 1, 6, 9), (3, 9, 5)),
    "a vector": ((11,), (3, 11, 5)),
}


def whole(*shape):
    return torch.randint(-8, 8, shape).float()


def run(module, inputs, error=None):
    """Output, the error, and the gradients w.r.t. the inputs and the weight."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = module(*leaves)
    error = whole(*y.shape) if error is None else error
    y.backward(error.to(y))
    return y.detach(), error, [x.grad for x in leaves]


def in_chunks(chunk, fmt=COARSE, **settings):
    return Precision(accumulator=fmt, accumulator_chunk=chunk, **settings)


def seen_by(layer, x, chunk):
    layer.weight = nn.Parameter(whole(*layer.weight.shape))
    model = nn.Sequential(layer)
    lp.lower(model, in_chunks(chunk, weight=WHOLE, activation=WHOLE, error=WHOLE))
    layer.zero_grad()
    y, error, (grad,) = run(layer, [x])
    lp.raise_(model)
    return error, (y, grad, layer.weight.grad)


@pytest.mark.parametrize("chunk", [1, 4, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_every_gemm_of_a_layer_rounds_its_running_sum(name, chunk):
    torch.manual_seed(0)
    layer, shape, products_of = LAYERS[name]
    x = whole(*shape)
    error, found = seen_by(layer, x, chunk)
    products = products_of(x.double(), layer.weight.detach().double(), error.double())
    for result, terms in zip(found, products, strict=True):
        assert terms.shape[-1] > chunk and result.numel() == terms[..., 0].numel()
        assert torch.equal(result.double().view(terms.shape[:-1]), accumulated(terms, COARSE, chunk))
        assert not torch.equal(result.double().view(terms.shape[:-1]), lp.quantize(terms.sum(-1), COARSE))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", MATMULS)
def test_every_gemm_of_two_activations_rounds_its_running_sum(name, chunk):
    torch.manual_seed(0)
    a, b = (whole(*shape) for shape in MATMULS[name])
    model = nn.Sequential(Function(torch.matmul))
    lp.lower(model, in_chunks(chunk), functional=True)
    y, error, (grad_a, grad_b) = run(model[0], [a, b])
    matrix, wide_error = (a[None], error[..., None, :]) if a.dim() == 1 else (a, error)
    products = of_matmul(matrix.double(), b.double(), wide_error.double())
    for result, terms in zip((y, grad_a, grad_b), products, strict=True):
        expected = accumulated(terms, COARSE, chunk)
        assert terms.shape[-1] > chunk or name == "a vector"
        assert torch.equal(result.double(), expected.view(result.shape))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}], ids=str)
def test_an_embedding_sums_only_where_a_row_was_read(options, chunk):
    torch.manual_seed(0)
    index = torch.tensor([[2, 1, 2, 1, 1, 2], [1, 2, 6, 1, 2, 1]])
    layer = nn.Embedding(7, 4, **options)
    layer.weight = nn.Parameter(whole(7, 4) + 0.3)
    model = nn.Sequential(layer)
    lp.lower(model, in_chunks(chunk))
    y = layer(index)
    assert torch.equal(y, lp.quantize(layer.weight[index], COARSE))  # a lookup sums nothing
    error = whole(*y.shape) * 12 + 1  # 12: quotients by the number of occurrences are whole
    y.backward(error)
    for row in range(7):
        read = error[index == row].double().T  # (features, occurrences)
        if row == options.get("padding_idx") or not read.numel():
            assert not layer.weight.grad[row].any()
            continue
        share = read.shape[1] if "scale_grad_by_freq" in options else 1
        if share == 1:
            assert torch.equal(layer.weight.grad[row].double(), accumulated(read, COARSE, chunk))
        else:
            assert torch.allclose(layer.weight.grad[row].double(), accumulated(read / share, COARSE, chunk))


@pytest.mark.parametrize("chunk", [2, 3])
def test_attention_sums_each_of_its_products_in_chunks(chunk):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 5, 8) for _ in range(3))
    model = nn.Sequential(Function(F.scaled_dot_product_attention))

    def attend(chunk):
        lp.lower(model, in_chunks(chunk), functional=True)
        return model[0](query, key, value)

    def product(a, b):
        return accumulated((a[..., :, None, :] * b.mT[..., None, :, :]).double(), COARSE, chunk).float()

    found = attend(chunk)
    assert torch.equal(found, product(torch.softmax(product(query * 8**-0.5, key.mT), -1), value))
    assert (found != attend(None)).float().mean() > 0.1


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed grouped"])
def test_of_any_numbers_the_sums_are_those_of_float64_but_for_neighbours(name, chunk):
    """Where float32 puts a partial sum on the other side of a boundary, a running sum lands on the neighbour."""
    torch.manual_seed(0)
    layer, shape, products_of = LAYERS[name]
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    model, x = nn.Sequential(layer), torch.randn(shape)
    lp.lower(model, in_chunks(chunk, FP16_OF_WANG))
    y = layer(x.requires_grad_())
    error = torch.randn_like(y)
    y.backward(error)
    lp.raise_(model)
    products = products_of(x.detach().double(), layer.weight.detach().double(), error.double())
    for result, terms in zip((y.detach(), x.grad, layer.weight.grad), products, strict=True):
        expected = accumulated(terms, FP16_OF_WANG, chunk).view(result.shape)
        largest = terms.cumsum(-1).abs().amax()
        apart = (result - expected).abs()
        assert apart.max() <= 2 * math.ceil(terms.shape[-1] / chunk) * largest * 2**-9
        assert (apart == 0).float().mean() > 0.99


# ---- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward_zero"])
@pytest.mark.parametrize("case", CASES)
def test_a_chunk_as_long_as_the_sum_rounds_once(case, rounding):
    def found(chunk):
        model, x = build(case)
        lp.lower(model, in_chunks(chunk, rounding=rounding))
        torch.manual_seed(5)
        return results(model, x)

    once, whole_sum = found(None), found(10**6)
    assert all(torch.equal(value, whole_sum[name]) for name, value in once.items())
    assert any(not torch.equal(value, once[name]) for name, value in found(2).items())


def sums_of_ones(length, chunk):
    """By each of the three GEMMs."""
    narrowing, widening = nn.Linear(length, 1, bias=False), nn.Linear(1, length, bias=False)
    model, x = nn.Sequential(narrowing, widening), torch.ones(length, 1, requires_grad=True)
    for layer in model:
        nn.init.ones_(layer.weight)
    lp.lower(model, in_chunks(chunk, FP16_OF_WANG))
    widening(x).backward(torch.ones(length, length))
    return narrowing(torch.ones(1, length)).item(), x.grad[0].item(), widening.weight.grad[0].item()


@pytest.mark.parametrize(("chunk", "expected"), [(1, 1024), (64, 2048), (None, 2048)])
def test_swamping(chunk, expected):
    """1024 + 1 is 1024 in 9 mantissa bits: a sum of ones stops there, one of 64s goes on (Wang et al. 2018)."""
    assert sums_of_ones(2048, chunk) == (expected, expected, expected)


def test_swamping_in_a_convolution():
    model = nn.Sequential(nn.Conv2d(128, 1, 4, bias=False))
    nn.init.ones_(model[0].weight)
    for chunk, expected in ((1, 1024), (64, 2048)):
        lp.lower(model, in_chunks(chunk, FP16_OF_WANG))
        assert model(torch.ones(1, 128, 4, 4)).item() == expected


def test_stochastic_rounding_does_not_stall():
    """Beyond 1024 an addition of one steps by two half of the time: independent steps, of variance one each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 400, bias=False))
    nn.init.ones_(model[0].weight)
    lp.lower(model, in_chunks(1, FP16_OF_WANG, rounding="stochastic"))
    found = model(torch.ones(1, 2048)).detach().double()
    deviation = math.sqrt(1024)
    assert abs(found.mean() - 2048) < 4 * deviation / math.sqrt(400)
    assert 0.85 < found.std() / deviation < 1.15
    model.eval()
    assert (model(torch.ones(1, 2048)) == 1024).all()  # evaluation rounds to nearest


def test_random_bits_go_on_where_those_of_the_rounding_before_ended():
    """Of one seed for each GEMM: the partial sum of chunk c is rounding 2c, the running sum after it 2c + 1."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 6, bias=False)), whole(5, 12)
    model[0].weight = nn.Parameter(whole(6, 12))
    lp.lower(model, in_chunks(4, rounding="stochastic"))
    torch.manual_seed(3)
    y, error, (grad,) = run(model, [x])
    torch.manual_seed(3)
    seeds = draw_seeds(7)[4:]  # after those of the four operands
    expected = of_linear(x.double(), model[0].weight.detach().double(), error.double())
    for result, products, seed in zip((y, grad, model[0].weight.grad), expected, seeds, strict=True):

        def number(values, turn, fmt, seed=seed):
            return lp.quantize(values, fmt, "stochastic", seed=seed, offset=turn * values.numel())

        assert torch.equal(result.double(), accumulated(products, COARSE, 4, number))


def test_formats_with_scales_find_one_for_each_sum():
    torch.manual_seed(0)
    for fmt in (lp.BlockFloat(6, 0), lp.Int(6), lp.MX(lp.FP4_E2M1, 2)):
        model, x = nn.Sequential(nn.Linear(12, 6, bias=False)), whole(4, 12)
        model[0].weight = nn.Parameter(whole(6, 12))
        lp.lower(model, in_chunks(5, fmt))
        products = (x[:, None] * model[0].weight.detach()).double()
        assert torch.allclose(model(x).double(), accumulated(products, fmt, 5))


# ---- in whole models ----------------------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(5, 4), nn.Conv1d(4, 4, 3, stride=2), nn.Linear(12, 3)

    def forward(self, index):
        return self.head(self.conv(self.table(index).mT).flatten(1))


def test_compiled_as_one_graph_it_computes_the_same():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, index = Everything(), torch.randint(5, (2, 7))
    lp.lower(model, in_chunks(9, FP16_OF_WANG, rounding="stochastic"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def gradients(of):
        model.zero_grad()
        torch.manual_seed(1)
        y = of(index)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters())]

    for found, expected in zip(gradients(compiled), gradients(model), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_operands_are_summed_in_float32():
    """In bfloat16 itself a sum of ones would stop at 256."""
    model = nn.Sequential(nn.Linear(300, 2, bias=False))
    nn.init.ones_(model[0].weight)
    lp.lower(model, in_chunks(1, lp.Float(8, 15)))
    x = torch.ones(1, 300, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16 and y.tolist() == [[300, 300]]
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and (x.grad == 2).all()


def test_double_precision_stays_double():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(9, 4, bias=False).double()), torch.randn(3, 9, dtype=torch.float64)
    lp.lower(model, in_chunks(2, FP16_OF_WANG))
    products = x[:, None] * model[0].weight.detach()
    assert torch.equal(model(x), accumulated(products, FP16_OF_WANG, 2))


def test_an_override_has_a_chunk_of_its_own():
    precision = in_chunks(1, FP16_OF_WANG, overrides=[("1", in_chunks(64, FP16_OF_WANG)), ("2", Precision())])
    model = nn.Sequential(*(nn.Linear(2048, 1, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.ones_(layer.weight)
    lp.lower(model, precision)
    assert [layer(torch.ones(1, 2048)).item() for layer in model] == [1024, 2048, 2048]


def test_a_chunk_changes_no_count():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    x = torch.zeros(2, 3, 6, 6, requires_grad=True)
    found = []
    for chunk in (None, 2):
        lp.lower(model, in_chunks(chunk))
        found.append(em.count(model, x))
    assert found[0] == found[1] and found[0].macs["grad_weight"] > 0


def test_the_trace_shows_what_the_whole_accumulation_lost():
    model = nn.Sequential(nn.Linear(2048, 3, bias=False))
    nn.init.ones_(model[0].weight)
    x = torch.ones(2, 2048)
    seen = {}
    for chunk in (1, 64):
        lp.lower(model, in_chunks(chunk, FP16_OF_WANG))
        trace = lp.trace_quantization(model, x)
        seen[chunk] = {item.gemm: item for item in trace.operands}
        assert seen[chunk].keys() == {"output", "grad_weight"}
        assert seen[chunk]["output"].elements == 6 and seen[chunk]["grad_weight"].elements == 3 * 2048
    assert seen[64]["output"].snr_db == math.inf and seen[64]["output"].largest == 2048
    assert seen[1]["output"].snr_db == pytest.approx(10 * math.log10(4))  # half of the sum is lost


def test_the_trace_counts_what_saturated_on_the_way():
    """8 + 8 is clamped to 7.5, whatever comes later."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[4.0, 4.0, -4.0]]))
    lp.lower(model, in_chunks(1, lp.FixedPoint(4, 0)))
    with torch.no_grad():
        assert model(torch.ones(1, 3)).item() == 3
    (item,) = (i for i in lp.trace_quantization(model, torch.ones(1, 3)).operands if i.gemm == "output")
    assert item.saturation_rate == 1 and item.largest == 4
