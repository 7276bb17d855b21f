"""What a drawn ticket saves: measured times, modelled savings, widths of layers of every kind."""

import torch
from own_loop import small_net
from torch import nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.tickets import DrawnTicket, keep_uniform
from lowprec_eb.tickets.savings import Savings
from lowprec_eb.tickets.step_times import StepTimes, measure_steps
from lowprec_eb.tickets.widths import layer_widths

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
