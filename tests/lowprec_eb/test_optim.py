"""The low-precision optimizer."""

import copy
import io
import math
import pickle

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


def step(model, optimizer, seed, also=None):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    if also is not None:
        also.grad = torch.ones_like(also)
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


# ---- every optimizer of torch ----------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda ps, **o: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-2, **o),
    "SGD nesterov": lambda ps, **o: torch.optim.SGD(ps, 0.05, momentum=0.9, nesterov=True, **o),
    "Adam": lambda ps, **o: torch.optim.Adam(ps, 0.01, amsgrad=True, **o),
    "AdamW": lambda ps, **o: torch.optim.AdamW(ps, 0.01, **o),
    "RMSprop": lambda ps, **o: torch.optim.RMSprop(ps, 0.01, momentum=0.9, **o),
    "Adagrad": lambda ps, **o: torch.optim.Adagrad(ps, 0.05, **o),
    "NAdam": lambda ps, **o: torch.optim.NAdam(ps, 0.01, **o),
    "RAdam": lambda ps, **o: torch.optim.RAdam(ps, 0.01, **o),
    "Adamax": lambda ps, **o: torch.optim.Adamax(ps, 0.01, **o),
    "Adadelta": lambda ps, **o: torch.optim.Adadelta(ps, 1.0, **o),
    "Adafactor": lambda ps, **o: torch.optim.Adafactor(ps, 0.01, **o),
    "ASGD": lambda ps, **o: torch.optim.ASGD(ps, 0.05, **o),
    "Rprop": lambda ps, **o: torch.optim.Rprop(ps, 0.01, **o),
    "Muon": lambda ps, **o: torch.optim.Muon(ps, 0.01, **o),
}
STOCHASTIC = Precision(
    name="all8",
    gradient=BFP8,
    update=BFP8,
    momentum=BFP8,
    second_moment=BFP8,
    master=lp.BlockFloat(12, 0),
    rounding="stochastic",
)


def matrices(kind):
    """A model that every optimizer takes: Muon steps matrices alone."""
    model = net()
    return [p for p in model.parameters() if p.dim() == 2] if kind == "Muon" else list(model.parameters()), model


def run(kind, precision, steps, *, interrupt=None, wrap=lp.LowPrecisionOptimizer, **options):
    parameters, model = matrices(kind)
    low = wrap(OPTIMIZERS[kind](parameters, **options), precision, 7)
    for seed in range(steps):
        if seed == interrupt:
            file, weights = io.BytesIO(), copy.deepcopy(model.state_dict())
            torch.save(low.state_dict(), file)
            file.seek(0)
            parameters, model = matrices(kind)
            model.load_state_dict(weights)
            low = wrap(OPTIMIZERS[kind](parameters, **options), precision, 8)
            low.load_state_dict(torch.load(file, weights_only=True))
        step(model, low, seed)
    return model, low


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_in_float32_every_optimizer_is_the_plain_one_bit_for_bit(kind):
    plain, _ = run(kind, None, 4, wrap=lambda optimizer, *_: optimizer)
    wrapped, _ = run(kind, "fp32", 4)
    assert torch.equal(weights_of(plain), weights_of(wrapped))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_resumed_from_a_file_equals_the_uninterrupted_one(kind):
    whole, low = run(kind, STOCHASTIC, 6)
    resumed, again = run(kind, STOCHASTIC, 6, interrupt=3)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert str(low.state_dict()) == str(again.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_on_the_grid_and_float32_else(kind):
    model, low = run(kind, STOCHASTIC, 3)
    weight = model[0].weight
    kept = {key: value for key, value in low.state[weight].items() if isinstance(value, torch.Tensor) and value.dim()}
    apart = {"prev", "step_size", "ax"}  # Rprop's sign memory and steps, ASGD's average of weights
    assert set(kept) - apart == {key for keys in low._state_keys.values() for key in keys if key in kept}
    for key, value in kept.items():
        assert torch.equal(lp.quantize(value, BFP8), value) or key in apart, key
    assert torch.equal(lp.quantize(weight.detach(), STOCHASTIC.master), weight)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
@pytest.mark.parametrize("way", ["foreach", "fused"])
def test_foreach_and_fused_steps_are_rounded_alike(kind, way):
    """To nearest; torch's own steps differ in the last bit of float32, which turns a few roundings."""
    if way == "fused" and kind in ("RMSprop", "NAdam"):
        pytest.skip(f"torch has no fused {kind}")
    nearest = lp.precision(STOCHASTIC, rounding="nearest")
    one, _ = run(kind, nearest, 2, foreach=False)
    other, _ = run(kind, nearest, 2, **{way: True})
    same = weights_of(one) == weights_of(other)
    assert same.float().mean() > 0.9
    assert (weights_of(one) - weights_of(other)).abs().max() < 0.01
    plain = [weights_of(run(kind, "fp32", 2, foreach=False)[0]), weights_of(run(kind, "fp32", 2, **{way: True})[0])]
    assert same.all() or not torch.equal(*plain)


def test_first_and_third_tensor_of_an_operand_have_their_own_random_bits():
    weight = nn.Parameter(torch.ones(64, 64))
    low = lp.LowPrecisionOptimizer(torch.optim.Adam([weight], amsgrad=True), STOCHASTIC, 0)
    weight.grad = torch.full_like(weight, 0.3)
    low.step()
    state = low.state[weight]
    assert not torch.equal(
        state["exp_avg_sq"] == state["exp_avg_sq"].max(), state["max_exp_avg_sq"] == state["exp_avg_sq"].max()
    )


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_the_update_is_rounded_by_itself():
    """By hand: a step of 0.3 is 4.8 sixteenths and becomes 5; the weight is kept in float32."""
    weight = nn.Parameter(torch.tensor([[1.03, 2.0]]))
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 1.0), Precision(update=lp.FixedPoint(8, 4)))
    weight.grad = torch.tensor([[0.3, 0.01]])
    low.step()
    assert weight.tolist() == [[pytest.approx(1.03 - 5 / 16, abs=1e-6), 2.0]]


@pytest.mark.parametrize("operand", ["gradient", "update", "momentum", "master"])
def test_the_expected_step_is_the_exact_one(operand):
    """Stochastic rounding of any operand: 20,000 copies of one weight take, in the mean, the float32 step."""
    start = torch.tensor([0.25, 1.0]).expand(20_000, 2)
    weight = nn.Parameter(start.clone())
    precision = Precision(rounding="stochastic", **{operand: lp.FixedPoint(8, 5)})
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 0.5, momentum=0.5), precision, 3)
    exact = nn.Parameter(start[:1].clone())
    plain = torch.optim.SGD([exact], 0.5, momentum=0.5)
    for gradient in (torch.tensor([0.037, -0.2]), torch.tensor([0.011, 0.05])):
        weight.grad, exact.grad = gradient.expand(20_000, 2).clone(), gradient.expand(1, 2).clone()
        low.step()
        plain.step()
    spread = 4 * (2**-5) / 20_000**0.5  # four standard errors, of a rounding error of at most one step each
    assert (weight.detach().mean(0) - exact.detach()[0]).abs().max() < spread
    assert weight.detach().std(0).min() > 0


def test_gradient_scale_undoes_a_scaled_loss_before_rounding():
    """FP8's gradients underflow where a scaled loss keeps them."""

    def stepped(factor, scale):
        weight = nn.Parameter(torch.ones(1, 4))
        low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 1.0), Precision(gradient="fp16"), gradient_scale=scale)
        error = lp.quantize(torch.full((1, 4), 2.0**-10) * factor, lp.Float(4, 3))  # as an FP8 backward pass has it
        weight.grad = error
        low.step()
        return weight.detach()

    assert torch.equal(stepped(1.0, 1.0), torch.ones(1, 4))
    assert torch.equal(stepped(1024.0, 1 / 1024), torch.full((1, 4), 1 - 2.0**-10))
    # also where no gradient is rounded
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.full((1,), 8.0)
    lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 1.0), "fp32", gradient_scale=1 / 16).step()
    assert weight.item() == 0.5


def test_torchs_gradient_scaler_scales_skips_and_adapts():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8", 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    reference = net()
    plain = lp.LowPrecisionOptimizer(sgd(reference), "bfp8", 0)

    def scaled_step(factor):
        low.zero_grad()
        scaler.scale(model(torch.ones(2, 6)).square().sum() * factor).backward()
        scaler.step(low)
        scaler.update()

    scaled_step(1.0)
    plain.zero_grad()
    reference(torch.ones(2, 6)).square().sum().backward()
    plain.step()
    assert torch.equal(weights_of(model), weights_of(reference))  # powers of two: the same gradients
    before, steps = weights_of(model), low.steps
    scaled_step(math.inf)
    assert torch.equal(weights_of(model), before) and low.steps == steps
    assert scaler.get_scale() == 2.0**9


# ---- what a torch optimizer does -------------------------------------------------------------------------------------


def test_schedulers_reach_the_wrapped_optimizer_after_loading():
    """OptimLP's scheduler loses its optimizer at load_state_dict."""
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    scheduler = torch.optim.lr_scheduler.StepLR(low, 1, 0.1)
    low.load_state_dict(copy.deepcopy(low.state_dict()))
    step(model, low, 0)
    scheduler.step()
    assert low.inner.param_groups[0]["lr"] == pytest.approx(0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(low, 0.5, total_steps=10)  # turns momentum too
    step(model, low, 1)
    cycle.step()
    assert low.inner.param_groups[0]["momentum"] != 0.9


def test_a_group_added_later_is_on_the_grid_and_the_others_keep_their_random_bits():
    def trained(later):
        model, extra = net(), nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
        low = lp.LowPrecisionOptimizer(sgd(model), "bfp8", 0)
        step(model, low, 0)
        if later:
            before = extra.detach().clone()
            low.add_param_group({"params": [extra], "lr": 0.5})
            assert torch.equal(extra.detach(), lp.quantize(extra.detach(), BFP8)) and not torch.equal(before, extra)
        step(model, low, 1, also=extra)
        return weights_of(model), extra, low

    (with_extra, extra, low), (alone, _, _) = trained(True), trained(False)
    assert torch.equal(with_extra, alone)
    assert torch.equal(lp.quantize(extra.detach(), BFP8), extra) and extra in low.state


def test_a_group_can_be_left_out():
    model = net()
    head = {"params": model[2].parameters(), "low_precision": False}
    low = lp.LowPrecisionOptimizer(
        torch.optim.SGD([{"params": model[0].parameters()}, head], 0.1, momentum=0.9), "swalp8", 0
    )
    step(model, low, 0)
    assert torch.equal(lp.quantize(model[0].weight.detach(), BFP8), model[0].weight)
    assert not torch.equal(lp.quantize(model[2].weight.detach(), BFP8), model[2].weight)
    assert low.parameter_format("master", model[2].weight) is None
    assert low.parameter_format("master", model[0].weight) == BFP8


def test_weights_loaded_later_can_be_put_on_the_grid():
    model, other = net(), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    model.load_state_dict(other.state_dict())
    assert not torch.equal(lp.quantize(model[0].weight.detach(), BFP8), model[0].weight)
    low.round_weights()
    assert torch.equal(lp.quantize(model[0].weight.detach(), BFP8), model[0].weight)


def test_precision_can_change_in_training():
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    low.precision = "fp32"
    step(model, low, 0)
    assert not torch.equal(lp.quantize(model[0].weight.detach(), BFP8), model[0].weight)
    with pytest.raises(ValueError, match="unknown precision"):
        low.precision = "bfp88"
    assert low.precision.name == "fp32"


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_independent_and_go_on_alike(way):
    model = net()
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8", 0)
    torch.optim.lr_scheduler.StepLR(low, 1)
    step(model, low, 0)
    other, again = way((model, low))
    step(model, low, 1)
    assert not torch.equal(weights_of(model), weights_of(other))
    step(other, again, 1)
    assert torch.equal(weights_of(model), weights_of(other))


def test_step_hooks_run_once_and_see_the_wrapper():
    model, seen = net(), []
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")
    low.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(("pre", optimizer)))
    low.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(("post", optimizer)))
    low.register_state_dict_post_hook(lambda optimizer, state: seen.append(("state", optimizer)))
    step(model, low, 0)
    low.state_dict()
    assert seen == [("pre", low), ("post", low), ("state", low)]


def test_a_closure_is_called_once_in_each_step():
    model, calls = net(), []
    low = lp.LowPrecisionOptimizer(sgd(model), "bfp8")

    def closure():
        calls.append(1)
        low.zero_grad()
        loss = model(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss

    low.step(closure)
    assert calls == [1] and torch.equal(lp.quantize(model[0].weight.grad, BFP8), model[0].weight.grad)


def test_optimizers_that_torch_does_not_bring_say_what_they_keep():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("velocity", torch.zeros_like(p)).add_(p.grad)
                p.data.sub_(self.state[p]["velocity"], alpha=0.1)

    model = net()
    with pytest.raises(ValueError, match=r"where Own keeps one is not known: pass state_keys=\{'momentum': \(key"):
        lp.LowPrecisionOptimizer(Own(model.parameters()), "bfp8")
    low = lp.LowPrecisionOptimizer(Own(model.parameters()), "bfp8", state_keys={"momentum": ("velocity",)})
    step(model, low, 0)
    velocity = low.state[model[0].weight]["velocity"]
    assert torch.equal(lp.quantize(velocity, BFP8), velocity)
    lp.LowPrecisionOptimizer(Own(model.parameters()), "fp8")  # rounds nothing that an optimizer keeps


def test_parameters_of_every_type_and_layout_are_rounded_in_place():
    channels_last = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    half, transposed = nn.Parameter(torch.randn(4, 4).bfloat16()), nn.Parameter(torch.randn(5, 3).t())
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([channels_last, half, transposed], 0.1, momentum=0.9), "bfp8", 0)
    pointers = [p.data_ptr() for p in (channels_last, half, transposed)]
    for p in (channels_last, half, transposed):
        p.grad = torch.randn_like(p)
    low.step()
    for p, pointer in zip((channels_last, half, transposed), pointers, strict=True):
        assert p.data_ptr() == pointer
        assert torch.equal(lp.quantize(p.detach(), BFP8), p)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


def test_errors_say_what_to_do():
    model = net()
    with pytest.raises(ValueError, match="of a plain optimizer"):
        lp.LowPrecisionOptimizer(sgd(net()), "bfp8").load_state_dict(sgd(net()).state_dict())
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got Sequential"):
        lp.LowPrecisionOptimizer(model, "bfp8")
    with pytest.raises(ValueError, match="LowPrecisionOptimizer already"):
        lp.LowPrecisionOptimizer(lp.LowPrecisionOptimizer(sgd(model), "bfp8"), "bfp8")
    with pytest.raises(ValueError, match="LBFGS evaluates gradients inside its step"):
        lp.LowPrecisionOptimizer(torch.optim.LBFGS(model.parameters()), "bfp8")
    with pytest.raises(ValueError, match=r"RMSprop with centered=True .* set centered=False"):
        centered = torch.optim.RMSprop(model.parameters(), centered=True)
        lp.LowPrecisionOptimizer(centered, Precision(second_moment=BFP8))
    with pytest.raises(ValueError, match="differentiable=True"):
        lp.LowPrecisionOptimizer(sgd(model, differentiable=True), "bfp8")
    with pytest.raises(ValueError, match="gradient_scale must be above 0 and finite, got inf"):
        lp.LowPrecisionOptimizer(sgd(model), "bfp8", gradient_scale=math.inf)
    with pytest.raises(ValueError, match="'momentun'; did you mean 'momentum'"):
        lp.LowPrecisionOptimizer(sgd(model), "bfp8", state_keys={"momentun": ("buffer",)})
    with pytest.raises(ValueError, match="is in none of the optimizer's groups"):
        lp.LowPrecisionOptimizer(sgd(model), "bfp8").parameter_format("master", nn.Parameter(torch.ones(2, 2)))


def test_errors_name_the_parameter():
    embedding = nn.Embedding(4, 3, sparse=True)
    low = lp.LowPrecisionOptimizer(torch.optim.SGD(embedding.named_parameters(), 0.1), "bfp8")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="parameter weight: its gradient is sparse"):
        low.step()
    weight = nn.Parameter(torch.ones(2, 2))
    along = Precision(gradient=lp.BlockFloat(8, 2))
    low = lp.LowPrecisionOptimizer(torch.optim.SGD([weight], 0.1), along)
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="parameter 0 of group 0, gradient: "):
        low.step()


def test_complex_parameters_are_refused_and_can_be_left_out():
    parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    precision = Precision(name="bf16 master", master="bf16")
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, master: torch.complex64 .*'low_precision': False"):
        lp.LowPrecisionOptimizer(torch.optim.SGD([parameter], lr=1.0), precision)
    assert torch.equal(parameter, torch.ones(2, 2))
    group = {"params": [parameter], "low_precision": False}
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD([group], lr=1.0), precision)
    parameter.grad = torch.full((2, 2), 1j)
    optimizer.step()
    assert torch.equal(parameter, torch.full((2, 2), 1 - 1j))
