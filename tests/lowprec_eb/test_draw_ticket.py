"""`lp.draw_ticket`: a ticket from somebody's own loop, the smaller model, widths and savings."""

import copy
import inspect

import pytest
import torch
import zoo
from torch import nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.layers import LoweredModule
from lowprec_eb.models import PreResNetSettings, build_model
from lowprec_eb.tickets import Budget, BudgetError, DrawnTicket, NaNScores, keep_largest, keep_uniform, scorer
from lowprec_eb.tickets import draw as draw_once
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.savings import Savings
from lowprec_eb.tickets.step_times import StepTimes, measure_steps
from lowprec_eb.tickets.widths import layer_widths


class Loop:
    """A training loop as users have them: two steps an epoch, counted."""

    def __init__(self, model, inputs, learning_rate=0.02):
        self.inputs, self.epochs = inputs, 0
        self.optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)

    def __call__(self, model):
        model.train()
        for _ in range(2):
            self.step(model)
        self.epochs += 1

    def step(self, model):
        self.optimizer.zero_grad()
        zoo.output_loss(model(self.inputs)).backward()
        self.optimizer.step()


def filter_norms(groups):
    """Scores by group: the L1 norm of what the first writer writes each channel with."""

    def scores(model):
        found = {}
        for group in groups:
            member = next(m for m in group.members if m.side == "out" and m.tensors)
            tensor, dim = member.tensors[0]
            weight = getattr(model.get_submodule(member.module), tensor).detach().abs()
            rows = weight.movedim(dim, 0).flatten(1).sum(1) if weight.dim() > 1 else weight
            found[group.name] = torch.zeros(group.channels).index_add(
                0, torch.tensor(member.channels), rows[list(member.positions)]
            )
        return found

    return scores


def small_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    nn.init.uniform_(net[1].weight, 0.2, 1.5)
    return net, torch.randn(6, 1, 8, 8)


def residual_net():
    model = build_model(PreResNetSettings(depth=8, width=8), (3, 16, 16), 5, seed=0)
    return model, torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def draw(model, inputs, loop=None, **settings):
    loop = loop or Loop(model, inputs)
    settings = {"max_epochs": 3, "window": 2, "threshold": 1.0} | settings
    return lp.draw_ticket(model, loop, inputs, **settings)


def same(one, other, scale=1e-5):
    for a, b in zip(torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other), strict=True):
        assert torch.allclose(a, b, atol=scale * float(a.abs().max()), rtol=0)


# ---- what comes back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "coupled"),
    [
        ("vgg16_bn", False),
        ("preresnet20", False),
        ("preresnet20", True),
        ("resnet18", True),
        ("mobilenet_v2", True),
        ("unet", True),
        ("vit_multihead", True),
    ],
)
def test_the_smaller_model_equals_the_masked_one_and_goes_on_training(name, coupled):
    model, inputs = zoo.build(name)
    loop = Loop(model, inputs, 0.002)
    groups = lp.channel_groups(model, inputs) if coupled else None
    score = filter_norms(groups) if coupled else "gamma"
    drawn = draw(model, inputs, loop, groups=groups, score=score, optimizer=loop.optimizer)
    assert drawn.ticket.on_time and drawn.ticket.epoch == loop.epochs == 2 and drawn.dense is model
    masked = copy.deepcopy(model).eval()
    drawn.ticket.apply(masked)
    with torch.no_grad():
        same(masked(inputs), copy.deepcopy(drawn.model).eval()(inputs))
    trained = {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in drawn.model.parameters()}
    before = [parameter.clone() for parameter in drawn.model.parameters()]
    loop(drawn.model)
    assert any(not torch.equal(a, b) for a, b in zip(before, drawn.model.parameters(), strict=True))


def test_rows_add_up_to_the_models_and_savings_to_their_counts():
    model, inputs = zoo.build("preresnet20")
    drawn = draw(model, inputs)
    rows = drawn.rows()
    for time, of in (("before", model), ("after", drawn.model)):
        assert sum(row[f"parameters_{time}"] for row in rows) == sum(p.numel() for p in of.parameters())
        assert sum(row[f"macs_{time}"] for row in rows) == em.count(of, inputs, training=False).total_macs
    by_name = {row["layer"]: row for row in rows}
    for name, module in drawn.model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (by_name[name]["in_after"], by_name[name]["out_after"]) == (module.in_channels, module.out_channels)
    assert [row["layer"] for row in rows] == [n for n, m in model.named_modules() if list(m.parameters(recurse=False))]
    savings = {row["quantity"]: row for row in drawn.savings(measure=False).rows()}
    assert savings["training FLOPs"]["after"] == 2 * em.count(drawn.model, inputs).total_macs
    profile = em.load_profile("45nm")
    of = [em.estimate(em.count(m, inputs), profile) for m in (drawn.model, model)]
    ratio = of[0].ratio_to(of[1])
    energy = savings["modelled energy, 45nm"]
    assert (energy["ratio_low"], energy["ratio"], energy["ratio_high"]) == (ratio.low, ratio.nominal, ratio.high)
    assert energy["before"] == of[1].nominal_j
    groups = drawn.group_rows()
    assert {row["group"]: row["after"] for row in groups} == drawn.ticket.widths
    assert {row["group"]: row["zeroed"] for row in groups if row["zeroed"]} == dict(drawn.zeroed)
    assert list(drawn.unprunable) == ["fc"]


def test_what_it_prints():
    model, inputs = small_net()
    drawn = draw(model, inputs)
    text = str(drawn)
    assert "ticket after 2 epochs" in text and "4 of 8 channels stay" in text and "measured" not in text
    drawn.savings()
    assert "measured step time" in str(drawn)
    table = drawn.table()
    assert list(table.columns[0].cells) and [str(cell) for cell in table.columns[3].cells] == ["8 -> 4", "5"]
    assert [str(cell) for cell in drawn.table(limit=1).columns[0].cells] == ["0"]


def test_an_epoch_number_is_given_where_it_is_asked_for():
    model, inputs = small_net()
    loop, seen = Loop(model, inputs), []

    def train(net, lr=0.1, *, epoch):
        seen.append((net is model, lr, epoch))
        loop(net)

    draw(model, inputs, train)
    assert seen == [(True, 0.1, 0), (True, 0.1, 1)]


def test_the_history_replays_to_the_same_ticket():
    model, inputs = small_net()
    drawn = draw(model, inputs)
    replayed = lp.replay(drawn.history, lp.EarlyBird(0.5, threshold=1.0, window=2))
    assert replayed.ticket.epoch == drawn.ticket.epoch and replayed.ticket.distance(drawn.ticket) == 0


def test_without_a_settled_mask_the_best_is_taken_and_said_to_be_late():
    model, inputs = small_net()
    loop = Loop(model, inputs)

    def shuffle(net):
        loop(net)
        with torch.no_grad():
            net[1].weight.add_(torch.arange(8).roll(4 * loop.epochs))

    with pytest.warns(UserWarning, match="no ticket had settled within max_epochs=4"):
        drawn = draw(model, inputs, shuffle, max_epochs=4, threshold=0.05, window=3)
    assert not drawn.ticket.on_time and "most settled mask, of epoch" in str(drawn)
    assert len(drawn.history.steps) == loop.epochs == 4


# ---- optimizer, precision, penalty -------------------------------------------------------------------------------


def test_momentum_groups_and_schedule_go_along():
    model, inputs = small_net()
    loop = Loop(model, inputs)
    loop.optimizer = torch.optim.AdamW(
        [
            {"params": [model[4].weight, model[4].bias], "lr": 1e-3},
            {"params": [*model[0].parameters(), *model[1].parameters()]},
        ]
    )
    schedule = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1)
    drawn = draw(model, inputs, loop, optimizer=loop.optimizer)
    state = loop.optimizer.state[drawn.model[0].weight]
    assert state["exp_avg"].shape == drawn.model[0].weight.shape == (4, 1, 3, 3) and state["step"] == 4
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == [2, 3]
    loop(drawn.model)
    schedule.step()
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_search_is_lowered_and_the_models_come_back_plain(fails):
    model, inputs = small_net()
    loop = Loop(model, inputs)
    loop.optimizer = lp.LowPrecisionOptimizer(loop.optimizer, "bfp8", seed=0)
    lowered = []

    def train(net):
        lowered.append([name for name, m in net.named_modules() if isinstance(m, LoweredModule)])
        loop(net)
        if fails:
            raise RuntimeError("out of memory")

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            draw(model, inputs, train, precision="bfp8")
    else:
        drawn = draw(model, inputs, train, precision="bfp8", optimizer=loop.optimizer)
        assert drawn.ticket.precision == "bfp8"
        assert not any(isinstance(module, LoweredModule) for module in drawn.model.modules())
        lower = copy.deepcopy(drawn.model)
        lp.lower(lower, "bfp8")
        assert drawn.savings(measure=False).small.step.bit_ops == em.count(lower, inputs).bit_ops
    assert all(names == ["0", "4"] for names in lowered) and lowered
    assert not any(isinstance(module, LoweredModule) for module in model.modules())


def test_a_model_that_is_lowered_stays_so():
    model, inputs = small_net()
    lp.lower(model, "bfp8")
    loop = Loop(model, inputs)
    loop.optimizer = lp.LowPrecisionOptimizer(loop.optimizer, "bfp8", seed=0)
    drawn = draw(model, inputs, loop, optimizer=loop.optimizer)
    assert isinstance(drawn.model[0], LoweredModule) and drawn.ticket.precision == "bfp8"
    with pytest.raises(ValueError, match="lowered already"):
        draw(model, inputs, precision="bf16")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_penalty_is_added_at_each_step_and_gone_afterwards(wrapped):
    gradients = {}
    for strength in (0.0, 0.25):
        model, inputs = small_net()
        model[1].weight.data[:3].neg_()
        loop = Loop(model, inputs, 0.01)
        if wrapped:
            loop.optimizer = lp.LowPrecisionOptimizer(loop.optimizer, "fp32", seed=0)
        seen = gradients[strength] = []
        loop.optimizer.register_step_post_hook(lambda *_, of=model, to=seen: to.append(of[1].weight.grad.clone()))
        signs = model[1].weight.detach().sign()
        drawn = draw(model, inputs, loop, optimizer=loop.optimizer, sparsity=strength)
        loop.optimizer.zero_grad()
        zoo.output_loss(drawn.model(inputs)).backward()
        plain = drawn.model[1].weight.grad.clone()
        loop.optimizer.step()
        assert torch.equal(drawn.model[1].weight.grad, plain)
    assert torch.allclose(gradients[0.25][0] - gradients[0.0][0], 0.25 * signs, atol=1e-6)


# ---- scores and budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["gamma", "gamma_per_flop", "l1", "l2", "taylor", "gradient_flow"])
@pytest.mark.parametrize("groups", [None, "coupled"])
def test_scores_by_name(score, groups):
    model, inputs = residual_net()
    loss = {"loss": lambda net: zoo.output_loss(net(inputs))} if score == "gradient_flow" else {}
    drawn = draw(model, inputs, groups=groups, score=score, **loss)
    of = lp.channel_groups(model, inputs, coupled=groups is not None)
    wanted = scorer(score, groups=of, example_inputs=inputs, **loss)(model)
    kept = keep_largest(wanted, 0.5)
    assert {name: mask.tolist() for name, mask in drawn.ticket.masks.items()} == {
        n: m.tolist() for n, m in kept.items()
    }


def test_a_score_that_a_group_cannot_have_is_refused_before_the_search():
    model, inputs = zoo.build("vgg16_bn")
    loop = Loop(model, inputs)
    with pytest.raises(ValueError, match=r"group 'classifier\.0' has no BatchNorm, so no gamma"):
        draw(model, inputs, loop, groups="coupled")
    with pytest.raises(ValueError, match="needs loss"):
        draw(model, inputs, loop, score="gradient_flow")
    with pytest.raises(ValueError, match="'random' does not depend on training"):
        draw(model, inputs, loop, score="random")
    assert loop.epochs == 0


@pytest.mark.parametrize(
    ("groups", "budget"),
    [
        ("coupled", Budget("flops", 0.5)),
        ("coupled", Budget("energy", 0.3, profile="45nm")),
        (None, Budget("parameters", 0.4)),
        (None, Budget("channels", 0.3, protect=("layer3*",))),
    ],
)
def test_the_ticket_meets_its_budget(groups, budget):
    model, inputs = residual_net()
    drawn = draw(model, inputs, groups=groups, budget=budget, score_momentum=0.5)
    savings = {row["quantity"].split(",")[0]: row["ratio"] for row in drawn.savings(measure=False).rows()}
    rows = drawn.group_rows()
    savings["channels"] = sum(row["after"] for row in rows) / sum(row["before"] for row in rows)
    found = savings[{"flops": "training FLOPs", "energy": "modelled energy"}.get(budget.kind, budget.kind)]
    assert found == pytest.approx(1 - budget.ratio, rel=0.021) and drawn.ticket.on_time
    assert all(row["after"] == row["before"] for row in rows if budget.protect and row["group"].startswith("layer3"))
    first, second = drawn.history.scores[:2]
    layout = Layout(drawn.history.names, drawn.history.widths)
    wanted = draw_once(model, layout.split(0.5 * first + 0.5 * second), budget, inputs, drawn.ticket.groups)
    assert wanted.ticket.distance(drawn.ticket) == 0


def test_a_budget_out_of_reach_is_known_before_the_search():
    model, inputs = residual_net()
    loop = Loop(model, inputs)
    with pytest.raises(BudgetError, match="the smallest ticket leaves"):
        draw(model, inputs, loop, budget=Budget("flops", 0.9, protect=("layer1*",)), groups="coupled")
    assert loop.epochs == 0


# ---- times -------------------------------------------------------------------------------------------------------


def test_measuring_changes_nothing():
    model, inputs = small_net()
    model.insert(3, nn.Dropout(0.5))
    model.train()
    drawn_to = DrawnTicket.of(lp.Ticket(keep_uniform({"1": 8}, 0.5), 0.5, 1), model, inputs)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    times = measure_steps(model, drawn_to.model, inputs, budget_s=0)
    assert len(times.before_s) == len(times.after_s) == 5 and min(times.before_s + times.after_s) > 0
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_times_compare_round_by_round():
    times = StepTimes((1.0, 2.0, 10.0, 4.0, 5.0), (0.5, 0.5, 5.0, 3.0, 2.5), "cpu", 1)
    assert times.median_s == (4.0, 2.5) and (times.ratio.low, times.ratio.nominal, times.ratio.high) == (0.5, 0.5, 0.5)
    assert StepTimes.from_tree(times.to_tree()) == times and "5 alternating rounds" in str(times)


def test_savings_in_another_precision_are_those_of_the_lowered_model():
    model, inputs = small_net()
    savings = Savings.of(model, model, inputs, profile=em.load_profile("45nm"), precision="bfp8")
    lp.lower(model, "bfp8")
    assert savings.dense.step == em.count(model, inputs) and savings.precision == "bfp8"


# ---- widths ------------------------------------------------------------------------------------------------------


def test_widths_of_layers_of_every_kind():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
            self.grouped = nn.Conv2d(4, 8, 3, groups=4)
            self.words = nn.Embedding(11, 8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.words.weight
            self.bare = nn.Parameter(torch.zeros(3, 8))

    model = Odd()
    found = {layer.name: layer for layer in layer_widths(model, model)}
    sides = {name: (layer.read[0], layer.written[1]) for name, layer in found.items()}
    assert sides == {
        "": (None, None),
        "up": (6, 4),
        "grouped": (4, 8),
        "words": (None, 8),
        "attention": (8, 8),
        "attention.out_proj": (8, 8),
        "head": (8, 11),
    }
    assert found["head"].parameters == (0, 0) and found["words"].parameters == (88, 88)  # tied
    assert sum(layer.parameters[0] for layer in found.values()) == sum(p.numel() for p in model.parameters())


# ---- what cannot work --------------------------------------------------------------------------------------------


def idle(net):
    """Trains nothing."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.0}, "ratio must be between 0 and 1"),
        ({"threshold": 0.0}, "threshold must be in"),
        ({"rule": "windw"}, "unknown rule 'windw'"),
        ({"window": 4}, "max_epochs must be at least 4: rule 'window' with window 4"),
        ({"rule": "epi"}, "max_epochs must be at least 8"),
        ({"groups": "couple"}, "groups must be None, 'coupled'"),
        ({"score": "gama"}, "unknown score 'gama'"),
        ({"sparsity": 0.1}, "give optimizer="),
        ({"sparsity": -0.1, "optimizer": True}, "sparsity must be 0 or more"),
        ({"precision": "bfp9"}, "bfp9"),
        ({"profile": "46nm"}, "46nm"),
    ],
)
def test_settings_that_are_refused_before_anything_is_trained(change, message):
    model, inputs = small_net()
    loop = Loop(model, inputs)
    if "optimizer" in change:
        change = change | {"optimizer": loop.optimizer}
    with pytest.raises(ValueError, match=message):
        draw(model, inputs, loop, **change)
    assert loop.epochs == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"Sequential fails on example_inputs \(RuntimeError"),
        (torch.utils.data.DataLoader([1]), "not a DataLoader"),
        ("batch", "not a str"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(2)), r"fails on example_inputs \(TypeError"),
    ],
)
def test_inputs_of_the_wrong_kind(inputs, message):
    model, own = small_net()
    with pytest.raises(ValueError, match=message):
        lp.draw_ticket(model, Loop(model, own), inputs)


def test_a_model_without_anything_to_prune():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"nothing that can be pruned with one group per BatchNorm2d .*coupled"):
        lp.draw_ticket(model, idle, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"with coupled groups: 1 is an output of the model"):
        lp.draw_ticket(model, idle, torch.zeros(2, 1, 8, 8), groups="coupled", score=lambda m: {})


def test_a_loop_that_trains_nothing():
    model, inputs = small_net()
    with pytest.raises(ValueError, match="epoch 2 has not changed a single score"):
        draw(model, inputs, idle)


def test_a_loop_that_takes_something_else():
    model, inputs = small_net()
    with pytest.raises(ValueError, match=r"yours takes \(net, loader\).*Wrap it"):
        draw(model, inputs, lambda net, loader: None)


def test_scores_that_diverged():
    model, inputs = small_net()

    def diverge(net):
        net[1].weight.data[2] = torch.nan

    with pytest.raises(NaNScores, match="after 1 epochs a channel score is NaN"):
        draw(model, inputs, diverge)


def test_scores_that_never_differ():
    model, inputs = small_net()
    factor = iter((1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="equal after each of 3 epochs"):
        draw(model, inputs, lambda net: net[1].weight.data.fill_(next(factor)))


def test_an_optimizer_that_cannot_come_along_is_known_early():
    model, inputs = small_net()
    other = torch.optim.SGD(nn.Linear(3, 3).parameters(), 0.1)
    loop = Loop(model, inputs)
    with pytest.raises(ValueError, match="2 parameters are not of the given model"):
        draw(model, inputs, loop, optimizer=other)
    assert loop.epochs == 0
    loop.optimizer.state[model[0].weight]["odd"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"0\.weight/odd: a state of shape \(7,\)"):
        draw(model, inputs, loop, optimizer=loop.optimizer)
    assert loop.epochs == 0


def test_scores_of_other_groups_are_refused():
    model, inputs = zoo.build("resnet18")
    with pytest.raises(ValueError, match="the scorer gave scores of"):
        draw(model, inputs, groups="coupled", score=lambda net: {"conv1": torch.rand(8)})


def test_every_argument_is_documented():
    described = lp.draw_ticket.__doc__
    assert all(name in described for name in inspect.signature(lp.draw_ticket).parameters)
