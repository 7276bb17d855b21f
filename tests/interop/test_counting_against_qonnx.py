"""MACs, bit-ops and non-zeros of each layer, against QONNX's inference cost of the same nets exported to ONNX.

QONNX reads the bits of an operand from a Quant node before the layer; it knows nothing of torch or of this project.
"""

import io
import warnings

import pytest
import torch
from torch import nn

import energy_models as em
import lowprec_eb as lp

onnx = pytest.importorskip("onnx")
wrapper = pytest.importorskip("qonnx.core.modelwrapper")
cost = pytest.importorskip("qonnx.util.inference_cost")

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
DOMAIN = "qonnx.custom_op.general"
GEMMS = ("Conv", "Gemm", "MatMul")


class SeparableBlock(nn.Module):
    """A residual block with a depthwise and a pointwise convolution."""

    def __init__(self, channels, stride):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, 2 * channels, 1)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)

    def forward(self, x):
        return (self.pointwise(self.depthwise(x).relu()) + self.shortcut(x)).relu()


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, (3, 1), padding=(1, 0)),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 10),
    )


def strided_and_dilated():
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=(2, 1), padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, dilation=2),
        nn.Conv2d(6, 4, 2, stride=3, dilation=(1, 2), padding=1),
    )


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False),
        nn.Conv2d(12, 24, 3, groups=3, stride=2),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, groups=24, dilation=2),
        nn.Conv2d(24, 12, 1, groups=4),
    )


def separable():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), SeparableBlock(8, 1), SeparableBlock(16, 2), nn.AvgPool2d(4))


def mlp_over_images():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))


class OverASequence(nn.Module):
    """1-d convolutions, then linear layers at every position."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 5, padding=2, dilation=1, groups=1)
        self.head = nn.Linear(8, 6)

    def forward(self, x_nchw):
        return self.head(self.conv(x_nchw.flatten(2)).transpose(1, 2))


def volume():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, (2, 3, 3), stride=(1, 2, 2)), nn.Conv3d(4, 4, (1, 3, 3), groups=2)
    )


NETS = [plain, strided_and_dilated, grouped, separable, mlp_over_images, OverASequence, volume]
BITS = {
    "uniform": [(8, 4)],
    "mixed": [(8, 8), (4, 2), (3, 5), (16, 4)],
    "weights only": [(32, 4)],
}  # activation, weight
nets = pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)


def layers_of(model):
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


def bits_of(model, pattern):
    """Layer -> bits of activation and weight, taking turns."""
    return {name: pattern[number % len(pattern)] for number, name in enumerate(layers_of(model))}


def exported(model, x):
    """As an ONNX graph whose nodes are named after the modules, batch normalisation left beside its convolution."""
    file = io.BytesIO()
    training = torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; the other names no modules and is slow
        torch.onnx.export(
            model, (x,), file, dynamo=False, training=training, do_constant_folding=False, input_names=["x"]
        )
    return onnx.load_from_string(file.getvalue())


def with_quant_nodes(graph, bits):
    """A Quant node in front of each operand of each product; 32 bits are left alone."""
    nodes = []
    for node in graph.graph.node:
        if node.op_type in GEMMS:
            layer = node.name.rpartition("/")[0].strip("/").replace("/", ".")
            for place, (operand, width) in enumerate(zip(("activation", "weight"), bits[layer], strict=True)):
                if width < 32:
                    nodes.append(quant_node(graph, f"{layer}.{operand}", node.input[place], width))
                    node.input[place] = nodes[-1].output[0]
            node.doc_string = layer
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return graph


def quant_node(graph, name, source, width):
    constants = {"scale": 2.0**-width, "zero_point": 0.0, "bit_width": float(width)}
    for constant, value in constants.items():
        graph.graph.initializer.append(
            onnx.helper.make_tensor(f"{name}.{constant}", onnx.TensorProto.FLOAT, [], [value])
        )
    inputs = [source, *(f"{name}.{constant}" for constant in constants)]
    options = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    return onnx.helper.make_node("Quant", inputs, [f"{name}.quantized"], domain=DOMAIN, **options)


def by_qonnx(model, x, bits, path, discount_sparsity=False):
    """Layer -> (MACs, bit-ops)."""
    graph = wrapper.ModelWrapper(with_quant_nodes(exported(model.eval(), x), bits))
    options = {"discount_sparsity": discount_sparsity, "cost_breakdown": True}
    found = cost.inference_cost(graph, output_onnx=str(path / "counted.onnx"), **options)["node_cost"]
    # It gives nodes an order and names of its own; what a node says of itself stays.
    layers = {node.name: node.doc_string for node in onnx.load(path / "counted.onnx").graph.node}
    return {layers[name]: (node["total_macs"], node["total_bops"]) for name, node in found.items()}


def lowered(model, bits):
    def precision(activation, weight):
        formats = {"activation": activation, "weight": weight}
        return lp.Precision(**{key: lp.Int(width) for key, width in formats.items() if width < 32})

    lp.lower(model, lp.Precision(overrides=tuple((name, precision(*own)) for name, own in bits.items())))
    return model


def by_us(counts):
    return {gemm.layer: (gemm.macs, gemm.bit_ops) for gemm in counts.gemms}


@nets
@pytest.mark.parametrize("pattern", BITS.values(), ids=BITS)
def test_macs_and_bit_ops_of_every_layer(make, pattern, tmp_path):
    model, x = make(), torch.randn(2, 3, 16, 16)
    bits = bits_of(model, pattern)
    expected = by_qonnx(model, x, bits, tmp_path)
    assert len(expected) == len(bits)
    assert by_us(em.count(lowered(model, bits), x, training=False)) == expected


@nets
def test_macs_and_bit_ops_after_the_fact(make, tmp_path):
    """The precision put on a count of the plain model."""
    model, x = make(), torch.randn(2, 3, 16, 16)
    bits = bits_of(model, BITS["mixed"])
    expected = by_qonnx(model, x, bits, tmp_path)

    class Mixed:
        def operand_format(self, layer, gemm, operand):
            return lp.FixedPoint(bits[layer][operand == "weight"], 1)

    assert by_us(em.count(model, x, training=False).at(Mixed())) == expected


@nets
def test_non_zeros_of_masked_weights(make, tmp_path):
    model, x = make(), torch.randn(2, 3, 16, 16)
    for name in layers_of(model):
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight.mul_(torch.rand(weight.shape) < 0.3)
    expected = by_qonnx(model, x, bits_of(model, [(32, 32)]), tmp_path, discount_sparsity=True)
    counts = em.count(model, x, training=False)
    # QONNX looks at the weights alone; what a kernel of zeros makes zero behind it is ours to know.
    weights = {gemm.layer: gemm.macs * gemm.b.nonzeros / gemm.b.elements for gemm in counts.gemms}
    assert weights == {layer: pytest.approx(macs) for layer, (macs, _) in expected.items()}
    assert all(gemm.macs - gemm.masked_macs <= weights[gemm.layer] for gemm in counts.gemms)
