"""The low-precision optimizer."""

import copy

import pytest
import torch
from torch import nn

import lowprec_eb as lp
from lowprec_eb.precision import Precision

BFP8 = lp.BlockFloat(8, 0)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), 0.1, **{"momentum": 0.9, "weight_decay": 1e-2, **options})


def step(model, optimizer, seed):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_fp32_is_the_plain_optimizer_bit_for_bit():
    plain, wrapped = net(), net()
    optimizer, low = sgd(plain), lp.LowPrecisionOptimizer(sgd(wrapped), "fp32")
    for seed in range(5):
        step(plain, optimizer, seed)
        step(wrapped, low, seed)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True))
    assert isinstance(low, torch.optim.Optimizer)


def test_weights_momentum_and_gradients_are_on_the_grid_from_the_first_forward():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    for seed in range(3):
        for p in model.parameters():
            assert torch.equal(lp.quantize(p.detach(), BFP8), p) == (p.dim() >= 2 or (seed == 0 and not p.any()))
        step(model, low, seed)
    weight = model[0].weight
    assert torch.equal(lp.quantize(weight.grad, BFP8), weight.grad)
    momentum = low.state[weight]["momentum_buffer"]
    assert torch.equal(lp.quantize(momentum, BFP8), momentum)


def test_vectors_are_rounded_where_the_recipe_says_so():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "swalp8")
    step(model, low, 0)
    assert torch.equal(lp.quantize(model[0].bias.detach(), BFP8), model[0].bias)


def test_one_step_by_hand():
    """Round the gradient, step, round weight and momentum: to nearest, so the numbers can be followed."""
    fmt = lp.FixedPoint(8, 4)
    weight = nn.Parameter(torch.tensor([[1.0, -0.5]]))
    low = lp.LowPrecisionOptimizer(
        torch.optim.SGD([weight], 0.5, momentum=0.9), Precision(gradient=fmt, momentum=fmt, master=fmt)
    )
    weight.grad = torch.tensor([[0.3, 0.04]])  # 4.8 and 0.64 steps of 1/16 -> 5 and 1
    low.step()
    # 1 - 0.5 * 5/16 = 13.5 steps and -0.5 - 0.5 / 16 = -8.5 steps: both ties, to even.
    assert (weight * 16).tolist() == [[14.0, -8.0]]
    assert (low.state[weight]["momentum_buffer"] * 16).tolist() == [[5.0, 1.0]]


def test_a_resumed_run_equals_the_uninterrupted_one():
    def trained(interrupt):
        model = net()
        low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
        for seed in range(6):
            if seed == interrupt:
                saved, weights = copy.deepcopy(low.state_dict()), copy.deepcopy(model.state_dict())
                torch.manual_seed(999)
                model = net()
                low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
                model.load_state_dict(weights)
                low.load_state_dict(saved)
            step(model, low, seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    # The seed of the second optimizer is replaced by the saved one.
    assert torch.equal(trained(None), trained(3))


def test_schedulers_work_before_and_after_loading():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    low.load_state_dict(low.state_dict())
    scheduler = torch.optim.lr_scheduler.StepLR(low, 1, 0.1)
    step(model, low, 0)
    scheduler.step()
    assert low.inner.param_groups[0]["lr"] == pytest.approx(0.01)


def test_frozen_parameters_and_unused_ones_are_left_alone():
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    step(model, low, 0)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(lp.quantize(before, BFP8), before)


def test_closures_run_and_their_loss_comes_back():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")

    def closure():
        low.zero_grad()
        loss = model(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss

    before = model[2].weight.clone()
    assert low.step(closure).item() > 0
    assert not torch.equal(before, model[2].weight)


def test_expected_update_is_the_exact_one():
    """Stochastic rounding of the weight copy: updates far below a step happen in the mean."""
    weight = nn.Parameter(torch.full((2000, 2), 0.25) * torch.tensor([4.0, 1.0]))
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 1.0), Precision(master=BFP8, rounding="stochastic"))
    weight.grad = torch.full_like(weight, 0.001) * torch.tensor([0.0, 1.0])
    low.step()
    moved = 0.25 - weight[:, 1].mean().item()
    assert moved == pytest.approx(0.001, abs=4 * (0.001 / 64 / 2000) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "options", "keys"),
    [
        (torch.optim.Adam, {}, ("exp_avg", "exp_avg_sq")),
        (torch.optim.AdamW, {}, ("exp_avg", "exp_avg_sq")),
        (torch.optim.RMSprop, {"momentum": 0.9}, ("momentum_buffer", "square_avg")),
    ],
)
def test_both_moments_of_an_adaptive_optimizer_are_on_their_grids(kind, options, keys):
    model, formats = net(), (lp.BlockFloat(6, 0), lp.FP8_E4M3)
    precision = Precision(momentum=formats[0], second_moment=lp.Rounded(formats[1], "stochastic"))
    low = lp.LowPrecisionOptimizer(kind(model.parameters(), 0.1, **options), precision)
    for seed in range(2):
        step(model, low, seed)
        state = low.state[model[0].weight]
        for key, fmt in zip(keys, formats, strict=True):
            assert torch.equal(lp.quantize(state[key], fmt), state[key]) and state[key].any()
    assert not torch.equal(lp.quantize(model[0].weight.detach(), formats[0]), model[0].weight)  # no format for it


def test_each_operand_has_its_own_rounding():
    """By hand: 0.3 is 4.8 sixteenths."""
    weight = nn.Parameter(torch.tensor([[1.0, 0.3]]))
    precision = Precision(gradient=lp.FixedPoint(8, 4), master=lp.Rounded(lp.FixedPoint(8, 4), "toward_zero"))
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 0.0), precision)
    assert (weight * 16).tolist() == [[16.0, 4.0]]
    weight.grad = torch.tensor([[0.3, -0.3]])
    low.step()
    assert (weight.grad * 16).tolist() == [[5.0, -5.0]]


def test_errors_say_what_to_do():
    with pytest.raises(
        ValueError, match=r"'bfp8' rounds the momentum of an optimizer, and Adagrad keeps none: use SGD"
    ):
        lp.LowPrecisionOptimizer(torch.optim.Adagrad(net().parameters()), "bfp8")
    with pytest.raises(ValueError, match=r"rounds the second_moment .* SGD keeps none: use RMSprop, Adam, AdamW, or"):
        lp.LowPrecisionOptimizer(sgd(net()), Precision(second_moment=BFP8))
    with pytest.raises(ValueError, match="of a plain optimizer"):
        lp.LowPrecisionOptimizer(sgd(net()), "bfp8").load_state_dict(sgd(net()).state_dict())
