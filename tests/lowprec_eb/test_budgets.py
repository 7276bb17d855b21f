"""Budgets: what a ticket leaves, counted on the really compacted model; widths; laws of the search."""

import json

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb import strict_config
from lowprec_eb.tickets import Budget, BudgetError, BudgetSearch, draw, keep_largest, scorer
from lowprec_eb.tickets.ranking import Ranking, Widths
from lowprec_eb.tickets.shrinking import Shrinking, without_values

PROFILES = {"energy": "45nm"}
# Others of the zoo are so narrow that one channel is more than the tolerance.
CASES = [
    ("vgg16_bn", True, 0.5, 4, "parameters"),
    ("lenet", True, 0.4, 1, "energy"),
    ("vgg16_bn", True, 0.3, 1, "bit_ops"),
    ("two_heads", False, 0.5, 1, "flops"),
    ("resnet50", True, 0.5, 4, "parameters"),
    ("resnet50", False, 0.4, 4, "parameters"),
    ("preresnet20", False, 0.5, 4, "parameters"),
    ("mobilenet_v2", False, 0.3, 1, "parameters"),
    ("mobilenet_v3", True, 0.5, 4, "parameters"),
    ("mobilenet_v3", False, 0.5, 4, "parameters"),
    ("densenet", True, 0.3, 1, "energy"),
    ("resnext", True, 0.4, 4, "flops"),
    ("resnext", False, 0.5, 1, "parameters"),
    ("unet", True, 0.5, 4, "flops"),
    ("unet", True, 0.5, 4, "channels"),
    ("vit_multihead", True, 0.2, 1, "parameters"),
    ("vit_by_hand", True, 0.3, 1, "flops"),
    ("decoder_tied", True, 0.3, 1, "parameters"),
    ("decoder_grouped_query", True, 0.2, 1, "parameters"),
]


def measured(kind, model, x):
    """Independently of the search: on a real model, with its values."""
    if kind == "parameters":
        return sum(p.numel() for p in model.parameters())
    counts = em.count(model, x)
    if kind == "energy":
        return em.estimate(counts, em.load_profile("45nm")).nominal_j
    return counts.bit_ops if kind == "bit_ops" else 2 * sum(counts.macs.values())


@pytest.mark.parametrize(("name", "coupled", "ratio", "multiple", "kind"), CASES)
def test_a_budget_is_met_by_the_compacted_model(name, coupled, ratio, multiple, kind):
    model, x = zoo.build(name)
    groups = lp.channel_groups(model, x) if coupled else None
    budget = Budget(kind, ratio, multiple=multiple, profile=PROFILES.get(kind))
    search = BudgetSearch(model, budget, x, groups)
    drawn = search.draw(scorer("random", groups=groups, seed=1)(model))
    ticket = drawn.ticket
    assert all(width >= 1 for width in ticket.widths.values())
    for group, width in ticket.widths.items():
        assert width in search.widths[group].allowed
    if kind == "channels":
        left, dense = ticket.channels_kept, ticket.channels_total
        assert abs(left - (dense - round(ratio * dense))) <= 0.02 * (1 - ratio) * dense
        assert (drawn.left, drawn.dense) == (left, dense)
        return
    small = lp.compact(model, ticket, x)
    left, dense = measured(kind, small, x), measured(kind, model, x)
    assert (drawn.left, drawn.dense) == (pytest.approx(left), pytest.approx(dense))
    assert abs(left - (1 - ratio) * dense) <= 0.02 * (1 - ratio) * dense
    own = drawn.compaction.apply(model).state_dict()
    assert all(torch.equal(value, own[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.5, 0.9])
@pytest.mark.parametrize("coupled", [True, False])
def test_a_ratio_of_channels_is_what_keep_largest_keeps(coupled, ratio):
    model, x = zoo.build("resnet18")
    groups = lp.channel_groups(model, x) if coupled else None
    scores = {name: score.round(decimals=1) for name, score in scorer("gamma", groups=groups)(model).items()}  # ties
    ticket = draw(model, scores, Budget(ratio=ratio), x, groups).ticket
    assert all(torch.equal(ticket.masks[name], mask) for name, mask in keep_largest(scores, ratio).items())
    assert ticket.ratio == ratio


def test_a_second_draw_uses_what_the_first_found():
    model, x = zoo.build("unet")
    groups = lp.channel_groups(model, x)
    search = BudgetSearch(model, Budget("flops", 0.5), x, groups)
    first = search.draw(scorer("random", groups=groups)(model), epoch=3, precision="bfp8")
    known = len(search._costs)
    again = search.draw(scorer("random", groups=groups)(model))
    assert len(search._costs) == known
    assert first.left == again.left and (first.ticket.epoch, first.ticket.precision) == (3, "bfp8")
    assert first.removed == 1 - first.left / first.dense and first.unit == "FLOPs of a training step"


def test_bit_ops_and_energy_are_counted_at_the_precision():
    model, x = zoo.build("conv1d")
    groups = lp.channel_groups(model, x)
    plain, asked = (BudgetSearch(model, Budget("bit_ops", precision=name), x, groups) for name in (None, "bfp8"))
    lp.lower(model, "bfp8")
    own = BudgetSearch(model, Budget("bit_ops"), x, groups)
    assert asked.dense == em.count(model, x, lp.precision("bfp8")).bit_ops < plain.dense
    assert own.dense == em.count(model, x).bit_ops < plain.dense
    drawn = own.draw(scorer("random", groups=groups)(model))
    small = lp.compact(model, drawn.ticket, x)
    assert drawn.left == em.count(small, x).bit_ops


def test_a_layer_that_makes_something_of_a_zero_is_noticed():
    """Behind a sigmoid nothing is removed, although its group drops it."""
    model, x = zoo.build("sigmoid")
    groups = lp.channel_groups(model, x)
    drawn = draw(model, scorer("random", groups=groups)(model), Budget("flops", 0.35, 0.1), x, groups)
    assert drawn.left == measured("flops", lp.compact(model, drawn.ticket, x), x)


# ---- widths ---------------------------------------------------------------------------------------------------------


def test_widths_are_multiples_or_the_present_one():
    assert Widths.of(20, 1, 8).allowed == (8, 16, 20)
    assert Widths.of(24, 9, 8).allowed == (16, 24)
    assert Widths.of(6, 1, 8).allowed == (6,)  # narrower than the multiple: it would be filled up again
    assert Widths.of(6, 9, 1).allowed == (6,)
    assert Widths.of(3, 1, 1).allowed == (1, 2, 3)
    assert Widths.of(16, 1, 1, protected=True).allowed == (16,)
    assert [Widths.of(20, 1, 8).nearest(width) for width in (1, 11, 12, 17, 18, 20)] == [8, 8, 16, 16, 20, 20]


def test_a_head_counts_with_all_of_its_features():
    model, x = zoo.build("vit_multihead")  # 4 heads of 8 features, an MLP of 64
    groups = lp.channel_groups(model, x)
    search = BudgetSearch(model, Budget(multiple=16), x, groups)
    units = {group.name: group.unit for group in groups}
    assert {search.widths[name].allowed for name, unit in units.items() if unit == "head"} == {(2, 4)}
    assert {search.widths[name].allowed for name, unit in units.items() if unit != "head"} == {(16, 32, 48, 64)}


def test_protected_groups_and_layers_keep_everything():
    model, x = zoo.build("vgg16_bn")
    groups = lp.channel_groups(model, x)
    scores = scorer("random", groups=groups)(model)
    norm = next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    for protect in (("classifier*",), (norm, groups[-1].name)):
        ticket = draw(model, scores, Budget("parameters", 0.3, protect=protect), x, groups).ticket
        kept = [name for name, mask in ticket.masks.items() if mask.all()]
        assert groups[-1].name in kept
        assert (groups[0].name in kept) == (norm in protect)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget("flops", 0.5, protect=("clasifier.0",)),
            "'clasifier.0' fits no channel group.*did you mean 'classifier.0'",
        ),
        (Budget("flops", 0.99), r"1.0% of .* FLOPs of a training step shall be left.*the smallest ticket leaves \d"),
        (Budget("parameters", 0.9, min_width=12), "each group keeps 12 channels, .* Lower the ratio"),
        (Budget("parameters", 0.9, protect=("features*",)), r"features\* protected"),
        (
            Budget("parameters", 0.317, 1e-5, multiple=8),
            "8 channels of a group are more than that. Raise the tolerance",
        ),
    ],
)
def test_what_cannot_be_met_says_why(budget, message):
    model, x = zoo.build("vgg16_bn")
    groups = lp.channel_groups(model, x)
    with pytest.raises(ValueError, match=message):
        draw(model, scorer("random", groups=groups)(model), budget, x, groups)


def test_scores_must_be_of_the_groups():
    model, x = zoo.build("resnet18")
    groups = lp.channel_groups(model, x)
    search = BudgetSearch(model, Budget(), x, groups)
    scores = dict(scorer("random", groups=groups)(model))
    with pytest.raises(ValueError, match="of the search's channel groups"):
        search.draw({**scores, "extra": torch.ones(3)})
    name = groups[0].name
    with pytest.raises(ValueError, match="widths differ"):
        search.draw({**scores, name: torch.ones(3)})
    with pytest.raises(ValueError, match=f"group '{name}'"):
        search.draw({**scores, name: scores[name] * torch.nan})
    other = [*groups[:-1], lp.channel_groups(*zoo.build("vgg16_bn"))[0]]
    with pytest.raises(ValueError, match="is not in this model"):
        BudgetSearch(model, Budget("flops"), x, other).draw(scorer("random", groups=other)(model))


def test_a_model_without_values_is_a_copy_with_the_same_ties():
    model, x = zoo.build("decoder_tied")
    bare = without_values(model)
    assert bare.lm_head.weight is bare.wte.weight and bare.wte.weight.is_meta
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert em.count(bare, x).macs == em.count(model, x).macs


@pytest.mark.parametrize("name", ["resnet18", "preresnet20", "mobilenet_v2"])
@pytest.mark.parametrize("coupled", [True, False])
def test_what_a_ticket_removes_is_foreseen(name, coupled):
    """So that candidates need no look at the model; where that fails the search is slower, not wrong."""
    model, x = zoo.build(name)
    shrinking = Shrinking(model, x, lp.channel_groups(model, x) if coupled else None)
    generator = torch.Generator().manual_seed(0)
    masks = {
        key: (torch.rand(n, generator=generator) < 0.5) | (torch.arange(n) == 0) for key, n in shrinking.widths.items()
    }
    foreseen = shrinking.removed(masks)
    assert foreseen.any() and (shrinking.observe(masks) == foreseen).all() and not shrinking.observing


# ---- laws -----------------------------------------------------------------------------------------------------------


def widths_and_scores():
    sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
    return st.tuples(sizes, st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 2, 8]), st.booleans())


@settings(max_examples=40, deadline=None)
@given(widths_and_scores())
def test_laws_of_the_ranking(drawn):
    sizes, seed, least, multiple, protect = drawn
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.randint(5, (n,), generator=generator).float() for i, n in enumerate(sizes)}
    widths = {name: Widths.of(len(s), least, multiple, protected=protect and name == "0") for name, s in scores.items()}
    ranking = Ranking(scores, widths)
    before = {name: torch.ones(len(s), dtype=torch.bool) for name, s in scores.items()}
    for dropped in range(ranking.droppable + 1):
        kept = ranking.kept(dropped)
        masks = ranking.masks(kept)
        if multiple == 1:
            assert sum(kept) == sum(sizes) - dropped
        for (name, mask), width in zip(masks.items(), kept, strict=True):
            assert int(mask.sum()) == width in widths[name].allowed
            assert width >= min(least, len(mask)) and (width % multiple == 0 or width == len(mask))
            assert not (mask & ~before[name]).any()  # the more is dropped, the less is kept
            if width < len(mask):
                assert scores[name][mask].min() >= scores[name][~mask].max()
        if protect:
            assert masks["0"].all()
        before = masks
    assert kept == tuple(w.allowed[0] for w in widths.values())


SEARCHES = {}


def searched(kind, ratio, seed):
    """The zoo's ResNet-18 under a budget."""
    if not SEARCHES:
        SEARCHES["model"], SEARCHES["x"] = zoo.build("resnet18")
        SEARCHES["groups"] = lp.channel_groups(SEARCHES["model"], SEARCHES["x"])
    model, x, groups = SEARCHES["model"], SEARCHES["x"], SEARCHES["groups"]
    key = (kind, ratio)
    if key not in SEARCHES:
        SEARCHES[key] = BudgetSearch(model, Budget(kind, ratio), x, groups)
    return SEARCHES[key].draw(scorer("random", groups=groups, seed=seed)(model))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8]), st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8]), st.integers(0, 3))
def test_who_removes_more_keeps_less(one, other, seed):
    less, more = (searched("parameters", ratio, seed) for ratio in sorted((one, other)))
    assert more.left <= less.left
    for name, mask in more.ticket.masks.items():
        assert not (mask & ~less.ticket.masks[name]).any()


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "flop"}, "'flop'"),
        ({"ratio": 1.0}, r"ratio must be in \[0, 1\)"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"multiple": 0}, "multiple must be at least 1"),
        ({"min_width": 0}, "min_width must be at least 1"),
        ({"kind": "energy"}, "profile must be given for kind 'energy'"),
        ({"kind": "flops", "profile": "45nm"}, "and for no other"),
        ({"kind": "flops", "precision": "bfp8"}, "flops do not depend on it"),
        ({"kind": "bit_ops", "precision": "bfp9"}, "bfp9"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Budget(**settings)


def test_a_budget_is_read_from_yaml(tmp_path):
    budget = Budget("energy", 0.4, multiple=8, protect=("head*",), precision="bfp8", profile="45nm")
    path = tmp_path / "budget.yaml"
    path.write_text(json.dumps(strict_config.to_plain(budget)))
    assert strict_config.load(path, Budget) == budget
    with pytest.raises(strict_config.ConfigError, match="ratio must be in"):
        strict_config.load(path, Budget, ["ratio=2.0"])


def test_an_error_is_a_value_error():
    assert issubclass(BudgetError, ValueError)
