"""Any of the reference models trains, resumes and is planned in the pipelines."""

import dataclasses
import json

import pytest

from lowprec_eb.arms import ArmSettings
from lowprec_eb.compare import gather, plan, run_arm
from lowprec_eb.config import Config, load_config
from lowprec_eb.models import PreResNetSettings, ResNetSettings
from lowprec_eb.report import summarise
from lowprec_eb.strict_config import to_plain

SETTINGS = {
    "preresnet": PreResNetSettings(depth=8, width=4),
    "preresnet bottleneck": PreResNetSettings(depth=11, block="bottleneck", width=4),
    "resnet": ResNetSettings(stem="small", width=4),
}


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


def full_alone(tiny, settings):
    return dataclasses.replace(
        tiny,
        model=settings,
        task=dataclasses.replace(tiny.task, max_train=64, max_test=32),
        training=dataclasses.replace(tiny.training, epochs=3),
        ticket=dataclasses.replace(tiny.ticket, deadline=2),
        pipelines=(ArmSettings("full 8 bit", "full", precision="bfp8"),),
        seeds=(0,),
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_full_training_costs_what_was_planned(tiny, tmp_path, settings):
    config = full_alone(tiny, settings)
    (planned,) = summarise(plan(config))
    result = run_arm(config, tmp_path, 0, config.pipelines[0], Silent())
    (charged,) = summarise(gather(config, [result]))
    assert charged.training_macs == planned.training_macs > 0
    assert charged.energy.nominal_j == pytest.approx(planned.energy.nominal_j)
    assert 0 <= result.outcome.test_accuracy <= 1


def test_models_of_one_shape_do_not_share_stages(tiny, tmp_path):
    """Settings that differ in the model alone, even in its name alone, are other runs."""
    names = {full_alone(tiny, settings).run_name for settings in (*SETTINGS.values(), ResNetSettings(), tiny.model)}
    assert len(names) == 5


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_saved_config_reads_back(tiny, tmp_path, settings):
    config = full_alone(tiny, settings)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(to_plain(config)), encoding="utf-8")  # JSON is YAML
    read = load_config(path)
    assert isinstance(read, Config)
    assert read == config
    assert read.run_name == config.run_name


PRUNING = (
    ArmSettings("slimming", "network_slimming"),
    ArmSettings("early bird", "early_bird", precision="bfp8"),
    ArmSettings("random", "random_ticket"),
)


@pytest.mark.parametrize(("groups", "score"), [("batch_norm", "gamma"), ("coupled", "gamma"), ("coupled", "l1")])
@pytest.mark.parametrize("name", ["preresnet", "resnet"])
def test_residual_networks_are_pruned_in_both_manners(tiny, tmp_path, name, groups, score):
    config = full_alone(tiny, SETTINGS[name])
    ticket = dataclasses.replace(config.ticket, groups=groups, score=score, rule="single", threshold=0.9)
    config = dataclasses.replace(config, ticket=ticket, pipelines=PRUNING)
    planned = {arm.arm: arm for arm in summarise(plan(config))}
    results = [run_arm(config, tmp_path, 0, arm, Silent()) for arm in config.pipelines]
    summarise(gather(config, results))
    for result in results:
        outcome = result.outcome
        assert outcome.forward_macs < outcome.dense_forward_macs
        assert planned[outcome.arm].training_macs > 0
        again = run_arm(config, tmp_path, 0, next(a for a in PRUNING if a.name == outcome.arm), Silent())
        assert again.outcome == outcome and again.rows == result.rows
