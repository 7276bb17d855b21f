"""Compaction of torchvision's, timm's and transformers' own models, and of compacted models in ONNX."""

import copy
import io

import pytest
import torch
import zoo
from model_cases import torchvision
from torch import nn

import lowprec_eb as lp
from lowprec_eb.models import PreResNetSettings, build_model
from lowprec_eb.tickets import channel_groups

pytestmark = pytest.mark.interop

# name -> (image side, whether it has BatchNorm2d)
NETS = {
    "vgg16_bn": (32, True),
    "resnet18": (64, True),
    "resnet50": (64, True),
    "mobilenet_v2": (64, True),
    "mobilenet_v3_small": (64, True),
    "densenet121": (64, True),
    "efficientnet_b0": (64, True),
    "regnet_y_400mf": (64, True),
    "resnext50_32x4d": (64, True),
    "googlenet": (64, True),
    "squeezenet1_0": (64, False),
    "convnext_tiny": (64, False),
    "vit_b_16": (32, False),
}


def build(name):
    side, _ = NETS[name]
    torch.manual_seed(0)
    options = {"image_size": side} if name.startswith("vit") else {}
    if name == "googlenet":
        options = {"init_weights": False}  # with its auxiliary classifiers, which only training runs
    return getattr(torchvision().models, name)(weights=None, **options), torch.randn(4, 3, side, side)


def assert_equal_outputs(model, ticket, small, inputs, call=lambda model, x: model(x)):
    """In eval mode, and with batch statistics; dropout and stochastic depth are left out.

    Batch statistics of a few values amplify the last bits of float32 from layer to layer, so those are compared in
    float64.
    """
    masked = copy.deepcopy(model)
    ticket.apply(masked)
    for training in (False, True):
        if training:
            masked, small = masked.double(), copy.deepcopy(small).double()
            inputs = inputs.double() if isinstance(inputs, torch.Tensor) else inputs
        for of in (masked, small):
            of.eval()
            for module in of.modules():
                module.training = training and isinstance(module, nn.BatchNorm2d)
        with torch.no_grad():
            wanted, got = call(masked, inputs), call(small, inputs)
        assert torch.allclose(wanted, got, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "coupled"), [(n, c) for n, (_, norms) in NETS.items() for c in (True, False) if c or norms]
)
def test_torchvision(name, coupled):
    model, x = build(name)
    ticket = zoo.random_ticket(channel_groups(model, x, coupled), coupled)
    small = lp.compact(model, ticket, x)
    assert_equal_outputs(model, ticket, small, x)
    assert sum(p.numel() for p in small.parameters()) < 0.85 * sum(p.numel() for p in model.parameters())


def test_auxiliary_classifiers_are_cut_with_what_they_read():
    model, x = build("googlenet")
    ticket = zoo.random_ticket(channel_groups(model, x, True), True)
    small, masked = lp.compact(model, ticket, x).double(), copy.deepcopy(model).double()
    ticket.apply(masked)
    for of in (masked, small):
        of.train()
        for module in of.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    with torch.no_grad():
        for wanted, got in zip(masked(x.double()), small(x.double()), strict=True):
            assert torch.allclose(wanted, got, atol=1e-5 * float(wanted.abs().max()))


def test_the_published_preresnet_101():
    model, x = (
        build_model(PreResNetSettings(depth=101, block="bottleneck"), (3, 32, 32), 10, 0),
        torch.randn(2, 3, 32, 32),
    )
    for coupled in (True, False):
        ticket = zoo.random_ticket(channel_groups(model, x, coupled), coupled)
        assert_equal_outputs(model, ticket, lp.compact(model, ticket, x), x)


def test_a_model_that_torch_pruning_cannot_read_says_so():
    model = torchvision().models.shufflenet_v2_x0_5(weights=None)
    with pytest.raises(ValueError, match="cannot read how ShuffleNetV2 couples its channels"):
        channel_groups(model, torch.zeros(2, 3, 64, 64))


def test_timm_attention_with_one_projection_for_all():
    torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    groups = channel_groups(model, x)
    assert {group.unit for group in groups} == {"channel", "head"}
    ticket = zoo.random_ticket(groups, True)
    assert_equal_outputs(model, ticket, lp.compact(model, ticket, x), x)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_transformers(kind):
    torchvision()  # transformers looks for it
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=48)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))
    else:
        config = transformers.BertConfig(**sizes, intermediate_size=48)
        model = transformers.BertForMaskedLM(config)
    inputs = (
        {"input_ids": torch.randint(50, (2, 7)), "use_cache": False}
        if kind != "bert"
        else {"input_ids": torch.randint(50, (2, 7))}
    )
    groups = channel_groups(model.eval(), inputs)
    if kind == "gpt2":  # its layers are transformers' own Conv1D
        assert not len(groups) and any("mlp" in name for name in groups.unprunable)
        return
    heads = [group for group in groups if group.unit == "head"]
    assert [group.channels for group in heads] == [2 if kind == "llama" else 4] * 2, groups
    ticket = zoo.random_ticket(groups, True)
    small = lp.compact(model, ticket, inputs)
    assert_equal_outputs(model, ticket, small, inputs, lambda model, x: model(**x).logits)


@pytest.mark.parametrize(("name", "coupled"), [("resnet18", True), ("preresnet", False), ("vit_b_16", True)])
def test_compacted_models_in_onnx(name, coupled):
    runtime = pytest.importorskip("onnxruntime")
    if name == "preresnet":
        model, x = build_model(PreResNetSettings(depth=20), (3, 32, 32), 10, 0), torch.randn(4, 3, 32, 32)
    else:
        model, x = build(name)
    small = lp.compact(model, zoo.random_ticket(channel_groups(model, x, coupled), coupled), x).eval()
    file = io.BytesIO()
    torch.onnx.export(small, (x,), file, dynamo=False)  # the newer exporter needs a package of its own
    session = runtime.InferenceSession(file.getvalue())
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = small(x).detach()
    assert torch.allclose(wanted, torch.from_numpy(got), rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
