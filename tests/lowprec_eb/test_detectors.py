"""The rules that say when a mask has settled, on masks made by hand; their state, and what they wait for."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowprec_eb as lp
from lowprec_eb import checkpoints
from lowprec_eb.tickets import DETECTORS, ChannelGroup, EarlyBirds, NaNScores, TicketSettings, keep_largest
from lowprec_eb.tickets.masks import chance_distance


def scores_of(kept, channels=10, layers=1):
    """Scores whose largest are those of ``kept``, over ``layers`` layers of equal width."""
    flat = torch.tensor([1.0 if i in set(kept) else 0.1 for i in range(channels)])
    return {f"layer{i}": part for i, part in enumerate(flat.chunk(layers))}


def feed(detector, shown, **options):
    return [detector.observe(scores_of(kept, **options)) is not None for kept in shown]


A, B, C = range(5), range(1, 6), range(2, 7)  # neighbours differ in two of ten channels


# ---- rules -------------------------------------------------------------------------------------------------------


def test_single_wants_one_distance_below_the_threshold():
    assert feed(lp.EarlyBird(0.5, rule="single"), [A, B, B, C]) == [False, False, True, False]
    assert not any(feed(lp.EarlyBird(0.5, threshold=0.2, rule="single"), [A, B, A]))  # "smaller than"


def test_pairwise_wants_every_pair_of_the_window_settled():
    drift = lp.EarlyBird(0.5, threshold=0.2, window=3, rule="pairwise")
    assert feed(drift, [A, C, B]) == [False, False, False]
    assert drift.distances() == [0.4, 0.2, 0.2]
    assert feed(lp.EarlyBird(0.5, threshold=0.2, window=3), [A, C, B])[-1]  # from B both are 0.2 away


def test_the_rules_look_back_as_far_as_they_say():
    for rule, detector in DETECTORS.items():
        of = lp.EarlyBird(0.5, rule=rule, threshold=0.01)
        assert feed(of, [A] * 20).index(True) + 1 == detector(5).memory, rule


WIDTHS = [(8, 2), (7, 3), (6, 4), (6, 4)]


def widths_scores(widths, shift=0):
    """Two layers of ten that keep ``widths`` of their channels, which ones is up to ``shift``."""
    return {
        f"layer{i}": torch.tensor([1.0 if (c + shift) % 10 < width else 0.1 for c in range(10)])
        for i, width in enumerate(widths)
    }


def test_epi_by_hand():
    detector = lp.EarlyBird(0.5, rule="epi", window=2)
    for number, widths in enumerate(WIDTHS):
        detector.observe(widths_scores(widths, shift=number))  # the channels move all the time, it sees widths alone
    to_second = (abs(6 - 7) / 13 + abs(4 - 3) / 7) / 2
    assert detector.distances() == pytest.approx([(to_second + 0) / 2], abs=1e-15)
    assert [len(look.widths) for look in detector._watches[0].looks] == [2] * 4


def test_epi_fires_when_it_is_low_enough_and_not_worse_than_the_five_before():
    shown = [(8, 2), (7, 3), (6, 4), (5, 5), (5, 5), (5, 5), (5, 5), (5, 5), (5, 5)]
    fired = [lp.EarlyBird(0.5, rule="epi", window=2, threshold=0.05)]
    verdicts = [fired[0].observe(widths_scores(w)) is not None for w in shown]
    assert verdicts.index(True) == 7  # eight looks: two before it, and five values before that
    worse = [*shown[:6], (4, 6), (4, 6), (4, 6)]  # below the threshold of 0.2, yet worse than its best before
    detector = lp.EarlyBird(0.5, rule="epi", window=2, threshold=0.2)
    verdicts = [detector.observe(widths_scores(w)) is not None for w in worse]
    assert verdicts == [False] * 8 + [True]  # at rest again: 0, as good as the best of the five before
    assert max(detector.distances()) == 0


def test_epi_of_widths_at_rest_fires_though_masks_move():
    detector = lp.EarlyBird(0.5, rule="epi")
    verdicts = [detector.observe(widths_scores((6, 4), shift=i)) is not None for i in range(12)]
    assert verdicts.index(True) == 10
    masks = lp.EarlyBird(0.5)
    assert not any(masks.observe(widths_scores((6, 4), shift=i)) for i in range(12))


# ---- the distance of a random mask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("normalised", ["global", "layer"])
def test_random_masks_are_one_random_mask_apart(normalised, ratio):
    generator = torch.Generator().manual_seed(0)
    detector = lp.EarlyBird(ratio, threshold=0.1, normalised=normalised)
    found = []
    for _ in range(60):
        ticket = detector.observe(
            {"a": torch.rand(3000, generator=generator), "b": torch.rand(1000, generator=generator)}
        )
        assert ticket is None
        found += detector.distances()
    assert sum(found) / len(found) == pytest.approx(1, abs=0.02)


@pytest.mark.filterwarnings("ignore:two masks")
def test_the_threshold_of_the_paper_fires_on_random_masks_at_a_small_ratio():
    generator = torch.Generator().manual_seed(0)
    detector = lp.EarlyBird(0.05, threshold=0.1)
    assert [detector.observe({"a": torch.rand(4000, generator=generator)}) is not None for _ in range(5)][-1]


def test_a_threshold_that_nothing_exceeds_is_warned_of():
    with pytest.warns(UserWarning, match=r"differ in at most 0\.1 of their channels, so a threshold of 0\.1 says noth"):
        lp.EarlyBird(0.05)
    with pytest.warns(UserWarning, match="ratio 0.97"):
        EarlyBirds((0.5, 0.97))


@pytest.mark.parametrize(
    "options", [{"ratio": 0.1}, {"ratio": 0.05, "normalised": "layer"}, {"ratio": 0.05, "rule": "epi"}]
)
def test_other_thresholds_are_not_warned_of(options, recwarn):
    lp.EarlyBird(**options)
    assert not recwarn


def test_masks_of_equal_widths_are_measured_by_their_layers():
    """Nine of ten stay in one layer and one of ten in the other: what a random mask of these widths would differ by is
    far less than what one of the same ratio would, so the same two masks are further apart by layer."""
    first = {"a": torch.tensor([0.1] + [1.0] * 9), "b": torch.tensor([1.0] + [0.1] * 9)}
    second = {"a": torch.tensor([1.0] * 9 + [0.1]), "b": first["b"]}
    distances = {}
    for normalised in (None, "global", "layer"):
        detector = lp.EarlyBird(0.5, window=2, normalised=normalised)
        detector.observe(first), detector.observe(second)
        (distances[normalised],) = detector.distances()
    assert distances == pytest.approx({None: 0.1, "global": 0.1 / 0.5, "layer": 0.1 / 0.18})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3))
def test_chance_distance_is_the_mean_over_all_masks(kept):
    """Of every pair of masks with these widths, over layers of four channels."""
    from itertools import combinations

    differing = 0.0
    for i, j in kept:
        pairs = [(set(x), set(y)) for x in combinations(range(4), i) for y in combinations(range(4), j)]
        differing += sum(len(x ^ y) for x, y in pairs) / len(pairs)
    a, b = zip(*kept, strict=True)
    assert chance_distance(a, b, (4,) * len(kept)) == pytest.approx(differing / (4 * len(kept)))


def test_layers_that_keep_everything_have_no_chance_to_differ():
    detector = lp.EarlyBird(0.01, window=2, normalised="layer", threshold=0.5)
    assert feed(detector, [A, B]) == [False, True]  # a hundredth of ten channels: none goes
    assert detector.distances() == [0.0]


def test_normalising_widths_is_refused():
    with pytest.raises(ValueError, match="'epi' compares widths"):
        lp.EarlyBird(0.5, rule="epi", normalised="layer")


# ---- sharp edges of the public code ------------------------------------------------------------------------------


def test_an_untrained_model_is_no_ticket():
    """All gammas are 0.5: the public code has an empty mask then, five of which are at distance 0."""
    detector = lp.EarlyBird(0.5)
    equal = {"a": torch.full((8,), 0.5), "b": torch.full((4,), 0.5)}
    assert not any(detector.observe(equal) for _ in range(9))
    assert detector.best is None and detector.distances() == [] and detector.looked == detector.epoch == 9
    assert detector.observe({"a": torch.arange(8.0), "b": torch.arange(4.0)}) is None
    assert detector.best.epoch == 10 and detector.best.channels_kept == 6


def test_ties_of_8_bit_gammas_keep_the_asked_number_and_make_no_noise():
    torch.manual_seed(0)
    detector = lp.EarlyBird(0.3, threshold=0.05)
    gammas = torch.rand(200) * 0.5
    for _ in range(5):
        ticket = detector.observe({"a": lp.quantize(gammas[:120], "fixed8"), "b": lp.quantize(gammas[120:], "fixed8")})
        assert int(detector.mask.sum()) == 140
    assert lp.quantize(gammas, "fixed8").unique().numel() < 70  # they do tie
    assert ticket is not None and ticket.distances == (0, 0, 0, 0)


def test_no_layer_is_emptied_and_the_mask_is_that_of_keep_largest():
    torch.manual_seed(0)
    for ratio in (0.1, 0.5, 0.9, 0.97):
        scores = {"tiny": torch.rand(3) / 100, "a": torch.rand(64), "b": (torch.rand(32) * 4).round()}
        detector = lp.EarlyBird(ratio, normalised="layer")
        detector.observe(scores)
        found = detector.best.masks
        wanted = keep_largest(scores, ratio)
        assert all(torch.equal(found[name], wanted[name]) for name in scores) and all(m.any() for m in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(bad):
    detector = lp.EarlyBird(0.5, score_momentum=0.5)
    for row in torch.eye(3):
        detector.observe({"a": row, "b": row})
    with pytest.raises(NaNScores, match=r"group 'b' \(1 of 2 groups\) hold NaN or infinity"):
        detector.observe({"a": torch.eye(3)[0], "b": torch.tensor([0.1, bad, 0.3])})


def test_of_two_equally_settled_masks_the_later_one_is_the_best():
    detector = lp.EarlyBird(0.5, rule="single", threshold=0.05)
    feed(detector, [A, B, C])  # both steps move two of ten
    assert detector.best.epoch == 3 and detector.best.masks["layer0"].nonzero().flatten().tolist() == list(C)
    feed(detector, [A])
    assert detector.best.epoch == 3  # a larger step


# ---- several ratios, scorers, groups -------------------------------------------------------------------------------


def test_every_ratio_gets_the_ticket_that_it_would_get_alone():
    torch.manual_seed(0)
    runs = torch.rand(30, 40).cumsum(0)  # ranks settle
    ratios = (0.2, 0.5, 0.8)
    together = EarlyBirds(ratios, threshold=0.1, window=3)
    alone = {ratio: lp.EarlyBird(ratio, threshold=0.1, window=3) for ratio in ratios}
    first = {}
    for row in runs:
        scores = {"a": row[:24], "b": row[24:]}
        together.observe(scores)
        for ratio, detector in alone.items():
            if (ticket := detector.observe(scores)) is not None:
                first.setdefault(ratio, ticket)
    assert together.done and len({ticket.epoch for ticket in first.values()}) > 1
    for ratio, ticket in first.items():
        mine = together.tickets[ratio]
        assert (mine.epoch, mine.distances, mine.ratio) == (ticket.epoch, ticket.distances, ratio)
        assert lp.mask_distance(mine.masks, ticket.masks) == 0
    with pytest.raises(ValueError, match="each once"):
        EarlyBirds((0.5, 0.5))


class Linears(nn.Module):
    """A model without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 8)


def row_norms(model):
    return {"first": model.first.weight.norm(dim=1), "second": model.second.weight.norm(dim=1)}


def test_any_scorer_will_do_and_groups_are_held_against_it():
    model = Linears()
    detector = lp.EarlyBird(0.5, scorer=row_norms)
    tickets = [detector.update(model, "bf16") for _ in range(5)]
    assert tickets[-1].widths.keys() == {"first", "second"} and tickets[-1].channels_kept == 7
    assert tickets[-1].precision == "bf16" and not tickets[-1].masks["first"].requires_grad
    groups = [ChannelGroup("first", 6, ())]
    with pytest.raises(ValueError, match=r"scores of \['first', 'second'\], and the groups are \['first'\]"):
        lp.EarlyBird(0.5, groups=groups, scorer=row_norms).update(model)
    with pytest.raises(ValueError, match="of other layers or widths than those of the looks before"):
        detector.observe({"first": torch.ones(6)})


def test_a_ticket_of_coupled_groups_is_drawn_saved_and_cut():
    torch.manual_seed(0)
    model = nn.Sequential(Linears().first, nn.ReLU(), Linears().second)
    x = torch.randn(3, 4)
    groups = lp.channel_groups(model, x)
    detector = EarlyBirds((0.5,), groups=groups, scorer=lambda m: {"0": m[0].weight.norm(dim=1)})
    for _ in range(5):
        detector.update(model)
    again = EarlyBirds((0.5,), groups=groups, scorer=detector.scorer)
    tensors, plain = checkpoints.pack(detector.state_dict())
    again.load_state_dict(checkpoints.unpack(tensors, json.loads(json.dumps(plain))))
    ticket = again.tickets[0.5]
    small = lp.compact(model, ticket, x)
    ticket.apply(model)
    assert small[0].out_features == 3 and torch.allclose(small(x), model(x))


def test_half_precision_scores_are_averaged_in_single():
    detector = lp.EarlyBird(0.5, score_momentum=0.99)
    for _ in range(200):
        detector.observe({"a": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)})
    detector.observe({"a": torch.tensor([2.0, 2.0, 3.0], dtype=torch.bfloat16)})
    assert detector._average.tolist() == pytest.approx([1.01, 2, 3])


def test_the_moving_average_smooths_a_flicker_away():
    settled = torch.arange(10.0)
    flicker = [settled + (3.0 if i % 2 else -3.0) * (torch.arange(10) == 4) for i in range(40)]
    plain, smooth = lp.EarlyBird(0.5, threshold=0.05), lp.EarlyBird(0.5, threshold=0.05, score_momentum=0.9)
    assert not any(plain.observe({"a": row}) for row in flicker)
    assert any(smooth.observe({"a": row}) for row in flicker)


def test_the_average_by_hand():
    detector = lp.EarlyBird(0.5, score_momentum=0.75)
    for value in (1.0, 2.0, 5.0):
        detector.observe({"a": torch.tensor([value, 0.0])})
    assert detector._average.tolist() == [0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 5, 0]
    assert detector.scores.tolist() == [5, 0]  # what a history keeps


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "mean"}, "unknown rule 'mean'; one of 'window', 'consecutive', 'single', 'pairwise', 'epi'"),
        ({"normalised": "random"}, "normalised must be 'global', 'layer' or None"),
        ({"check_every": 0}, "check_every must be at least 1 step"),
        ({"score_momentum": 1.0}, r"score_momentum must be in \[0, 1\)"),
        ({"also": (0.5,)}, "also must name ratios beside ratio"),
        ({"also": (1.5,)}, "ratio must be between 0 and 1, got 1.5"),
    ],
)
def test_impossible_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        TicketSettings(**options)
