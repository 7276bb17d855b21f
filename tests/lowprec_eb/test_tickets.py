"""Masks, tickets, the early-bird detector, and compaction."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowprec_eb as lp
from lowprec_eb import checkpoints
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tickets import gamma_scores, keep_largest, keep_random

scores = st.lists(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=9), min_size=1, max_size=5)


def named(lists):
    return {f"layer{i}": torch.tensor(values) for i, values in enumerate(lists)}


def vgg(widths=(6, "M", 8, 10), seed=0):
    model = build_model(VGGSettings(widths=widths), (3, 8, 8), 5, seed)
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
        (lambda: keep_largest({"a": torch.tensor([float("nan")])}, 0.5), "NaN or infinity"),
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
