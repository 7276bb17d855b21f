"""Weight averages in a loop of one's own: what they hold, what their statistics are, and what they are good for."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import lowprec_eb as lp
from lowprec_eb.averaging import AveragingMoments, AveragingSettings
from lowprec_eb.train import TrainSettings

BFP8 = lp.BlockFloat(8, 0)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def batches(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 1, 8, 8, generator=generator) for _ in range(count)]


def walk(model, steps, seed=2):
    """Random weights, one set a step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) + 3)
        yield {name: p.detach().double() for name, p in model.named_parameters()}


def averaged(average):
    return {name: p.detach() for name, p in average.model.named_parameters()}


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_the_mean_of_the_weights_visited():
    model = net()
    average, sums = lp.WeightAverage(model), {}
    for visited in walk(model, 37):
        average.update(model)
        sums = {name: sums.get(name, 0) + p for name, p in visited.items()}
    assert average.count == 37
    for name, p in averaged(average).items():
        assert (p.double() - sums[name] / 37).abs().max() <= 4 * 2.0**-23 * (sums[name] / 37).abs().max()


@pytest.mark.parametrize(("decay", "options"), [(None, {}), (0.9, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)})])
def test_it_agrees_with_torchs_own_averaged_model(decay, options):
    model = net()
    ours, theirs = lp.WeightAverage(model, decay), AveragedModel(model, **options)
    for _ in walk(model, 6):
        ours.update(model)
        theirs.update_parameters(model)
    for a, b in zip(ours.model.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-7, atol=1e-6)


def test_the_moving_average_follows_its_formula():
    model = net()
    average, expected = lp.WeightAverage(model, 0.75), None
    for visited in walk(model, 5):
        average.update(model)
        expected = visited if expected is None else {k: 0.75 * expected[k] + 0.25 * p for k, p in visited.items()}
    for name, p in averaged(average).items():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_the_model_that_is_averaged_stays_as_it_is():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    average = lp.WeightAverage(model, fmt=None)
    average.update(model)
    average.update_statistics(batches())
    assert_same(dict(model.state_dict()), dict(before))
    assert model.training and not average.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_16_bits_are_averaged_in_32():
    model = nn.Linear(3, 2).bfloat16()
    average = lp.WeightAverage(model)
    values = [1.0, 1.0078125, 1.0]  # neighbours in bfloat16: their mean is none
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update(model)
    assert average.model.weight.dtype == torch.float32
    torch.testing.assert_close(average.model.weight, torch.full((2, 3), sum(values) / 3), rtol=1e-7, atol=0)


@pytest.mark.parametrize("precision", [None, "bfp8", "int8"])
def test_a_lowered_model_stays_lowered_and_its_copy_has_weights_of_its_own(precision):
    model = net()
    if precision:
        lp.lower(model, precision)
    average = lp.WeightAverage(model)
    model.train()(batches()[0])  # running ranges of int8, and batch statistics
    average.update(model)
    assert_same(lp.precision_state(average.model), lp.precision_state(model))
    x, own = batches()[1], average.model(batches()[1])
    assert torch.equal(own, model.eval()(x))
    with torch.no_grad():
        model[5].weight.add_(1)
    assert torch.equal(average.model(x), own) and not torch.equal(model(x), own)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_torchs_update_bn():
    model = net()
    model[3] = nn.Identity()
    average, theirs = lp.WeightAverage(model), AveragedModel(model)
    for _ in walk(model, 2):
        average.update(model)
        theirs.update_parameters(model)
    with torch.no_grad():
        for a, b in zip(average.model.parameters(), theirs.module.parameters(), strict=True):
            b.copy_(a)
    average.update_statistics(batches())
    update_bn(batches(), theirs)
    assert_same(dict(average.model.state_dict()), dict(theirs.module.state_dict()))
    assert average.model[1].momentum == 0.1 and not any(m.training for m in average.model.modules())


def test_statistics_are_taken_as_inference_computes():
    """Two rounds of them agree: neither dropout nor stochastic rounding draws anything."""
    model = net()
    lp.lower(model, "bfp8")
    average = lp.WeightAverage(model)
    average.update(model)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        average.update_statistics(batches())
        found.append({name: buffer.clone() for name, buffer in average.model.named_buffers()})
    assert_same(*found)
    hidden = torch.cat([average.model[0](x) for x in batches()])
    torch.testing.assert_close(found[0]["1.running_mean"], hidden.mean((0, 2, 3)).detach())


def test_a_model_without_batch_normalisation_is_not_run():
    average = lp.WeightAverage(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    average.update(average.model)

    def inputs():
        raise AssertionError("the inputs were read")
        yield

    average.update_statistics(inputs())
    assert not average.has_statistics and lp.WeightAverage(net()).has_statistics


# ---- a format for the average ----------------------------------------------------------------------------------------


def test_the_average_is_kept_on_its_own_grid():
    model = net()
    average = lp.WeightAverage(model, fmt=BFP8, seed=1)
    for _ in walk(model, 3):
        average.update(model)
        for parameter in average.model.parameters():
            on_grid = torch.equal(lp.quantize(parameter.detach(), BFP8), parameter)
            assert on_grid == (parameter.dim() >= 2)


def distance_after(rounding, seed):
    """Of an average on a coarse grid from the mean of one 0 and 399 times 0.3."""
    model = nn.Linear(64, 64, bias=False)
    average = lp.WeightAverage(model, fmt=lp.FixedPoint(8, 3), rounding=rounding, seed=seed)  # steps of 1/8
    for step in range(400):
        nn.init.constant_(model.weight, 0.3 * (step > 0))
        average.update(model)
    return abs(average.model.weight.mean().item() - 0.3 * 399 / 400)


def test_rounding_to_nearest_stops_an_average_and_stochastic_rounding_does_not():
    assert distance_after("nearest", 0) > 0.1
    assert all(distance_after("stochastic", seed) < 0.03 for seed in range(3))


def test_a_seed_is_drawn_only_where_rounding_needs_one():
    state = torch.get_rng_state()
    lp.WeightAverage(net().eval(), fmt=BFP8, seed=3)
    torch.set_rng_state(state)
    model = nn.Linear(2, 2)
    state = torch.get_rng_state()
    lp.WeightAverage(model, fmt=BFP8, rounding="nearest")
    assert torch.equal(torch.get_rng_state(), state)
    lp.WeightAverage(model, fmt=BFP8)
    assert not torch.equal(torch.get_rng_state(), state)


# ---- state and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"fmt": BFP8, "seed": 5}])
def test_a_saved_average_goes_on_bit_for_bit(options):
    model = net()
    lp.lower(model, "int8")
    average = lp.WeightAverage(model, **options)
    for step, _ in enumerate(walk(model, 6)):
        model.train()(batches()[0])
        if step == 3:
            state = copy.deepcopy(average.state_dict())
            average = lp.WeightAverage(model, **{**options, "seed": 99} if "seed" in options else options)
            average.load_state_dict(state)
            assert_same(lp.precision_state(average.model), state["precision"])
        average.update(model)
    whole, again = lp.WeightAverage(model, **options), net()
    lp.lower(again, "int8")
    for _ in walk(again, 6):
        again.train()(batches()[0])
        whole.update(again)
    assert_same(averaged(average), averaged(whole))
    assert_same(lp.precision_state(average.model), lp.precision_state(whole.model))
    assert average.count == whole.count == 6


def test_another_model_is_refused_and_changes_nothing():
    average = lp.WeightAverage(net())
    average.update(average.model)
    before = copy.deepcopy(averaged(average))
    with pytest.raises(ValueError, match=r"the first to differ is '5\.bias' of shape"):
        average.update(nn.Sequential(*net()[:5], nn.Linear(4 * 36, 2)))
    assert_same(averaged(average), before)
    assert average.count == 1


def test_nothing_averaged_and_bad_arguments_are_explained():
    with pytest.raises(ValueError, match="nothing was averaged yet"):
        lp.WeightAverage(net()).update_statistics(batches())
    with pytest.raises(ValueError, match="decay must be between 0 and 1, got 1"):
        lp.WeightAverage(net(), 1.0)
    with pytest.raises(ValueError, match="did you mean 'nearest'"):
        lp.WeightAverage(net(), rounding="neares")
    with pytest.raises(ValueError, match="not a number format"):
        lp.WeightAverage(net(), fmt="fp9")


# ---- settings --------------------------------------------------------------------------------------------------------


def test_moments_are_every_interval_after_the_start():
    moments = AveragingMoments(waits=6, interval=4)
    due = [step for step in range(1, 20) if moments.is_due(step)]
    assert due == [10, 14, 18]
    assert [moments.count(steps) for steps in (0, 6, 9, 10, 13, 14, 19)] == [0, 0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "stage", "waits", "interval"),
    [
        ({"start": 0.75}, range(20), 15 * 7, 7),
        ({"start": 0.75, "interval": 2}, range(20), 15 * 7, 14),
        ({"start": 0.5, "interval": 3, "unit": "step"}, range(4, 20), 6 * 7, 3),
        ({"start": 0.1}, range(12, 20), 0, 7),  # the stage begins later than the average would
    ],
)
def test_the_start_is_a_share_of_the_schedule(settings, stage, waits, interval):
    moments = AveragingSettings("swa", **settings).moments(20, stage, steps=7)
    assert moments == AveragingMoments(waits, interval)


def test_a_learning_rate_of_its_own_holds_from_the_start_on():
    averaging = AveragingSettings("swalp", start=0.5, learning_rate=0.03)
    settings = TrainSettings(epochs=10, learning_rate=0.1, milestones=(0.3, 0.8), averaging=averaging)
    assert [settings.learning_rate_at(e) for e in (0, 3, 4, 5, 9)] == pytest.approx([0.1, 0.01, 0.01, 0.03, 0.03])


def test_swalp_reads_the_average_as_it_is_kept_and_the_others_as_the_stage():
    stage = lp.precision("swalp8")
    read = AveragingSettings("swalp").precision(stage)
    assert read.of("weight", "output") is None and read.of("output") == stage.of("output")
    assert read.overrides[0][1].of("weight", "output") is None
    kept = AveragingSettings("swalp", format="BlockFloat(9,dim=0)").precision(stage)
    assert kept.of("weight", "output").fmt == lp.BlockFloat(9, 0)
    assert AveragingSettings("swa").precision(stage) == AveragingSettings("ema", decay=0.5).precision(stage) == stage


def test_one_spelling_for_each_format():
    assert AveragingSettings("swa", format="lp.BlockFloat( 8, dim=0)") == AveragingSettings("swa", format="block8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mean"}, "averaging: kind must be one of swalp, swa, ema"),
        ({"start": 1.0}, r"averaging: start must be a share of the epochs in \[0, 1\), got 1.0"),
        ({"interval": 0}, "averaging: interval must be at least 1 epoch, got 0"),
        ({"unit": "steps"}, "averaging: unit .* did you mean 'step'"),
        ({"kind": "ema"}, "kind 'ema' needs a decay, such as 0.999, got decay None"),
        ({"decay": 0.9}, "kind 'swa' has equal weights: leave decay out, got decay 0.9"),
        ({"kind": "ema", "decay": 1.0}, "decay must be between 0 and 1"),
        ({"learning_rate": 0.0}, "averaging: learning_rate must be above 0"),
        ({"format": "fp9"}, "not a number format: 'fp9'"),
        ({"rounding": "up"}, "averaging: rounding must be one of"),
    ],
)
def test_impossible_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        AveragingSettings(**{"kind": "swa", **options})


@pytest.mark.parametrize("averaging", [{"start": 0.95}, {"start": 0.5, "interval": 6}, {"start": 0.99, "unit": "step"}])
def test_an_average_of_nothing_is_refused(averaging):
    with pytest.raises(ValueError, match="takes no weights; make start or interval smaller"):
        TrainSettings(epochs=10, averaging=AveragingSettings("swa", **averaging))


# ---- what it is good for ---------------------------------------------------------------------------------------------


def solve(seed, steps=1500, start=500):
    """Linear regression in 8-bit fixed point with noisy gradients; distances of the last iterate and of the average."""
    generator = torch.Generator().manual_seed(seed)
    optimum = torch.randn(1, 16, generator=generator) / 2
    model = nn.Linear(16, 1, bias=False)
    grid = lp.Precision(name="w8", master=lp.FixedPoint(8, 5), rounding="stochastic")  # steps of 1/32
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.05), grid, seed=seed)
    average = lp.WeightAverage(model)
    for step in range(steps):
        x = torch.randn(4, 16, generator=generator)
        y = x @ optimum.T + 0.1 * torch.randn(4, 1, generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if step >= start:
            average.update(model)
    return [(w.detach() - optimum).norm().item() for w in (model.weight, average.model.weight)], optimum


@pytest.mark.parametrize("seed", range(3))
def test_the_average_of_low_precision_iterates_is_nearer_to_the_optimum_than_the_last_and_than_the_grid(seed):
    """Yang et al. 2019, section 4: SWALP goes below the noise ball that the grid leaves to the iterates."""
    (last, average), optimum = solve(seed)
    grid = (lp.quantize(optimum, lp.FixedPoint(8, 5)) - optimum).norm().item()
    assert average < last / 3 and average < grid


def test_statistics_need_batches_and_survive_a_bad_one():
    """An iterator that was used up would leave mean 0 and variance 1."""
    model = net()
    model(batches()[0])
    average = lp.WeightAverage(model)
    average.update(model)
    norm = average.model[1]
    mean, momentum = norm.running_mean.clone(), norm.momentum
    used = iter(batches())
    list(used)
    with pytest.raises(ValueError, match="no batches"):
        average.update_statistics(used)
    with pytest.raises(RuntimeError):
        average.update_statistics([batches()[0], torch.randn(5, 3, 8, 8)])
    assert torch.equal(norm.running_mean, mean)
    assert norm.momentum == momentum and not norm.training and not average.model.training
