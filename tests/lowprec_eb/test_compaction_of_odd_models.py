"""Structures that mislead: parts of layers, branches of training alone, closed activations, layers without values."""

import copy
import dataclasses

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import lowprec_eb as lp
from lowprec_eb.tickets import ChannelGroup, channel_groups, plan_compaction
from lowprec_eb.tickets.equality import check_compaction
from lowprec_eb.tickets.members import ChannelGroups

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Odd(nn.Module):
    """``forward`` is given: a function of the model and its input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def pooled(x):
    return x.mean((2, 3))


def with_auxiliary(m, x):
    u = m.a(x)
    out = m.head(pooled(m.b(u)))
    return (out, m.aux(pooled(u))) if m.training else out


def split(m, x):
    u, v = m.a(x).split([5, 11], 1)
    return m.head(pooled(torch.cat([m.b(u), m.c(v)], 1)))


def zero_head():
    head = nn.Linear(16, 5)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def normed(norm):
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 16, 3))
    return Odd(lambda m, x: m.head(pooled(m.f(x))), f=layers, head=nn.Linear(16, 5))


def in_float32(m, x):
    return m.head(pooled(m.a(x.float() + torch.zeros(8, dtype=torch.float32))))


MODELS = {
    "parts of a layer": lambda: Odd(split, a=block(3, 16), b=block(5, 12), c=block(11, 10), head=nn.Linear(22, 5)),
    "a slice of a layer": lambda: Odd(
        lambda m, x: m.head(pooled(m.b(m.a(x)[:, :12]))), a=block(3, 16), b=block(12, 8), head=nn.Linear(8, 5)
    ),
    "auxiliary classifier": lambda: Odd(
        with_auxiliary, a=block(3, 16), b=block(16, 16), aux=nn.Linear(16, 5), head=nn.Linear(16, 5)
    ),
    "negated before a ReLU": lambda: Odd(
        lambda m, x: m.head(pooled(F.relu(-m.bn(m.a(x))))),
        a=nn.Conv2d(3, 16, 3),
        bn=nn.BatchNorm2d(16),
        head=nn.Linear(16, 5),
    ),
    "difference before a ReLU": lambda: Odd(
        lambda m, x: m.head(pooled(F.relu(m.a(x) - m.b(x)))),
        a=block(3, 16),
        b=block(3, 16),
        head=nn.Linear(16, 5),
    ),
    "zero head": lambda: Odd(
        lambda m, x: m.head(pooled(m.b(m.a(x)))), a=block(3, 16), b=block(16, 16), head=zero_head()
    ),
    "float32 asked for": lambda: Odd(in_float32, a=block(3, 16), head=nn.Linear(16, 5)),
    "keyword calls": lambda: Odd(
        lambda m, x: m.head(input=pooled(F.relu(m.bn(input=m.a(input=x))))),
        a=nn.Conv2d(3, 16, 3),
        bn=nn.BatchNorm2d(16),
        head=nn.Linear(16, 5),
    ),
    "instance norm": lambda: normed(nn.InstanceNorm2d(16, affine=True)),
    "bare instance norm": lambda: normed(nn.InstanceNorm2d(16)),
    "group norm by channel": lambda: normed(nn.GroupNorm(16, 16)),
    "depthwise transposed": lambda: normed(nn.ConvTranspose2d(16, 16, 3, groups=16)),
    "batch norm without scale": lambda: normed(nn.BatchNorm2d(16, affine=False)),
}
WITH_BATCH_NORM = [
    name for name in MODELS if name.split()[0] not in ("instance", "bare", "group", "depthwise", "batch")
]


def outputs(model, training):
    model.train(training)
    return tree_leaves(model(IMAGES))


def drop(model, coupled):
    """A ticket of about half of the channels, the model cut by it, and the model masked by it, of trained values."""
    groups = channel_groups(model, IMAGES, coupled)  # of a model as it comes
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("mean"))):
            tensor.add_(0.2 * torch.randn(tensor.shape))
    ticket = zoo.random_ticket(groups, coupled)
    small, masked = lp.compact(model, ticket, IMAGES), copy.deepcopy(model)
    ticket.apply(masked)
    return groups, masked, small


_BY_BATCH_NORM = ("auxiliary classifier", "negated before a ReLU", "zero head", "float32 asked for", "keyword calls")
CASES = [(name, True) for name in MODELS] + [(name, False) for name in _BY_BATCH_NORM]


@pytest.mark.parametrize(("name", "coupled"), CASES)
def test_compacted_outputs_equal_the_masked_models(name, coupled):
    torch.manual_seed(0)
    groups, masked, small = drop(MODELS[name](), coupled)
    assert len(groups)
    for training in (False, True):
        for one, other in zip(outputs(masked, training), outputs(small, training), strict=True):
            assert torch.allclose(one, other, atol=1e-5 * float(one.detach().abs().max()))


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("parts of a layer", "batch norm without scale")])
def test_all_that_is_dropped_is_removed(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    groups = channel_groups(model, IMAGES)
    assert not plan_compaction(model, zoo.random_ticket(groups, True), IMAGES).zeroed


def test_what_a_normalisation_makes_of_nothing_stays():
    """Its running mean is zero when it is new, and is not when it has been trained."""
    model = MODELS["batch norm without scale"]()
    plan = plan_compaction(model, zoo.random_ticket(channel_groups(model, IMAGES), True), IMAGES)
    assert plan.zeroed["f.0"] > 0


def test_parts_of_a_layer_are_groups_with_names_of_their_own():
    """Only one of them is read."""
    groups = channel_groups(MODELS["a slice of a layer"](), IMAGES)
    assert "a.0[12:16]" in {group.name for group in groups} and "a.0" in groups.unprunable


def test_two_groups_of_one_name_are_refused():
    group = ChannelGroup("a", 4, ())
    with pytest.raises(ValueError, match="a name of its own; given twice: a"):
        ChannelGroups((group, group), {})
    with pytest.raises(ValueError, match="given twice: a"):
        lp.Ticket({"a": torch.ones(4, dtype=torch.bool)}, 0.5, 0, groups=[group, group])


def test_a_forward_that_asserts_its_width_is_listed():
    def forward(m, x):
        u = m.a(x)
        assert u.shape[1] == 16, "sixteen, please"
        return m.head(pooled(m.b(u)))

    groups = channel_groups(Odd(forward, a=block(3, 16), b=block(16, 8), head=nn.Linear(8, 5)), IMAGES)
    assert "AssertionError: sixteen, please" in groups.unprunable["a.0"]
    assert [group.name for group in groups] == ["b.0"]


def test_outputs_that_hide_their_tensors_are_an_error_that_says_so():
    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor

    model = Odd(lambda m, x: Out(m.head(pooled(m.a(x)))), a=block(3, 16), head=nn.Linear(16, 5))
    with pytest.raises(ValueError, match="returns Out, in which no tensor"):
        channel_groups(model, IMAGES)


class OneForward(nn.Module):
    """Projection, normalisation and attention in one module."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.first, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        u = self.norm(self.first(x))
        q, k, v = (p(u).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.head(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def test_a_projection_in_front_of_heads_is_not_part_of_them():
    torch.manual_seed(0)
    model, x = OneForward(4), torch.randn(2, 3, 6)
    groups = channel_groups(model, x)
    (heads,) = (group for group in groups if group.unit == "head")
    assert heads.channels == 4 and {m.module for m in heads.members} == {"q", "k", "v", "out"}
    small = lp.compact(model, zoo.random_ticket(groups, True), x)
    assert small.heads < 4 and small.first.out_features == 16


def test_one_head_alone_is_no_group():
    groups = channel_groups(OneForward(1), torch.randn(2, 3, 6))
    assert groups.unprunable["q"] == "has one head alone" and all(group.unit == "channel" for group in groups)


def test_groups_leave_the_random_state_alone():
    torch.manual_seed(0)
    model, x = OneForward(4), torch.randn(2, 3, 6)
    before = torch.get_rng_state()
    channel_groups(model, x)
    assert torch.equal(before, torch.get_rng_state())


def test_a_layer_that_can_be_masked_is_not_called_unprunable():
    model = Odd(lambda m, x: m.head(pooled(m.r(m.r(m.a(x))))), a=block(3, 8), r=block(8, 8), head=nn.Linear(8, 5))
    groups = channel_groups(model, IMAGES, coupled=False)
    assert {"a.1", "r.1"} == {group.name for group in groups} and not {"a.1", "r.1"} & groups.unprunable.keys()


# ---- the check ------------------------------------------------------------------------------------------------------


class WidthInTraining(nn.BatchNorm2d):
    """Wrong with batch statistics alone."""

    def forward(self, x):
        return super().forward(x) + (x.shape[1] if self.training else 0)


def test_the_check_compares_with_batch_statistics_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), WidthInTraining(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    ticket = lp.Ticket({"1": torch.arange(8) > 3}, 0.5, 0)
    with pytest.raises(ValueError, match="differs from the masked one"):
        lp.compact(model, ticket, IMAGES)


def test_a_diverged_model_is_compacted_by_its_structure():
    model = MODELS["keyword calls"]()
    model.a.weight.data[3] = float("nan")
    ticket = lp.Ticket({"bn": torch.arange(16) % 2 == 0}, 0.5, 0)
    small = lp.compact(model, ticket, IMAGES)
    assert small.a.out_channels == 8


def test_outputs_without_numbers_are_no_proof():
    model = Odd(lambda m, x: m.head(pooled(m.a(x))) * 0, a=block(3, 8), head=nn.Linear(8, 5))
    ticket = lp.Ticket({"a.1": torch.arange(8) % 2 == 0}, 0.5, 0)
    with pytest.raises(ValueError, match="nothing to compare"):
        check_compaction(plan_compaction(model, ticket, IMAGES), model, IMAGES)
