"""`lp.draw_ticket`: what it refuses before anything is trained, and what it hands over when it fails later."""

import copy

import pytest
import torch
import zoo
from own_loop import Loop, draw, residual_net, small_net
from torch import nn

import lowprec_eb as lp
from lowprec_eb.tickets import (
    Budget,
    BudgetError,
    BudgetSearch,
    NaNScores,
)

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
    ("change", "message"),
    [
        ({"ratio": "0.5"}, "ratio must be a number, got '0.5'"),
        ({"ratio": True}, "ratio must be a number, got True"),
        ({"threshold": None}, "threshold must be a number, got None"),
        ({"sparsity": "1e-4"}, "sparsity must be a number"),
        ({"score_momentum": [0.5]}, "score_momentum must be a number"),
        ({"window": "5"}, "window must be a whole number, got '5'"),
        ({"window": None}, "window must be a whole number, got None"),
        ({"window": 2.5}, "window must be a whole number, got 2.5"),
        ({"max_epochs": 3.5}, "max_epochs must be a whole number, got 3.5"),
        ({"budget": 0.5}, r"budget must be a Budget\(kind, ratio\) or None, got 0.5"),
        ({"budget": "flops"}, "budget must be a Budget"),
        ({"optimizer": 0.1}, "optimizer must be a torch.optim.Optimizer or None, got float"),
        ({"score": None}, "score must be a name or a function"),
        ({"loss": 0.5}, "loss must be a function"),
        ({"groups": 3}, "groups must be None, 'coupled' or channel groups"),
        ({"groups": ["1"]}, "groups must be None, 'coupled' or channel groups"),
        ({"precision": 8}, "precision must be the name of a recipe"),
        ({"profile": 45}, "profile must be a name, a file or a HardwareProfile"),
    ],
)
def test_arguments_of_another_kind_are_named(change, message):
    model, inputs = small_net()
    loop = Loop(model, inputs)
    with pytest.raises(TypeError, match=message):
        draw(model, inputs, loop, **change)
    assert loop.epochs == 0


def test_what_is_no_model_and_what_is_no_loop():
    model, inputs = small_net()
    with pytest.raises(TypeError, match="train_one_epoch must be a function of the model, got None"):
        lp.draw_ticket(model, None, inputs)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        lp.draw_ticket(idle, idle, inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"Sequential fails on example_inputs \(RuntimeError"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(2)), r"fails on example_inputs \(TypeError"),
        (torch.zeros(0, 1, 8, 8), "at least one example"),
    ],
)
def test_inputs_that_the_model_does_not_take(inputs, message):
    model, own = small_net()
    with pytest.raises(ValueError, match=message):
        lp.draw_ticket(model, Loop(model, own), inputs)


@pytest.mark.parametrize("inputs", [torch.utils.data.DataLoader([1]), "batch", 3, None])
def test_inputs_of_another_kind(inputs):
    model, own = small_net()
    with pytest.raises(TypeError, match=f"got {type(inputs).__name__}"):
        lp.draw_ticket(model, Loop(model, own), inputs)


def test_a_model_without_anything_to_prune():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"nothing that can be pruned with one group per BatchNorm2d .*coupled"):
        lp.draw_ticket(model, idle, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"with coupled groups: 1 is an output of the model"):
        lp.draw_ticket(model, idle, torch.zeros(2, 1, 8, 8), groups="coupled", score=lambda m: {})


@pytest.mark.parametrize("rule", ["window", "single"])
def test_a_loop_that_trains_nothing(rule):
    model, inputs = small_net()
    with pytest.raises(ValueError, match="2 epochs have not changed a single parameter"):
        draw(model, inputs, idle, rule=rule)


def test_a_loop_that_trains_another_model():
    model, inputs = small_net()
    other = Loop(copy.deepcopy(model), inputs)  # its optimizer's
    with pytest.raises(ValueError, match="with an optimizer over its parameters"):
        draw(model, inputs, other)
    assert other.epochs == 2


@pytest.mark.parametrize("still", [range(1), range(3, 9)], ids=["warm-up from 0", "end of a cosine"])
def test_scores_that_stand_still_for_a_while_are_no_error(still):
    """A learning rate of 0 in the first epoch, or for the last ones of a schedule: these scores have settled."""
    model, inputs = small_net()
    loop = Loop(model, inputs)
    rates = [0.0 if epoch in still else 0.02 for epoch in range(9)]

    def train(net, epoch):
        loop.optimizer.param_groups[0]["lr"] = rates[epoch]
        loop.optimizer.state.clear()  # no momentum
        loop(net)

    drawn = draw(model, inputs, train, rule="consecutive", threshold=1e-9, window=5, max_epochs=9)
    assert drawn.ticket.on_time and drawn.ticket.distances == (0,) * 5


def test_a_loop_that_takes_something_else():
    model, inputs = small_net()
    with pytest.raises(ValueError, match=r"yours takes \(net, loader\).*Wrap it"):
        draw(model, inputs, lambda net, loader: None)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_diverged(bad):
    model, inputs = small_net()

    def diverge(net):
        net[1].weight.data[2] = bad

    with pytest.raises(NaNScores, match=r"after 1 epochs the scores of group '1' .* hold NaN or infinity"):
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


# ---- what fails when it has been paid for ------------------------------------------------------------------------


def fails(message):
    def fail(*_, **__):
        raise RuntimeError(message)

    return fail


def test_a_ticket_whose_model_fails_its_check_is_handed_over(monkeypatch):
    model, inputs = small_net()
    monkeypatch.setattr("lowprec_eb.tickets.drawn.check_compaction", fails("outputs differ"))
    with pytest.raises(lp.CutError, match=r"epoch 2 .*not be cut \(RuntimeError: outputs differ\)") as caught:
        draw(model, inputs)
    monkeypatch.undo()
    error = caught.value
    assert isinstance(error.__cause__, RuntimeError) and error.drawn is None
    replayed = lp.replay(error.history, lp.EarlyBird(0.5, threshold=1.0, window=2)).ticket
    assert error.ticket.on_time and replayed.distance(error.ticket) == 0
    assert lp.compact(model, error.ticket, inputs)[0].out_channels == 4


def test_a_ticket_that_misses_its_budget_after_all_is_handed_over(monkeypatch):
    model, inputs = residual_net()
    loop, real = Loop(model, inputs), BudgetSearch.draw

    def of_random_scores_alone(search, scores):
        if loop.epochs:
            raise BudgetError("the nearest ticket leaves too much")
        return real(search, scores)

    monkeypatch.setattr(BudgetSearch, "draw", of_random_scores_alone)
    with pytest.raises(lp.CutError, match="the nearest ticket leaves too much") as caught:
        draw(model, inputs, loop, budget=Budget("flops", 0.5))
    assert caught.value.ticket.ratio == 0.5 and len(caught.value.history.steps) == loop.epochs == 2


def test_the_smaller_model_is_handed_over_where_the_optimizer_cannot_follow(monkeypatch):
    model, inputs = small_net()
    loop = Loop(model, inputs)
    monkeypatch.setattr("lowprec_eb.tickets.compaction.Compaction.move_optimizer", fails("no such state"))
    with pytest.raises(lp.CutError, match=r"optimizer could not be moved .*no such state") as caught:
        draw(model, inputs, loop, optimizer=loop.optimizer)
    assert caught.value.drawn.model[0].out_channels == 4 and caught.value.drawn.ticket is caught.value.ticket
