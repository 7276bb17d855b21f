"""The models that other tests rely on: they run, train, export, and are what their names say."""

import pytest
import torch
import zoo
from torch import nn


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_runs_forward_and_backward(name):
    model, x = zoo.build(name)
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) < 200_000
    zoo.output_loss(model(x)).backward()
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        # A layer's key bias changes no softmax; everything else must be reached.
        assert bool((parameter.grad != 0).any()) or key.endswith("k.bias"), key


@pytest.mark.parametrize("name", zoo.MODELS)
def test_exports(name):
    model, x = zoo.build(name)
    model.eval()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_seed_decides_everything(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = zoo.build(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, x = zoo.build(name, seed=3)
    other, _ = zoo.build(name, seed=4)
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    x += 1
    assert not torch.equal(x, zoo.MODELS[name][1])  # an example may be changed by who got it
    differ = [key for key in states[0] if not torch.equal(states[0][key], states[2][key])]
    assert {key.rpartition(".")[2] for key in differ} >= {"weight"}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_no_two_channels_of_a_normalisation_look_alike(name):
    norms = [module for module in zoo.build(name)[0].modules() if isinstance(module, zoo.NORMS)]
    assert bool(norms) == (name != "lenet")
    for norm in norms:
        assert norm.weight.unique().numel() == norm.weight.numel()
        assert bool((norm.weight > 0).all())


def kinds(name):
    return {type(module) for module in zoo.build(name)[0].modules()}


def test_the_properties_that_tests_choose_them_for():
    convolutions = {name: [m for m in zoo.build(name)[0].modules() if isinstance(m, nn.Conv2d)] for name in zoo.MODELS}
    for name in ("mobilenet_v2", "mobilenet_v3"):
        assert any(conv.groups == conv.in_channels > 1 for conv in convolutions[name])
    assert any(1 < conv.groups < conv.in_channels for conv in convolutions["resnext"])
    assert len(convolutions["vgg16_bn"]) == 13
    assert len(convolutions["resnet18"]) == 17 + 3
    assert len(convolutions["resnet50"]) == 49 + 4
    assert nn.ConvTranspose2d in kinds("unet")
    assert nn.MultiheadAttention in kinds("vit_multihead")
    assert nn.MultiheadAttention not in kinds("vit_by_hand")
    assert {nn.BatchNorm1d, nn.Conv1d} <= kinds("conv1d")
    assert nn.RMSNorm in kinds("decoder_grouped_query")
    tied, _ = zoo.build("decoder_tied")
    assert tied.lm_head.weight is tied.wte.weight
    attention = zoo.build("decoder_grouped_query")[0].layers[0].self_attn
    assert attention.num_key_value_heads < attention.num_heads
    two, x = zoo.build("two_heads")
    assert set(two(x)) == {"map", "logits"}
    shared, x = zoo.build("shared_layer")
    calls = []
    shared.shared.register_forward_hook(lambda *_: calls.append(1))
    shared(x)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["decoder_tied", "decoder_grouped_query"])
def test_decoders_do_not_see_later_words(name):
    model, tokens = zoo.build(name)
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % zoo.WORDS
    same = (model.eval()(tokens) == model(changed)).all(-1)
    assert bool(same[:, :7].all())
    assert not bool(same[:, 7:].any())
