"""Masks, tickets, the early-bird detector, and compaction."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowprec_eb as lp
from lowprec_eb import checkpoints
from lowprec_eb.models import ModelSettings, build_model
from lowprec_eb.tickets import draw_by_gamma, gamma_scores, keep_largest, keep_random, plan_compaction

scores = st.lists(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=9), min_size=1, max_size=5)


def named(lists):
    return {f"layer{i}": torch.tensor(values) for i, values in enumerate(lists)}


def vgg(widths=(6, "M", 8, 10), seed=0):
    model = build_model(ModelSettings(widths=widths), (3, 8, 8), 5, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model


# ---- masks -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(lists=scores, ratio=st.floats(0, 0.99))
def test_exactly_the_asked_number_goes_and_no_layer_is_emptied(lists, ratio):
    masks = keep_largest(named(lists), ratio)
    channels = sum(map(len, lists))
    kept = sum(int(m.sum()) for m in masks.values())
    assert kept == max(channels - round(ratio * channels), len(lists))
    assert all(m.any() for m in masks.values())


@settings(max_examples=200, deadline=None)
@given(lists=scores, ratio=st.floats(0, 0.99))
def test_what_stays_scores_at_least_as_much_as_what_goes(lists, ratio):
    values = named(lists)
    masks = keep_largest(values, ratio)
    dropped = [values[k][~masks[k]] for k in values if (~masks[k]).any()]
    # The best channel of a layer may stay for the layer's sake.
    kept = [v[masks[k]].sort().values[:-1] for k, v in values.items() if masks[k].sum() > 1]
    if dropped and kept:
        assert torch.cat(kept).min() >= torch.cat(dropped).max()


@given(lists=scores, low=st.floats(0, 0.99), high=st.floats(0, 0.99))
@settings(max_examples=100, deadline=None)
def test_a_smaller_ratio_keeps_a_larger_mask(lists, low, high):
    low, high = sorted((low, high))
    large, small = keep_largest(named(lists), low), keep_largest(named(lists), high)
    assert all((large[k] | ~small[k]).all() for k in large)


def test_ties_are_broken_by_layer_and_number():
    equal = {"a": torch.full((3,), 0.5), "b": torch.full((3,), 0.5)}
    masks = keep_largest(equal, 0.5)
    assert masks["a"].tolist() == [True, True, False]
    assert masks["b"].tolist() == [True, False, False]


def test_a_threshold_would_have_emptied_a_layer():
    masks = keep_largest({"small": torch.tensor([0.01, 0.02]), "large": torch.tensor([0.5, 0.6, 0.7, 0.8])}, 0.5)
    assert masks["small"].tolist() == [False, True] and masks["large"].tolist() == [False, False, True, True]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_mask_distance_is_a_metric(rows):
    a, b, c = ({"x": torch.tensor(column)} for column in zip(*rows, strict=True))
    assert lp.mask_distance(a, a) == 0 and lp.mask_distance(a, b) == lp.mask_distance(b, a)
    assert lp.mask_distance(a, c) <= lp.mask_distance(a, b) + lp.mask_distance(b, c) + 1e-12
    assert lp.mask_distance(a, b) == sum(r[0] != r[1] for r in rows) / len(rows)


def test_a_random_mask_has_the_same_widths_and_other_channels():
    masks = {"a": torch.arange(64) < 20, "b": torch.arange(8) < 8}
    random = keep_random(masks, torch.Generator().manual_seed(0))
    assert {k: int(m.sum()) for k, m in random.items()} == {"a": 20, "b": 8}
    assert not torch.equal(random["a"], masks["a"])
    again = keep_random(masks, torch.Generator().manual_seed(0))
    assert all(torch.equal(random[k], again[k]) for k in masks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_largest({"a": torch.ones(3)}, 1.0), r"ratio must be in \[0, 1\)"),
        (lambda: keep_largest({"a": torch.tensor([float("nan")])}, 0.5), "score is NaN"),
        (lambda: lp.mask_distance({"a": torch.ones(3)}, {"a": torch.ones(4)}), "same layers and widths"),
        (lambda: gamma_scores(nn.Linear(2, 2)), "no BatchNorm2d with a scale"),
    ],
)
def test_bad_masks_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- the detector ------------------------------------------------------------------------------------------------


class Gammas(nn.Module):
    """A model that is one BatchNorm of ten channels; `show` sets which five are large."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(10)

    def show(self, large):
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0 if i in large else 0.1 for i in range(10)]))
        return self


def feed(detector, shown):
    model = Gammas()
    return [detector.update(model.show(large)) for large in shown]


A, B = range(5), range(1, 6)  # two channels of ten differ: distance 0.2


def test_window_rule_compares_the_newest_with_the_four_before():
    tickets = feed(lp.EarlyBird(0.5), [B, A, A, A, A, A, A])
    assert [t is not None for t in tickets] == [False] * 5 + [True] * 2
    assert tickets[5].epoch == 6 and tickets[5].distances == (0.0, 0.0, 0.0, 0.0)
    assert tickets[5].masks["norm"].tolist() == [True] * 5 + [False] * 5


def test_window_rule_needs_a_full_window_and_fires_at_the_threshold():
    assert [t is not None for t in feed(lp.EarlyBird(0.5), [A] * 5)] == [False] * 4 + [True]
    at_threshold = feed(lp.EarlyBird(0.5, threshold=0.2), [B, A, A, A, A])
    assert at_threshold[-1] is not None  # "none exceeds"


def test_consecutive_rule_wants_five_distances_below_the_threshold():
    tickets = feed(lp.EarlyBird(0.5, rule="consecutive"), [B, A, A, A, A, A, A])
    assert [t is not None for t in tickets] == [False] * 6 + [True]
    at_threshold = feed(lp.EarlyBird(0.5, threshold=0.2, rule="consecutive"), [B, A] * 5)
    assert not any(at_threshold)  # "below"


def test_the_two_rules_disagree_on_a_slow_drift():
    drift = [range(i, i + 5) for i in range(6)]  # 0.2 from epoch to epoch, 0.8 from end to end of the window
    assert not any(feed(lp.EarlyBird(0.5, threshold=0.25), drift))
    assert any(feed(lp.EarlyBird(0.5, threshold=0.25, rule="consecutive"), drift))


def test_the_best_so_far_is_the_most_settled_mask():
    detector = lp.EarlyBird(0.5, threshold=0.05)
    feed(detector, [A, B, range(5, 10), A, A, A, A, B])
    # Only the windows of epochs 5 to 8 are full; those of 5, 6 and 7 hold range(5, 10), at distance 1 from A.
    assert detector.best.epoch == 8 and max(detector.best.distances) == 0.2
    full_windows = lp.EarlyBird(0.5, threshold=0.01, window=2)
    feed(full_windows, [A, range(5, 10), B, range(2, 7)])
    assert full_windows.best.epoch == 4 and full_windows.best.distances == (0.2,)


@pytest.mark.parametrize("rule", ["window", "consecutive"])
def test_state_survives_a_round_trip_through_a_file(rule, tmp_path):
    shown = [B, A, A, A, A, A, A]
    whole = [t is not None for t in feed(lp.EarlyBird(0.5, rule=rule), shown)]
    first = lp.EarlyBird(0.5, rule=rule)
    feed(first, shown[:4])
    tensors, plain = checkpoints.pack(first.state_dict())
    checkpoints.save(tmp_path / "state", tensors, {"tree": plain})
    tensors, meta = checkpoints.load(tmp_path / "state")
    second = lp.EarlyBird(0.5, rule=rule)
    second.load_state_dict(checkpoints.unpack(tensors, json.loads(json.dumps(meta["tree"]))))
    assert [t is not None for t in feed(second, shown[4:])] == whole[4:]
    assert second.best.distances == feed_all(shown, rule).best.distances


def feed_all(shown, rule):
    detector = lp.EarlyBird(0.5, rule=rule)
    feed(detector, shown)
    return detector


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio must be between 0 and 1"),
        ({"ratio": 0.5, "threshold": 0.0}, "threshold must be in"),
        ({"ratio": 0.5, "window": 1}, "window must be at least 2"),
        ({"ratio": 0.5, "rule": "mean"}, "unknown rule 'mean'"),
        ({"ratio": 0.5, "groups": ()}, "groups need a scorer="),
    ],
)
def test_bad_detector_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        lp.EarlyBird(**options)


# ---- compaction --------------------------------------------------------------------------------------------------


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


def test_a_lowered_model_comes_back_plain():
    model = vgg()
    lp.lower(model, "bfp8")
    x = torch.randn(2, 3, 8, 8)
    small = lp.compact(model, draw_by_gamma(model, 0.5, epoch=0), x)
    assert type(small.features[0]) is nn.Conv2d and type(small.classifier) is nn.Linear
    assert type(model.features[0]) is not nn.Conv2d


def test_frozen_parameters_stay_frozen():
    model = vgg()
    model.features[0].weight.requires_grad_(False)
    small = lp.compact(model, draw_by_gamma(model, 0.5, epoch=0), torch.randn(2, 3, 8, 8))
    assert not small.features[0].weight.requires_grad and small.classifier.weight.requires_grad


def test_channel_groups_name_what_is_coupled():
    groups = lp.channel_groups(FlattenNet(), torch.zeros(1, 3, 8, 8))
    assert [(g.name, g.channels) for g in groups] == [("body.1", 6), ("body.4", 7)]
    members = {(m.module, m.side): m for m in groups[1].members}
    assert set(members) == {("body.4", "out"), ("body.3", "out"), ("head", "in")}
    head = members["head", "in"]
    assert [p for p, c in zip(head.positions, head.channels, strict=True) if c == 2] == list(range(32, 48))


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


def test_summed_branches_are_cut_together_or_refused():
    model, x = Branches("sum"), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="is coupled to a channel of another BatchNorm"):
        lp.compact(model, branch_ticket([1, 0, 0, 1], [0, 1, 1, 1]), x)
    same = branch_ticket([1, 0, 0, 1], [1, 0, 0, 1])
    small = lp.compact(model, same, x).eval()
    same.apply(model)
    assert torch.allclose(model.eval()(x), small(x), atol=1e-6)


def test_a_dropped_channel_that_is_not_zero_is_noticed():
    with pytest.raises(ValueError, match="a dropped channel is not zero where it is read"):
        lp.compact(Branches("cat", nn.Sigmoid()), branch_ticket([1, 0, 0, 1], [1, 1, 1, 1]), torch.randn(2, 3, 8, 8))


def test_what_cannot_be_cut_is_named():
    grouped = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    ticket = lp.Ticket({"1": torch.arange(4) < 2, "3": torch.arange(4) < 2}, 0.5, 0)
    with pytest.raises(ValueError, match=r"channels of '1' pass through '2' \(Conv2d, grouped\)"):
        lp.compact(grouped, ticket, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="are not this model's"):
        lp.compact(vgg(), lp.Ticket({"x": torch.ones(3, dtype=torch.bool)}, 0.5, 0), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="is not in this model"):
        lp.Ticket({"x": torch.ones(3, dtype=torch.bool)}, 0.5, 0).apply(vgg())
