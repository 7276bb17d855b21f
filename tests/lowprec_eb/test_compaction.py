"""Compaction: a smaller plain model that equals the masked one."""

import copy

import pytest
import torch
from torch import nn

import lowprec_eb as lp
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tickets import draw_by_gamma, gamma_scores, plan_compaction


def vgg(widths=(6, "M", 8, 10), seed=0):
    model = build_model(VGGSettings(widths=widths), (3, 8, 8), 5, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model


class FlattenNet(nn.Module):
    """A flatten in front of the classifier: one channel owns several of its inputs. Biases on the convolutions."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.BatchNorm2d(7), nn.ReLU()
        )  # fmt: skip
        self.head = nn.Linear(7 * 16, 5)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("make", [vgg, FlattenNet], ids=["vgg", "flatten"])
def test_compacted_logits_equal_the_masked_models(make, ratio, training):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for score in gamma_scores(model).values():
            score.copy_(torch.rand_like(score) + 0.1)
    x = torch.randn(4, 3, 8, 8)
    model.train()
    model(x)  # running statistics that are not the initial ones
    ticket = draw_by_gamma(model, ratio, epoch=1)
    before = copy.deepcopy(model.state_dict())
    small = lp.compact(model, ticket, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    ticket.apply(model)
    model.train(training), small.train(training)
    masked, compacted = model(x), small(x)
    assert torch.allclose(masked, compacted, rtol=1e-5, atol=1e-5 * float(masked.detach().abs().max()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    norms = [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [n.num_features for n in norms] == list(ticket.widths.values())
    assert ticket.channels_kept == sum(n.num_features for n in norms)


def test_a_channel_that_matters_is_missed():
    """The comparison above would notice a wrong channel."""
    model = vgg().eval()
    x = torch.randn(2, 3, 8, 8)
    ticket = draw_by_gamma(model, 0.5, epoch=0)
    wrong = lp.Ticket({k: m.flip(0) for k, m in ticket.masks.items()}, 0.5, 0)
    small = lp.compact(model, wrong, x).eval()
    ticket.apply(model)
    assert not torch.allclose(model(x), small(x), rtol=1e-3)


def test_momentum_moves_to_the_surviving_channels():
    torch.manual_seed(0)
    model = vgg()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    ticket = draw_by_gamma(model, 0.5, epoch=1)
    plan = plan_compaction(model, ticket, x)
    small = plan.apply(model)
    moved = torch.optim.SGD(small.parameters(), 0.01, momentum=0.9)
    moved.load_state_dict(plan.optimizer_state(model, optimizer.state_dict()))
    names = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        buffer = moved.state[parameter]["momentum_buffer"]
        assert buffer.shape == parameter.shape
        assert torch.equal(buffer, plan.select(name, optimizer.state[names[name]]["momentum_buffer"]))
    kept = ticket.masks["features.1"].nonzero()[:, 0]
    first = optimizer.state[model.features[0].weight]["momentum_buffer"][kept]
    assert torch.equal(moved.state[small.features[0].weight]["momentum_buffer"], first)


def test_the_low_precision_of_a_lowered_model_moves_along():
    model, x = vgg(), torch.randn(2, 3, 8, 8)
    ticket = draw_by_gamma(model, 0.5, epoch=0)
    plain = lp.compact(model, ticket, x).eval()
    lp.lower(model, "bfp8")
    small = lp.compact(model, ticket, x).eval()
    assert [n for n, _ in lp.precision_state(small).items()] == [n for n, _ in lp.precision_state(model).items()]
    assert not torch.equal(small(x), plain(x))
    lp.lower(plain, "bfp8")
    assert torch.equal(small(x), plain(x))
    assert type(lp.raise_(small).features[0]) is nn.Conv2d and type(model.features[0]) is not nn.Conv2d


@pytest.mark.parametrize(("axis", "stays"), [(None, True), (0, False)])
def test_running_ranges_of_whole_tensors_move_along(axis, stays):
    model, x = vgg(), torch.randn(4, 3, 8, 8)
    ticket = draw_by_gamma(model, 0.5, epoch=0)
    scaled = lp.Rounded(lp.Int(8, axis=axis), running=0.9)
    lp.lower(model, lp.Precision(weight=scaled))
    model.train()(x)
    before = lp.precision_state(model)
    small = lp.compact(model, ticket, x)
    assert before and bool(lp.precision_state(small)) == stays
    small.train()(x)
    assert lp.precision_state(small).keys() == before.keys()


def test_frozen_parameters_stay_frozen():
    model = vgg()
    model.features[0].weight.requires_grad_(False)
    small = lp.compact(model, draw_by_gamma(model, 0.5, epoch=0), torch.randn(2, 3, 8, 8))
    assert not small.features[0].weight.requires_grad and small.classifier.weight.requires_grad


def test_channel_groups_name_what_is_coupled():
    paper = lp.channel_groups(FlattenNet(), torch.zeros(1, 3, 8, 8), coupled=False)
    assert [(g.name, g.channels) for g in paper] == [("body.1", 6), ("body.4", 7)]
    coupled = lp.channel_groups(FlattenNet(), torch.zeros(1, 3, 8, 8))
    assert [(g.name, g.channels) for g in coupled] == [("body.0", 6), ("body.3", 7)]
    assert coupled.unprunable == {"head": "is an output of the model"}
    for groups in (paper, coupled):
        members = {(m.module, m.side): m for m in groups[1].members}
        assert set(members) - {("body.4", "in")} == {("body.4", "out"), ("body.3", "out"), ("head", "in")}
        head = members["head", "in"]
        assert [p for p, c in zip(head.positions, head.channels, strict=True) if c == 2] == list(range(32, 48))
        assert head.tensors == (("weight", 1),)


class Branches(nn.Module):
    """Two branches that are joined: by concatenation (each has its own channels) or by a sum (they share them)."""

    def __init__(self, join, activation=None):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), activation or nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.join = join
        self.head = nn.Conv2d(8 if join == "cat" else 4, 5, 1)

    def forward(self, x):
        joined = torch.cat([self.a(x), self.b(x)], 1) if self.join == "cat" else self.a(x) + self.b(x)
        return self.head(joined).mean((2, 3))


def branch_ticket(a, b):
    return lp.Ticket({"a.1": torch.tensor(a, dtype=torch.bool), "b.1": torch.tensor(b, dtype=torch.bool)}, 0.5, 0)


def test_concatenated_branches_are_cut_each_at_its_own_place():
    model, x = Branches("cat"), torch.randn(2, 3, 8, 8)
    ticket = branch_ticket([1, 0, 0, 1], [0, 1, 1, 1])
    small = lp.compact(model, ticket, x).eval()
    ticket.apply(model)
    assert torch.allclose(model.eval()(x), small(x), atol=1e-6)
    assert small.head.in_channels == 5


def test_of_summed_branches_only_what_both_drop_is_removed():
    torch.manual_seed(0)
    model, x = Branches("sum"), torch.randn(2, 3, 8, 8)
    for tickets, width, zeroed in [
        (branch_ticket([1, 0, 0, 1], [0, 1, 1, 1]), 4, {"a.1": 2, "b.1": 1}),
        (branch_ticket([1, 0, 0, 1], [0, 1, 0, 1]), 3, {"a.1": 1, "b.1": 1}),
        (branch_ticket([1, 0, 0, 1], [1, 0, 0, 1]), 2, {}),
    ]:
        plan = plan_compaction(model, tickets, x)
        small = lp.compact(model, tickets, x).eval()
        masked = copy.deepcopy(model).eval()
        tickets.apply(masked)
        assert torch.allclose(masked(x), small(x), atol=1e-6)
        assert small.head.in_channels == width and dict(plan.zeroed) == zeroed


def test_a_dropped_channel_that_is_not_zero_where_it_is_read_stays():
    model, x = Branches("cat", nn.Sigmoid()), torch.randn(2, 3, 8, 8)
    ticket = branch_ticket([1, 0, 0, 1], [1, 0, 1, 1])
    plan = plan_compaction(model, ticket, x)
    assert dict(plan.zeroed) == {"a.1": 2}
    assert lp.compact(model, ticket, x).head.in_channels == 7


def test_a_depthwise_convolution_is_cut_where_both_sides_agree():
    expand = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
    model = nn.Sequential(*expand, nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    ticket = lp.Ticket({"1": torch.tensor([1, 0, 0, 1]).bool(), "4": torch.tensor([0, 0, 1, 1]).bool()}, 0.5, 0)
    plan, small = (f(model, ticket, torch.zeros(1, 3, 8, 8)) for f in (plan_compaction, lp.compact))
    assert (small[3].groups, small[3].in_channels, small[5].in_channels) == (2, 2, 2)
    assert dict(plan.zeroed) == {"1": 1}  # its bias comes out of the depthwise convolution all the same


def test_a_ticket_of_another_model_is_refused():
    other = lp.Ticket({"x": torch.ones(3, dtype=torch.bool)}, 0.5, 0)
    with pytest.raises(ValueError, match=r"layer 'x' .* is not in this model"):
        lp.compact(vgg(), other, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="is not in this model"):
        other.apply(vgg())
    narrow = lp.Ticket({"features.1": torch.ones(5, dtype=torch.bool)}, 0.5, 0)
    with pytest.raises(ValueError, match="has channels up to number 5, the model's has 6"):
        narrow.apply(vgg())
    wide = lp.Ticket({"features.1": torch.ones(7, dtype=torch.bool)}, 0.5, 0)
    with pytest.raises(ValueError, match="has channels up to number 7, the model's has 6"):
        wide.apply(vgg())


def test_a_model_without_values_cannot_be_observed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    ticket = lp.Ticket({"1": torch.tensor([1, 0, 0, 1]).bool()}, 0.5, 0)
    with pytest.raises(ValueError, match="Sequential is on the meta device and has no values"):
        lp.compact(model, ticket, torch.zeros(2, 3, 8, 8, device="meta"))
