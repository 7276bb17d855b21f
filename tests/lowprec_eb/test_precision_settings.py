"""Precisions in YAML: what is written reads back equal, alone and in an experiment, and every mistake is named."""

import dataclasses
import json

import pytest
from hypothesis import given
from random_precisions import precisions

import lowprec_eb as lp
from lowprec_eb.arms import ArmSettings
from lowprec_eb.compare import plan
from lowprec_eb.config import Config, load_config
from lowprec_eb.precision import Precision
from lowprec_eb.precision_settings import PrecisionSettings, dump_precision, load_precision
from lowprec_eb.recipes import RECIPES
from lowprec_eb.strict_config import ConfigError, digest, load, to_plain


@given(precisions)
def test_yaml_reads_back_equal(tmp_path_factory, precision):
    path = tmp_path_factory.mktemp("yaml") / "precision.yaml"
    path.write_text(dump_precision(precision), encoding="utf-8")
    assert load_precision(path) == precision


def test_settings_have_the_fields_of_a_precision():
    fields = [field.name for field in dataclasses.fields(Precision)]
    assert [field.name for field in dataclasses.fields(PrecisionSettings)] == ["base", *fields]


def written(tmp_path, text, name="my8.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_precision_in_yaml(tmp_path):
    path = written(tmp_path, """
base: bfp8
name: my8
weight: "BlockFloat(wl=6, dim=0)"
activation: {output: {format: int8, running: 0.9}, grad_weight: bf16}
error: {format: scaled_fp8_e5m2, prescale: 2}
master: null
hadamard: {grad_weight: 32}
overrides:
  - {layers: "@last", precision: fp32}
  - {layers: "type:Conv2d", precision: {base: bf16, error: null}}
""")  # fmt: skip
    assert load_precision(path) == lp.precision(
        "bfp8",
        name="my8",
        weight=lp.BlockFloat(6, dim=0),
        activation=lp.PerGemm(output=lp.Rounded("int8", running=0.9), grad_weight="bf16"),
        error=lp.Rounded("scaled_fp8_e5m2", prescale=2),
        master=None,
        hadamard=lp.PerGemm(grad_weight=32),
        overrides=[("@last", lp.precision("fp32")), ("type:Conv2d", lp.precision("bf16", error=None))],
    )


def test_a_chunk_in_yaml_is_as_in_the_base_until_it_is_given(tmp_path):
    chunked = Precision("a", accumulator="fp16", accumulator_chunk=64)
    text = dump_precision(chunked)
    assert text == "name: a\naccumulator: fp16\naccumulator_chunk: 64\n"
    assert load_precision(written(tmp_path, text)) == chunked
    outer = "overrides: [{layers: b, precision: {accumulator: bf16, accumulator_chunk: 8}}]"
    inner = load_precision(written(tmp_path, outer)).of_layer("b")
    assert (inner.accumulator, inner.accumulator_chunk) == (lp.BF16, 8)
    assert load_precision(written(tmp_path, "{accumulator: fp16, accumulator_chunk: null}")).accumulator_chunk is None


def test_yaml_is_short(tmp_path):
    assert dump_precision(RECIPES["bf16"]) == "name: bf16\nweight: bf16\nactivation: bf16\nerror: bf16\n"
    assert "precision: fp32" in dump_precision(RECIPES["int8"])  # a recipe in an override is written as its name
    assert load_precision(written(tmp_path, "{}")) == Precision()


BAD_BASE = ("base: bpf8", "base: unknown precision 'bpf8'; did you mean 'bfp8'?")
BAD_YAML = [
    ("wieght: bf16", "wieght: unknown key; did you mean 'weight'?"),
    ("weight: fp8_e4m4", "weight: not a number format: 'fp8_e4m4'; did you mean 'fp8_e4m3'?"),
    ("weight: 8", "weight: expected text, got 8"),
    ("weight: {fromat: bf16}", "weight.fromat: unknown key; did you mean 'format'?"),
    ("weight: {outptu: bf16}", "weight.outptu: unknown key; did you mean 'output'?"),
    ("weight: {output: bf17}", "weight.output: not a number format: 'bf17'; did you mean 'bf16'?"),
    ("weight: {format: bf16, running: 2}", "Rounded: running is a momentum and must be between 0 and 1, got 2.0"),
    ("error: {output: bf16}", "error is not read by output, only by grad_input and grad_weight"),
    ("vectors: 1", "vectors: expected true or false, got 1"),
    ("block_axis: formt", "block_axis: expected 'reduction' or 'format', got 'formt'; did you mean 'format'?"),
    ("hadamard: big", "hadamard: expected a whole number, got 'big'"),
    ("hadamard: 48", "hadamard: must be a power of two from 2 to 1024, got 48"),
    ("accumulator_chunk: many", "accumulator_chunk: expected a whole number, got 'many'"),
    ("accumulator_chunk: {output: 1}", "accumulator_chunk: expected a whole number, got a mapping"),
    ("accumulator_chunk: 0", "accumulator_chunk must be a number of products, 1 or more, or None, got 0"),
    ("accumulator_chunk: 64", "give accumulator, or None for accumulator_chunk too"),
    ("overrides: [{layers: a, precision: fp31}]", "0.precision: unknown precision 'fp31'; did you mean 'fp32'?"),
    ("overrides: [{layers: a, precision: {wieght: bf16}}]", "0.precision.wieght: unknown key; did you mean 'weight'?"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), [*BAD_YAML, BAD_BASE])
def test_a_mistake_names_file_key_and_nearest_name(tmp_path, line, problem):
    path = written(tmp_path, line)
    with pytest.raises(ConfigError) as caught:
        load_precision(path)
    (found,) = caught.value.problems
    assert found.startswith(f"{path}: ") and found.endswith(problem)


# ---- in an experiment --------------------------------------------------------------------------------------------

EXPERIMENT = """
name: own
pipelines: [{name: arm, pipeline: early_bird, precision: my8, search_precision: bf16}]
precisions:
  my8: {base: bfp8, error: fp8_e5m2}
"""


def test_an_experiment_names_precisions_of_its_own(tmp_path):
    path = written(tmp_path, EXPERIMENT)
    config = load_config(path)
    assert config.lab.precisions == {"my8": lp.precision("bfp8", name="my8", error="fp8_e5m2")}
    assert load_config(path, ["precisions.my8.error=null"]).lab.precisions["my8"].error is None


@pytest.mark.parametrize(("line", "problem"), BAD_YAML)
def test_a_mistake_in_an_experiments_precision_names_its_key(tmp_path, line, problem):
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, EXPERIMENT.replace("error: fp8_e5m2", line)))
    (found,) = caught.value.problems
    assert ": precisions.my8" in found and found.endswith(problem)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("pipelines.0.precision=my9", "pipelines.0.precision: unknown precision 'my9'; did you mean 'my8'?"),
        ("pipelines.0.search_precision=bpf8", "pipelines.0.search_precision: unknown precision 'bpf8'; did you mean"),
        ("pipelines.0.precision=zzzz", "unknown precision 'zzzz'; known are fp32, bf16,"),
        ("precisions.bf16={}", "precisions.bf16: is the name of a recipe; choose another"),
        ("precisions.my8.name=other", "precisions.my8.name: here the key is the name; leave 'other' out"),
    ],
)
def test_names_of_precisions_are_checked(tmp_path, override, problem):
    with pytest.raises(ConfigError, match=r"my8\.yaml: ") as caught:
        load_config(written(tmp_path, EXPERIMENT), [override])
    assert problem in str(caught.value)


def test_equal_spellings_name_one_run_and_different_precisions_two(tmp_path):
    names = {
        load_config(written(tmp_path, EXPERIMENT.replace("fp8_e5m2", error))).run_name
        for error in ("fp8_e5m2", "FP8_E5M2", "\"Float(5, 2, specials='ieee')\"", "fp8_e4m3")
    }
    assert len(names) == 2


def test_recorded_settings_load_back(tmp_path):
    config = load_config(written(tmp_path, EXPERIMENT))
    again = load(written(tmp_path, json.dumps(to_plain(config)), "config.json"), Config)
    assert again == config


def test_runs_without_precisions_of_their_own_keep_their_names():
    arms = ArmSettings("a", "full"), ArmSettings("b", "early_bird", precision="bfp8", search_precision="swalp8")
    assert digest(Config("pinned", arms)) == "621c70903a"


def test_an_arm_in_a_precision_of_its_own_costs_what_the_recipe_costs(tiny):
    own = PrecisionSettings(base="bf16")
    arms = tuple(ArmSettings(name, "full", precision=name) for name in ("bf16", "my16"))
    result = plan(dataclasses.replace(tiny, pipelines=arms, precisions={"my16": own}))
    stages = [{key: result.rows[key] for key in outcome.stages} for outcome in result.outcomes]
    assert stages[0].keys() != stages[1].keys()  # the names differ, and nothing else
    joules = [[row.modelled for rows in of.values() for row in rows] for of in stages]
    assert joules[0] == joules[1]
