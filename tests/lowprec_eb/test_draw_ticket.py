"""`lp.draw_ticket`: a ticket from somebody's own loop, the smaller model, widths and savings."""

import copy
import inspect

import pytest
import torch
import zoo
from own_loop import Loop, draw, residual_net, small_net
from torch import nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.layers import LoweredModule
from lowprec_eb.tickets import Budget, BudgetError, keep_largest, scorer
from lowprec_eb.tickets import draw as draw_once
from lowprec_eb.tickets.masks import Layout


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


def test_every_argument_is_documented():
    described = lp.draw_ticket.__doc__
    assert all(name in described for name in inspect.signature(lp.draw_ticket).parameters)
