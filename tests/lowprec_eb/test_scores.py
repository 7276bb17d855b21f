"""Scores of channels: each against its formula, and gamma per FLOP against a model that really lost a channel."""

import copy

import pytest
import torch
import zoo
from torch import nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.tickets import SCORES, check_finite, macs_per_channel, plan_compaction, scorer
from lowprec_eb.tickets.scores import Gamma, GradientFlow, PerFlop, Random, Taylor, WeightNorm

COUPLED = ["lenet", "mobilenet_v3", "resnext", "unet", "vit_multihead", "vit_by_hand", "decoder_grouped_query"]


def net():
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(5 * 16, 3)), torch.randn(6, 3, 8, 8)


def gated(model, groups, name, channel):
    """The model as a function of a gate on all that writes one channel."""

    def with_gate(gate):
        values = dict(model.named_parameters())
        for member in next(g for g in groups if g.name == name).members:
            for tensor, dim in member.tensors if member.side == "out" else ():
                full = f"{member.module}.{tensor}"
                if full not in values:
                    continue  # a buffer
                positions = [p for p, c in zip(member.positions, member.channels, strict=True) if c == channel]
                own = torch.zeros(values[full].shape[dim], dtype=torch.float64)
                own[positions] = 1
                shape = [-1 if d == dim else 1 for d in range(values[full].dim())]
                values[full] = values[full] * (1 + (gate - 1) * own).view(shape)
        return values

    return with_gate


def double(name):
    """A zoo model in float64, whose activations are smooth, so that it has second derivatives; and its example."""
    model, x = zoo.build(name)
    model = model.double()
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, key, nn.Softplus())
            if isinstance(child, nn.Dropout):
                child.p = 0.0
    return model, x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", ["vgg16_bn", "conv1d", "vit_multihead"])
def test_taylor_and_gradient_flow_are_derivatives_of_a_gate(name):
    model, x = double(name)
    groups = lp.channel_groups(model, x)

    def loss_of(of):
        return zoo.output_loss(of(x))

    buffers = {key: value.clone() for key, value in model.named_buffers()}
    flow = GradientFlow(loss_of, groups)(model)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    loss_of(model).backward()
    taylor = Taylor(groups)(model)
    for group in (groups[0], groups[-1]):
        gate = torch.ones((), dtype=torch.float64, requires_grad=True)
        values = gated(model, groups, group.name, 1)(gate)
        out = torch.func.functional_call(model, values, (x,))
        (slope,) = torch.autograd.grad(zoo.output_loss(out), gate)
        torch.testing.assert_close(taylor[group.name][1], slope**2, rtol=1e-6, atol=1e-18)

        def half_norm(step, group=group):
            with torch.no_grad():
                moved = gated(model, groups, group.name, 1)(1 + step)
            moved = {key: value.detach().requires_grad_(True) for key, value in moved.items()}
            kept = {key: value.clone() for key, value in buffers.items()}
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                loss = zoo.output_loss(torch.func.functional_call(model, moved | kept, (x,)))
                gradients = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
            return float(sum((g * g).sum() for g in gradients if g is not None)) / 2

        difference = (half_norm(1e-5) - half_norm(-1e-5)) / 2e-5
        assert float(flow[group.name][1]) == pytest.approx(abs(difference), rel=1e-4, abs=1e-12)


def test_gamma_of_coupled_groups_is_the_mean_over_the_norms_that_write_them():
    model, x = zoo.build("resnet18")
    groups = lp.channel_groups(model, x)
    found = Gamma(groups)(model)
    stream = max(groups, key=lambda group: sum("bn" in m.module for m in group.members))
    norms = [
        model.get_submodule(m.module) for m in stream.members if m.side == "out" and "running_mean" in dict(m.tensors)
    ]
    assert len(norms) > 1
    expected = torch.stack([norm.weight.abs() for norm in norms]).mean(0)
    torch.testing.assert_close(found[stream.name], expected)
    paper = Gamma()(model)
    assert {name: tuple(score.shape) for name, score in paper.items()} == {
        name: (module.num_features,) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)
    }


def test_weight_norms_are_those_of_the_filters():
    model, x = net()
    groups = lp.channel_groups(model, x)
    weight = model[3].weight.detach()
    assert torch.allclose(WeightNorm(1, groups)(model)["3"], weight.abs().sum((1, 2, 3)))
    assert torch.allclose(WeightNorm(2, groups)(model)["3"], weight.square().sum((1, 2, 3)).sqrt())
    relative = WeightNorm(1, groups, relative=True)(model)
    assert all(score.mean() == pytest.approx(1) for score in relative.values())
    # One group per BatchNorm: the convolution that writes for it alone is known from the graph.
    paper = lp.channel_groups(model, x, coupled=False)
    assert torch.allclose(WeightNorm(1, paper)(model)["1"], model[0].weight.detach().abs().sum((1, 2, 3)))


def test_the_norm_of_a_head_is_that_of_all_of_its_rows():
    model, x = zoo.build("vit_multihead")
    groups = lp.channel_groups(model, x)
    heads = next(group for group in groups if group.unit == "head")
    module = model.get_submodule(heads.members[0].module)
    rows = module.in_proj_weight.detach().view(3, module.num_heads, module.head_dim, -1)
    torch.testing.assert_close(WeightNorm(2, groups)(model)[heads.name], rows.square().sum((0, 2, 3)).sqrt())


def test_what_selects_from_a_residual_stream_is_scored_by_what_reads_it():
    model, x = zoo.build("preresnet20")
    paper = lp.channel_groups(model, x, coupled=False)
    scores = WeightNorm(1, paper)(model)
    assert {group.name: group.channels for group in paper} == {name: score.numel() for name, score in scores.items()}
    first = next(name for name in scores if name.endswith("bn1"))
    reader = model.get_submodule(first.replace("bn1", "conv1"))
    torch.testing.assert_close(scores[first], reader.weight.detach().abs().sum((0, 2, 3)))


@pytest.mark.parametrize("name", COUPLED)
def test_macs_per_channel_are_those_that_a_compaction_saves(name):
    model, x = zoo.build(name)
    groups = lp.channel_groups(model, x)
    saved = macs_per_channel(model, x, groups)
    dense = em.count(model, x).total_macs
    for group in (groups[0], groups[len(groups) // 2]):
        masks = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in groups}
        masks[group.name][group.channels - 1] = False
        plan = plan_compaction(model, lp.Ticket(masks, 0.0, 0, groups=groups), x)
        small = em.count(plan.apply(model), x).total_macs
        assert int(saved[group.name][-1]) == dense - small > 0


@pytest.mark.parametrize("name", ["unet", "mobilenet_v3"])
def test_macs_per_channel_with_one_group_per_batch_norm(name):
    model, x = zoo.build(name)
    saved = macs_per_channel(model, x)
    dense = em.count(model, x).total_macs
    names = list(saved)
    saves = {one for one in names if saved[one].all()}
    assert (len(saves) == len(names)) == (name == "unet")  # elsewhere others are added to some of them
    for one in (names[0], names[1], names[len(names) // 2]):
        masks = {key: torch.ones(len(score), dtype=torch.bool) for key, score in saved.items()}
        masks[one][1] = False
        small = plan_compaction(model, lp.Ticket(masks, 0.0, 0), x).apply(model)
        assert int(saved[one][1]) == dense - em.count(small, x).total_macs


def test_gamma_per_flop_is_their_ratio_and_counts_once():
    model, x = net()
    per_flop = PerFlop(x)
    macs, gamma = macs_per_channel(model, x)["1"], Gamma()(model)["1"]
    torch.testing.assert_close(per_flop(model)["1"], (gamma / (macs / macs.mean()).float()))
    kept = next(iter(per_flop._macs.values()))
    with torch.no_grad():
        model[1].weight.mul_(3)
    torch.testing.assert_close(per_flop(model)["1"], 3 * gamma)
    assert next(iter(per_flop._macs.values())) is kept


def test_what_saves_nothing_is_dropped_last():
    model, x = zoo.build("sigmoid")
    groups = lp.channel_groups(model, x)
    saved, scores = macs_per_channel(model, x, groups), PerFlop(x, groups)(model)
    stuck = [name for name, macs in saved.items() if not macs.any()]
    free = [name for name in saved if name not in stuck]
    assert stuck and free
    assert min(scores[name].min() for name in stuck) > max(scores[name].max() for name in free)
    check_finite(scores)


def test_random_scores_come_from_their_seed_alone():
    model, x = net()
    groups = lp.channel_groups(model, x)
    state = torch.get_rng_state()
    first, again, other = (Random(seed, groups)(model) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_has_a_name_and_leaves_the_model_alone(name):
    model, x = net()
    groups = [
        group for group in lp.channel_groups(model, x) if name not in ("gamma", "gamma_per_flop") or group.name == "0"
    ]
    zoo.output_loss(model(x)).backward()
    before = copy.deepcopy(model.state_dict())
    scores = scorer(name, groups=groups, example_inputs=x, loss=lambda of: zoo.output_loss(of(x)))(model)
    assert {group.name: (group.channels,) for group in groups} == {key: tuple(s.shape) for key, s in scores.items()}
    assert all(not score.requires_grad and (score >= 0).all() for score in scores.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    check_finite(scores)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, g: scorer("gama"), "did you mean 'gamma'"),
        (lambda m, g: scorer("gradient_flow"), "needs loss"),
        (lambda m, g: scorer("gamma_per_flop"), "needs example_inputs"),
        (lambda m, g: Gamma(g)(m), "group '3' has no BatchNorm"),
        (lambda m, g: WeightNorm(1)(m), "l1 needs groups"),
        (lambda m, g: Taylor(g)(m), "'0.weight' has no gradient: run backward"),
        (lambda m, g: Taylor(g)(nn.Linear(2, 2)), "group '0': '0.weight' is not in this model"),
        (lambda m, g: WeightNorm(1, g)(nn.Sequential(nn.Conv2d(3, 2, 3))), "another width"),
        (lambda m, g: check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}), "group 'b' .1 of 2"),
        (lambda m, g: check_finite({"a": torch.tensor([torch.inf])}), "NaN or infinity"),
    ],
)
def test_errors_say_what_to_do(make, message):
    model, x = net()
    groups = lp.channel_groups(model, x)
    with pytest.raises(ValueError, match=message):
        make(model, groups)


def test_gradient_flow_refuses_a_lowered_model():
    model, x = net()
    lp.lower(model, "bfp8")
    with pytest.raises(ValueError, match="second derivatives, and '0' is lowered"):
        GradientFlow(lambda of: of(x).sum())(model)
