"""`lowprec-eb count` finds models of torchvision, timm and Hugging Face by name, and builds them without memory."""

import pytest
from model_cases import torchvision
from typer.testing import CliRunner

import energy_models as em
from lowprec_eb.cli import app
from lowprec_eb.named_models import example_inputs, load_model

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    torchvision()  # which the other two import
    pytest.importorskip("timm")
    pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "found", "shape"),
    [
        ("resnet18", "torchvision:resnet18", (2, 3, 224, 224)),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", (2, 3, 224, 224)),
        ("timm:resnet18", "timm:resnet18", (2, 3, 224, 224)),
        ("timm:inception_v4", "timm:inception_v4", (2, 3, 299, 299)),
    ],
)
def test_names_of_vision_models(name, found, shape):
    named = load_model(name)
    assert named.name == found and all(parameter.is_meta for parameter in named.module.parameters())
    [image] = example_inputs(named, (), 2)
    assert image.is_meta and image.shape == shape


def test_both_libraries_have_the_same_resnet():
    counts = [em.count(n.module, example_inputs(n, (), 1)) for n in map(load_model, ("resnet18", "timm:resnet18"))]
    assert counts[0].macs == counts[1].macs and counts[0].macs["output"] == 1_814_073_344


def test_a_class_of_transformers_has_its_configurations_defaults():
    named = load_model("BertForMaskedLM")
    assert named.name == "hf:BertForMaskedLM" and named.vocabulary == named.module.config.vocab_size
    inputs = example_inputs(named, ("tokens:16",), 3)
    assert {name: tensor.shape for name, tensor in inputs.items()} == {"input_ids": (3, 16)}
    assert em.count(named.module, inputs, training=False).macs["output"] > 0


def test_encoders_and_decoders_and_images():
    assert set(example_inputs(load_model("hf:T5ForConditionalGeneration"), (), 1)) == {"input_ids", "decoder_input_ids"}
    assert example_inputs(load_model("hf:ViTForImageClassification"), (), 1)["pixel_values"].shape == (1, 3, 224, 224)


def test_a_decoder_of_7e9_parameters_takes_no_memory():
    named = load_model("hf:LlamaForCausalLM")
    assert sum(parameter.numel() for parameter in named.module.parameters()) == 6_738_415_616
    assert named.module.config.use_cache is False
    counts = em.count(named.module, example_inputs(named, ("tokens:8",), 1))
    assert counts.tree()["model.layers.31.mlp"].macs["output"] == 8 * 3 * 4096 * 11008


def test_repositories_are_asked_for_their_configuration_alone(monkeypatch, tmp_path):
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(tmp_path)
    monkeypatch.setattr("lowprec_eb.named_models._is_hf", lambda name: True)
    named = load_model(f"hf:{tmp_path}")
    assert type(named.module).__name__ == "GPT2LMHeadModel" and len(named.module.transformer.h) == 1


def test_without_a_network_the_error_names_classes(monkeypatch):
    import transformers

    def offline(name):
        raise OSError("We couldn't connect\nto anything")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    message = "hf:gpt2 is no class of transformers; near names: .*GPT2LMHeadModel.*couldn't connect"
    with pytest.raises(ValueError, match=message):
        load_model("hf:gpt2")
    with pytest.raises(ValueError, match=message):
        load_model("gpt2")


def test_near_names_are_of_all_libraries():
    with pytest.raises(ValueError, match=r"no model is called 'resnet5O'; near names: .*resnet50"):
        load_model("resnet5O")


def test_the_command():
    result = CliRunner().invoke(app, ["count", "vit_b_16", "--inference", "--precision", "bfp8", "--limit", "3"])
    assert result.exit_code == 0, result.output
    assert "torchvision:vit_b_16, 86.6 M parameters" in result.output and "8x8" in result.output
    assert "leaves in float32" not in result.output
