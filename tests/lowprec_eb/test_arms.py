"""What an arm may say: keys that belong together, shares of rounds, and matches."""

from dataclasses import replace
from pathlib import Path

import pytest

from lowprec_eb.arms import ArmSettings, IterativeSettings, MatchSettings, SnipSettings, ThinetSettings
from lowprec_eb.averaging import AveragingSettings
from lowprec_eb.config import load_config
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.retraining import Retraining
from lowprec_eb.strict_config import ConfigError


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Retraining("inherit", "continue", "keep")),
        ({"schedule": "restart"}, Retraining("inherit", "restart", "keep")),
        ({"optimizer": "new", "penalty": True}, Retraining("inherit", "continue", "new", penalty=True)),
        ({"weights": "reinit"}, Retraining("reinit", "restart", "new")),
        ({"weights": "rewind"}, Retraining("rewind", "continue", "new")),
        ({"weights": "rewind", "rewind_epoch": 3}, Retraining("rewind", "continue", "keep", rewind_epoch=3)),
    ],
)
def test_what_is_left_out_is_usual_for_the_weights(keys, expected):
    assert ArmSettings("arm", "early_bird", **keys).retraining == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": "reinit", "optimizer": "keep"}, "optimizer: keep cannot go with weights: reinit"),
        ({"weights": "rewind", "optimizer": "keep"}, "rewind to epoch 0: before the first step there is no momentum"),
        ({"rewind_epoch": 2}, "rewind_epoch is for weights: rewind, not 'inherit'"),
        ({"weights": "rewind", "rewind_epoch": -1}, "rewind_epoch must be 0 or more"),
        ({"ratio": 1.0}, "ratio must be between 0 and 1"),
        ({"pipeline": "full", "ratio": 0.3}, "ratio is for pipelines that drop channels, not 'full'"),
        ({"pipeline": "full", "penalty": True}, "penalty is for early_bird and random_ticket and final_ticket"),
        ({"pipeline": "thinet", "snip": SnipSettings()}, "snip is for snip, not 'thinet'"),
        ({"match": MatchSettings("full")}, "match is for dense_matched, not 'early_bird'"),
        ({"pipeline": "dense_matched"}, "dense_matched needs match"),
    ],
)
def test_what_cannot_be_is_refused_by_name(keys, message):
    with pytest.raises(ValueError, match=message):
        ArmSettings("arm", **{"pipeline": "early_bird", **keys})


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (IterativeSettings, {"steps": 0}, "steps must be at least 1"),
        (IterativeSettings, {"epochs": 0}, "epochs must be at least 1"),
        (ThinetSettings, {"learning_rate": 0.0}, "learning_rate must be above 0"),
        (ThinetSettings, {"layer_epochs": -1}, "layer_epochs must be 0 or more"),
        (SnipSettings, {"batches": 0}, "batches must be at least 1"),
    ],
)
def test_settings_of_a_pipeline_are_checked(kind, keys, message):
    with pytest.raises(ValueError, match=message):
        kind(**keys)


def test_rounds_leave_the_same_share_or_take_the_same_number():
    geometric = IterativeSettings(steps=3).shares(0.488)
    assert geometric == pytest.approx((0.8, 0.64, 0.512)) and geometric[-1] == 1 - 0.488
    assert IterativeSettings(steps=4, spacing="linear").shares(0.4) == pytest.approx((0.9, 0.8, 0.7, 0.6))
    assert IterativeSettings(steps=1).shares(0.4) == (0.6,)


def matched(name, arm):
    return ArmSettings(name, "dense_matched", match=MatchSettings(arm))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((matched("a", "LL"), ArmSettings("LLL", "full")), "pipelines.0.match.arm: no arm is named 'LL'.*'LLL'"),
        ((matched("a", "a"),), "matched in a circle: a -> a"),
        ((ArmSettings("f", "full"), matched("a", "b"), matched("b", "c"), matched("c", "b")), "a -> b -> c -> b"),
    ],
)
def test_matches_name_an_arm_and_end_somewhere(tiny, arms, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny, pipelines=arms)


def test_a_match_may_be_matched_itself_in_any_order(tiny):
    replace(tiny, pipelines=(matched("a", "b"), matched("b", "f"), ArmSettings("f", "full")))


def test_rounds_too_short_for_the_average_are_refused(tiny):
    training = replace(tiny.training, averaging=AveragingSettings(kind="swa", start=0.9))
    arm = ArmSettings("arm", "iterative_pruning", iterative=IterativeSettings(epochs=1))
    with pytest.raises(ValueError, match=r"pipelines\.0\.iterative\.epochs: averaging"):
        replace(tiny, training=training, pipelines=(arm,))
    replace(tiny, training=training, pipelines=(replace(arm, averaging=False),))


def test_a_config_has_every_pipeline():
    config = load_config(Path(__file__).parents[2] / "configs" / "digits_baselines.yaml")
    assert {arm.pipeline for arm in config.pipelines} == set(PIPELINES)


def test_the_keys_stand_in_yaml(tmp_path):
    path = tmp_path / "arms.yaml"
    path.write_text(
        """
name: arms
pipelines:
  - {name: rewound, pipeline: early_bird, weights: rewind, rewind_epoch: 2, schedule: restart, penalty: true}
  - {name: rounds, pipeline: iterative_pruning, ratio: 0.3, iterative: {steps: 2, spacing: linear, epochs: 4}}
  - {name: cut, pipeline: dense_matched, match: {arm: rounds, quantity: energy}}
"""
    )
    rewound, rounds, cut = load_config(path).pipelines
    assert rewound.retraining == Retraining("rewind", "restart", "keep", True, 2)
    assert rounds.iterative == IterativeSettings(2, "linear", 4) and rounds.ratio == 0.3
    assert cut.match == MatchSettings("rounds", "energy")
    path.write_text(path.read_text().replace("quantity: energy", "quantity: joules"))
    with pytest.raises(ConfigError, match="quantity"):
        load_config(path)
