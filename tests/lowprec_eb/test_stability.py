"""Stability detection: what is named, what is taken back, and that nothing waits for a device."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import lowprec_eb as lp
from lowprec_eb.instability import from_text, to_text

STEPS = 8


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10)
    )


def batches(count=STEPS):
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(count)
    ]


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), 1e-3, **options)


def closure_of(model, optimizer, images, labels):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return closure


def run(model, monitor, data):
    """Train; ``data`` may hold None: a batch that is never seen."""
    losses = []
    for images, labels in data:
        losses.append(monitor.step(closure_of(model, monitor.optimizer, images, labels)))
    monitor.check()
    return losses


def poison(tensor, value=math.nan):
    """A copy with one bad element."""
    bad = tensor.clone()
    bad.view(-1)[0] = value
    return bad


def at_step(monitor_of, step, action):
    """A hook that acts in one step only, in its replay too."""

    def hook(*args):
        return action(*args) if monitor_of()[0] == step else None

    return hook


class Case:
    """A model whose step ``STEP`` goes bad in one known place."""

    STEP = 3

    def __init__(self, recipe=None, **settings):
        self.model = network()
        if recipe is not None:
            lp.lower(self.model, recipe)
        self.optimizer = sgd(self.model)
        if recipe is not None:
            self.optimizer = lp.LowPrecisionOptimizer(self.optimizer, recipe, seed=1)
        self.monitor = lp.StabilityMonitor(self.model, self.optimizer, lp.StabilitySettings(**settings))
        self.now = -1

    def hook(self, action):
        return lambda *args: action(*args) if self.now == self.STEP else None

    def run(self):
        for self.now, (images, labels) in enumerate(batches()):
            self.monitor.step(closure_of(self.model, self.optimizer, images, labels))
        self.monitor.check()


def stopped(case):
    with pytest.raises(lp.Diverged, match="training diverged") as found:
        case.run()
    event = found.value.event
    assert case.monitor.events == [event] and event.step == case.STEP and event.response == "stop"
    assert f"step {case.STEP}" in str(found.value) and event.operand in str(found.value)
    return event.layer, event.operand, event.parameter, event.kind


# ---- naming ------------------------------------------------------------------------------------------------------

RECIPES = [None, "fp32", "bfp8", "fp8", "swalp8"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("value", "kind"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_what_a_layer_reads_is_named(recipe, value, kind):
    case = Case(recipe)
    case.model[4].register_forward_pre_hook(case.hook(lambda module, args: (poison(args[0], value),)))
    assert stopped(case) == ("4", "activation", "", kind)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_layer_returns_is_named(recipe):
    case = Case(recipe)
    case.model[0].register_forward_hook(case.hook(lambda module, args, output: poison(output)))
    assert stopped(case) == ("0", "output", "", "nan")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_error_is_named_at_the_layer_whose_output_it_belongs_to(recipe):
    case = Case(recipe)

    def after(module, args, output):
        output.register_hook(lambda error: poison(error))

    case.model[1].register_forward_hook(case.hook(after))
    assert stopped(case) == ("1", "error", "", "nan")


def test_without_a_replay_the_first_gradient_of_the_backward_pass_is_named():
    case = Case(check_every=20)

    def after(module, args, output):
        output.register_hook(lambda error: poison(error))

    case.model[1].register_forward_hook(case.hook(after))
    layer, operand, _, kind = stopped(case)
    assert (layer, operand, kind) == ("1", "gradient", "nan")  # those of layer 0 are bad too


@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gradient_is_named(recipe, layer):
    case = Case(recipe)
    case.model[layer].weight.register_hook(case.hook(poison))
    assert stopped(case) == (str(layer), "gradient", f"{layer}.weight", "nan")


@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_weight_is_named(recipe, layer):
    case = Case(recipe)
    weight = case.model[layer].weight

    def corrupt(module, args):
        with torch.no_grad():
            weight.view(-1)[0] = math.nan

    case.model[0].register_forward_pre_hook(case.hook(corrupt))
    assert stopped(case) == (str(layer), "weight", f"{layer}.weight", "nan")


def test_an_optimizer_that_writes_a_bad_weight_or_momentum_is_named():
    for operand in ("momentum", "master"):
        case = Case()

        def after(optimizer, args, kwargs, case=case, operand=operand):
            if case.now == case.STEP:
                weight = case.model[4].weight
                bad = weight.data if operand == "master" else optimizer.state[weight]["momentum_buffer"]
                bad.view(-1)[0] = math.inf

        case.optimizer.register_step_post_hook(after)
        assert stopped(case) == ("4", operand, "4.weight", "inf")


def test_an_operand_that_overflows_in_rounding_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    lp.lower(model, lp.Precision(activation=lp.FP16))
    monitor = lp.StabilityMonitor(model, sgd(model))
    with torch.no_grad():
        model[0].weight.fill_(1e5)
    with pytest.raises(lp.Diverged) as found:
        monitor.step(closure_of(model, monitor.optimizer, torch.ones(2, 4), torch.tensor([0, 1])))
    assert (found.value.event.layer, found.value.event.operand) == ("1", "activation")


def test_a_running_sum_that_overflows_between_chunks_is_named():
    """Every partial sum of 36 products fits into the accumulator, and their running sum does not."""
    case = Case(lp.Precision(accumulator=lp.FP16, accumulator_chunk=36))
    case.model[4].register_forward_pre_hook(case.hook(lambda module, args: (torch.full_like(args[0], 1e4),)))
    with torch.no_grad():
        case.model[4].weight.fill_(0.1)
    assert stopped(case) == ("4", "accumulator", "", "inf")


def test_a_huge_learning_rate_is_an_explosion_before_it_is_a_nan():
    model = network()
    optimizer = sgd(model, lr=1.0)
    monitor = lp.StabilityMonitor(model, optimizer)
    run(model, monitor, batches(3))
    optimizer.param_groups[0]["lr"] = 1e6
    with pytest.raises(lp.Diverged, match="is exploding, at ") as found:
        run(model, monitor, batches())
    event = found.value.event
    assert (event.step, event.operand) == (3, "master") and event.value > 1000
    norms = {name: p.norm().item() for name, p in model.named_parameters()}
    assert event.parameter == max(norms, key=norms.get) and event.value == pytest.approx(norms[event.parameter])


def test_an_exploding_loss_and_an_absolute_bound():
    model = network()
    monitor = lp.StabilityMonitor(model, sgd(model, 1e-3), lp.StabilitySettings(explode_factor=10.0))
    run(model, monitor, batches(3))
    with pytest.raises(lp.Diverged) as found:
        monitor.step(lambda: closure_of(model, monitor.optimizer, *batches(1)[0])() * 100)
    assert (found.value.event.operand, found.value.event.kind, found.value.event.step) == ("loss", "exploding", 3)
    bounded = lp.StabilityMonitor(model, sgd(model), lp.StabilitySettings(explode_above=0.5))
    with pytest.raises(lp.Diverged) as found:
        run(model, bounded, batches(1))
    assert (found.value.event.operand, found.value.event.step) == ("loss", 0)


def test_a_layer_that_wakes_up_and_a_hard_batch_late_are_no_explosions():
    model = network()
    monitor = lp.StabilityMonitor(model, sgd(model, 0.0), lp.StabilitySettings(explode_factor=100.0))
    scales = [1.0] + [1e-9] * 200 + [1.0]
    images, labels = batches(1)[0]

    def closure(scale):
        monitor.optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits if scale == 1.0 else logits.detach() + 0 * model[4].bias, labels) * scale
        loss.backward()
        return loss

    for scale in scales:
        monitor.step(lambda scale=scale: closure(scale))
    assert not monitor.events


def test_events_survive_as_text():
    event = lp.Instability(2, 5, "a.b", "error", "", "nan", math.nan, "skip")
    (back,) = from_text(to_text([event]))
    assert (back.layer, back.step, back.response) == ("a.b", 5, "skip") and math.isnan(back.value)
    assert str(event) == "error of layer 'a.b' is NaN in epoch 2, step 5"


# ---- skipping ----------------------------------------------------------------------------------------------------


def bad_batch():
    images, labels = batches(1)[0]
    return poison(images), labels


def exploding_batch():
    images, labels = batches(1)[0]
    return images * 1e8, labels


OPTIMIZERS = {
    "sgd": sgd,
    "sgd dampened": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, dampening=0.5),
    "adam": adam,
    "adam fused": lambda model: adam(model, fused=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 1e-3, amsgrad=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9, centered=True),
}


def everything(model, optimizer):
    state = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state |= {f"{index}.{k}": torch.as_tensor(v).clone() for k, v in optimizer.state.get(parameter, {}).items()}
    return state | {k: v for k, v in lp.precision_state(model).items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("at", [0, 2, 7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_never_happened(name, at, every):
    clean, watched = network(), network()
    optimizer = OPTIMIZERS[name](clean)
    for images, labels in batches():
        closure_of(clean, optimizer, images, labels)()
        optimizer.step()
    other = OPTIMIZERS[name](watched)
    monitor = lp.StabilityMonitor(watched, other, lp.StabilitySettings(on_unstable="skip", check_every=every))
    data = batches()
    losses = run(watched, monitor, [*data[:at], bad_batch(), *data[at:]])
    assert_equal(everything(clean, optimizer), everything(watched, other))
    assert monitor.skipped == 1 and [event.step for event in monitor.events] == [at]
    assert [math.isnan(loss) for loss in losses].index(True) == at


@pytest.mark.parametrize("every", [1, 4])
def test_a_step_that_explodes_in_the_optimizer_is_taken_back(every):
    clean, watched = network(), network()
    optimizer, other = adam(clean), adam(watched)
    monitor = lp.StabilityMonitor(watched, other, lp.StabilitySettings(on_unstable="skip", check_every=every))
    for images, labels in batches(4):
        closure_of(clean, optimizer, images, labels)()
        optimizer.step()
    for step, (images, labels) in enumerate([*batches(2), *batches(4)[1:]]):
        other.param_groups[0]["lr"] = 1e9 if step == 1 else 1e-3
        monitor.step(closure_of(watched, other, images, labels))
    monitor.check()
    assert_equal(everything(clean, optimizer), everything(watched, other))
    (event,) = monitor.events
    assert (event.step, event.operand, event.kind) == (1, "master", "exploding")


@pytest.mark.parametrize("recipe", ["bfp8", "int8", "mxfp4"])
def test_a_skipped_step_of_a_low_precision_run_never_happened(recipe):
    """Stochastic rounding too: the seeds of the optimizer go back, and those of the layers are of the batch."""
    results = []
    for skipping in (True, False):
        model = network()
        lp.lower(model, recipe)
        optimizer = lp.LowPrecisionOptimizer(sgd(model), recipe, seed=3)
        monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))
        for step, (images, labels) in enumerate([*batches(2), bad_batch(), *batches(5)]):
            torch.manual_seed(step)
            if step != 2 or skipping:
                monitor.step(closure_of(model, optimizer, images, labels))
        results.append(everything(model, optimizer) | {"steps": torch.tensor(optimizer.steps)})
        assert monitor.skipped == skipping
    assert_equal(*results)


def test_a_step_taken_back_gives_its_rounding_seeds_back():
    results = []
    for skipping in (True, False):
        model = network()
        lp.lower(model, "bfp8")
        optimizer = lp.LowPrecisionOptimizer(sgd(model), "bfp8", seed=3)
        monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))
        for step, (images, labels) in enumerate(batches()):
            torch.manual_seed(step)
            optimizer.param_groups[0]["lr"] = 1e9 if step == 2 else 0.05
            if step != 2 or skipping:
                monitor.step(closure_of(model, optimizer, images, labels))
        results.append(everything(model, optimizer))
        assert [event.operand for event in monitor.events] == ["master"] * skipping
    assert_equal(*results)


def test_the_random_numbers_of_a_replay_are_those_of_the_batch_and_leave_no_trace():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output == 0))
    monitor = lp.StabilityMonitor(model, sgd(model), lp.StabilitySettings(on_unstable="skip"))
    images = torch.randn(3, 4)
    images[0, 0] = math.inf
    monitor.step(closure_of(model, monitor.optimizer, images, torch.tensor([0, 1, 0])))
    after = torch.rand(3)
    assert len(seen) == 2 and torch.equal(seen[0][1:], seen[1][1:])
    (event,) = monitor.events
    assert (event.layer, event.operand, event.kind) == ("0", "activation", "inf")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    monitor.step(closure_of(model, monitor.optimizer, images, torch.tensor([0, 1, 0])))
    once = torch.get_rng_state()
    torch.set_rng_state(state)
    model(images)
    assert torch.equal(torch.get_rng_state(), once) and after.shape == (3,)


@pytest.mark.parametrize("every", [1, 2])
def test_skips_in_a_row_are_bounded(every):
    model = network()
    settings = lp.StabilitySettings(on_unstable="skip", max_skips=3, check_every=every)
    monitor = lp.StabilityMonitor(model, sgd(model), settings)
    run(model, monitor, [bad_batch(), batches(1)[0]] * 6)
    assert monitor.skipped == 6
    with pytest.raises(lp.Diverged, match=r"4 steps in a row could not be taken; .* raise max_skips"):
        run(model, monitor, [bad_batch()] * 6)
    assert monitor.events[-1].response == "stop"


def test_a_host_side_state_needs_a_look_at_every_step():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1

    model = network()
    optimizer = Counting(model.parameters(), 0.1, momentum=0.9)
    unseen = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip", check_every=5))
    with pytest.raises(ValueError, match=r"'count' is no tensor; .* or set check_every: 1"):
        run(model, unseen, batches(2))
    seen = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))
    run(model, seen, [*batches(2), bad_batch()])
    assert optimizer.state[model[4].weight]["count"] == 3


# ---- no waiting --------------------------------------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Fails where the host would read a number from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_unstable", ["stop", "skip"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_host_reads_nothing_between_two_looks(name, on_unstable):
    model = network()
    optimizer = sgd(model) if name == "sgd" else adam(model, fused=True)
    settings = lp.StabilitySettings(on_unstable=on_unstable, check_every=100)
    monitor = lp.StabilityMonitor(model, optimizer, settings)
    data = batches()
    run(model, monitor, data[:1])  # the first step makes the optimizer's state
    with NoWaiting():
        for images, labels in [*data[1:4], bad_batch(), *data[4:]]:
            monitor.step(closure_of(model, optimizer, images, labels))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        bool(monitor.accepted)
    if on_unstable == "stop":
        with pytest.raises(lp.Diverged, match="step 4"):
            monitor.check()
    else:
        monitor.check()
        assert [event.step for event in monitor.events] == [4]


def on_meta(optimizer_of):
    """A model on a device that is not the CPU, after a first step."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer_of(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return model, optimizer


def test_a_step_counter_on_the_host_is_refused_where_the_host_does_not_look():
    model, optimizer = on_meta(torch.optim.Adam)
    monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))
    with pytest.raises(ValueError, match=r"its state 'step' is on the cpu; make the optimizer with capturable=True"):
        monitor.step(lambda: model(torch.ones(3, 4, device="meta")).sum())


def test_nothing_is_copied_to_the_host():
    """A meta tensor has no values: whoever reads one, or copies it elsewhere, fails."""
    model, optimizer = on_meta(lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9))
    monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))
    assert monitor.period == 20  # the default where a look would wait

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4, device="meta")).square().mean()
        loss.backward()
        return loss

    for _ in range(19):
        monitor.step(closure)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        monitor.step(closure)


# ---- raising -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_training_goes_on_in_a_higher_precision(every):
    model = network()
    lp.lower(model, "bfp8")
    optimizer = lp.LowPrecisionOptimizer(sgd(model), "bfp8", seed=2)
    settings = lp.StabilitySettings(on_unstable="raise_precision", raise_to="fp32", check_every=every)
    monitor = lp.StabilityMonitor(model, optimizer, settings)
    data = batches()
    run(model, monitor, [*data[:3], bad_batch()])
    assert monitor.raised and optimizer.precision.name == "fp32" and monitor.events[0].response == "raise_precision"
    assert model[0].lowering.precision.name == "fp32"
    by_hand = lp.raise_(copy.deepcopy(model))
    plain = sgd(by_hand)
    plain.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
    for images, labels in data[3:]:
        closure_of(by_hand, plain, images, labels)()
        plain.step()
    run(model, monitor, [*data[3:5], bad_batch(), *data[5:]])
    assert [event.response for event in monitor.events] == ["raise_precision", "skip"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_hand.parameters(), strict=True))


def test_a_monitor_resumes_with_its_precision_and_its_levels():
    settings = lp.StabilitySettings(on_unstable="raise_precision", raise_to="bf16")

    def made():
        model = network()
        lp.lower(model, "bfp8")
        optimizer = lp.LowPrecisionOptimizer(sgd(model), "bfp8", seed=2)
        return model, optimizer, lp.StabilityMonitor(model, optimizer, settings)

    model, optimizer, monitor = made()
    run(model, monitor, [*batches(3), bad_batch()])
    saved = copy.deepcopy((monitor.state_dict(), model.state_dict(), optimizer.state_dict()))
    run(model, monitor, batches(4))
    again, other, resumed = made()
    for part, state in zip((resumed, again, other), saved, strict=True):
        part.load_state_dict(state)
    run(again, resumed, batches(4))
    assert_equal(everything(model, optimizer), everything(again, other))
    assert other.precision.name == "bf16" and again[0].lowering.precision.name == "bf16"
    assert_equal(monitor.state_dict()["levels"], resumed.state_dict()["levels"])


# ---- off, and on without an event --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"check_every": 3}, {"on_unstable": "skip"}], ids=str)
def test_watching_changes_nothing(settings):
    results = []
    for watched in (True, False):
        model = network()
        lp.lower(model, "bfp8")
        optimizer = lp.LowPrecisionOptimizer(sgd(model), "bfp8", seed=2)
        monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(**settings))
        for images, labels in batches():
            closure = closure_of(model, optimizer, images, labels)
            if watched:
                monitor.step(closure)
            else:
                closure()
                optimizer.step()
        results.append(everything(model, optimizer) | {"random": torch.get_rng_state()})
    assert_equal(*results)


def test_half_precision_and_sparse_gradients_are_judged_in_float32():
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Flatten(), nn.Linear(24, 2))
    model[2].half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    monitor = lp.StabilityMonitor(model, optimizer, lp.StabilitySettings(on_unstable="skip"))

    def closure():
        optimizer.zero_grad()
        loss = F.linear(model[1](model[0](torch.tensor([[1, 2, 3]]))), model[2].weight.float()).sum()
        loss.backward()
        return loss

    monitor.step(closure)
    with torch.no_grad():
        model[2].weight.fill_(6e4)  # their norm is beyond float16
    monitor.levels.factor = math.inf
    monitor.step(closure)
    assert not monitor.events
    with torch.no_grad():
        model[0].weight[2, 3] = math.nan
    monitor.step(closure)
    assert monitor.events[0].kind == "nan"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_unstable": "raise_precision"}, "give both or neither"),
        ({"raise_to": "fp32"}, "give both or neither"),
        ({"check_every": 0}, "check_every must be at least 1"),
        ({"explode_factor": 1.0}, "explode_factor must be above 1"),
        ({"explode_factor": math.nan}, "explode_factor must be above 1"),
        ({"explode_above": 0.0}, "explode_above must be above 0"),
        ({"max_skips": 0}, "max_skips must be at least 1"),
    ],
)
def test_impossible_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        lp.StabilitySettings(**options)


def test_a_foreign_optimizer_and_a_foreign_precision_are_refused():
    with pytest.raises(ValueError, match="are none of Sequential's"):
        lp.StabilityMonitor(network(), sgd(network()))
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="trains nothing"):
        lp.StabilityMonitor(model, sgd(model))
    with pytest.raises(ValueError, match="unknown precision 'fp33'"):
        settings = lp.StabilitySettings(on_unstable="raise_precision", raise_to="fp33")
        model = network()
        lp.StabilityMonitor(model, sgd(model), settings)
    with pytest.raises(ValueError, match="no precision to go on in"):
        lp.StabilityMonitor(model, sgd(model)).raise_precision()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("on_unstable", ["stop", "skip", "raise_precision"])
@pytest.mark.parametrize("operand", ["gradient", "momentum"])
def test_a_format_that_refuses_nan_in_the_optimizer_is_an_unstable_step(every, on_unstable, operand):
    model = network()
    recipe = lp.precision("fp32", **{operand: "fp4_e2m1"})
    optimizer = lp.LowPrecisionOptimizer(sgd(model), recipe, seed=1)
    raise_to = "fp32" if on_unstable == "raise_precision" else None
    settings = lp.StabilitySettings(on_unstable, raise_to, check_every=every)
    monitor, data = lp.StabilityMonitor(model, optimizer, settings), batches()
    run(model, monitor, data[:3])
    before = copy.deepcopy(dict(model.state_dict()))
    bad = closure_of(model, optimizer, poison(data[3][0]), data[3][1])
    if on_unstable == "stop":
        with pytest.raises(lp.Diverged, match="step 3"):
            monitor.step(bad)
            monitor.check()
        return
    monitor.step(bad)
    monitor.check()
    assert [event.step for event in monitor.events] == [3] and not monitor.accepted
    assert monitor.raised == (on_unstable == "raise_precision")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run(model, monitor, data[4:])
    assert monitor.skipped == 1 and all(p.isfinite().all() for p in model.parameters())
