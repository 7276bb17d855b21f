"""The loader converts nothing, names every problem with file and key, and its digest survives new options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lowprec_eb.one_of import OneOf, tag
from lowprec_eb.strict_config import ConfigError, digest, load, to_plain


@dataclasses.dataclass(frozen=True)
class Training:
    epochs: int = 160
    learning_rate: float = 0.1
    nesterov: bool = False
    milestones: tuple[int, ...] = (80, 120)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; at least 1 is needed")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    name: str
    precision: Literal["fp32", "bfp8"] = "fp32"
    retrain: Training | None = None


@dataclasses.dataclass(frozen=True)
class Window:
    kind: Literal["window"]
    length: int = 5


@dataclasses.dataclass(frozen=True)
class Threshold:
    kind: Literal["threshold"]
    distance: float = 0.1


@dataclasses.dataclass(frozen=True)
class Experiment:
    task: str
    training: Training = Training()
    pipelines: tuple[Pipeline, ...] = ()
    layers: Mapping[str, Training] = dataclasses.field(default_factory=dict)
    drops: Mapping[int, float] = dataclasses.field(default_factory=dict)
    detector: Annotated[Window | Threshold, OneOf("kind")] | None = None
    folder: Path = dataclasses.field(default=Path("runs"), compare=False)


FULL = """
task: digits
training: {epochs: 3, learning_rate: 1e-4, nesterov: true, milestones: [1, 2]}
pipelines:
  - name: full
  - {name: early_bird, precision: bfp8, retrain: {epochs: 7}}
layers:
  "features.0": {learning_rate: 1}
drops: {10: 0.5}
detector: {kind: threshold, distance: 0.2}
folder: elsewhere
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, Experiment, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(f"{path}", "F") for problem in caught.value.problems]


def test_reads_every_supported_type(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, FULL), Experiment)
    assert loaded == Experiment(
        task="digits",
        training=Training(3, 1e-4, True, (1, 2)),
        pipelines=(Pipeline("full"), Pipeline("early_bird", "bfp8", Training(epochs=7))),
        layers={"features.0": Training(learning_rate=1.0)},
        drops={10: 0.5},
        detector=Threshold("threshold", 0.2),
    )
    assert loaded.folder == Path("elsewhere")
    assert isinstance(loaded.training.milestones, tuple)
    assert type(loaded.layers["features.0"].learning_rate) is float


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("training: {epochs: twenty}", "F: training.epochs: expected a whole number, got 'twenty'"),
        ("training: {epochs: '20'}", "F: training.epochs: expected a whole number, got '20'"),
        ("training: {epochs: true}", "F: training.epochs: expected a whole number, got true"),
        ("training: {epochs: 2.0}", "F: training.epochs: expected a whole number, got 2.0"),
        ("training: {learning_rate: '1e-4'}", "F: training.learning_rate: expected a number, got '1e-4'"),
        ("training: {learning_rate: true}", "F: training.learning_rate: expected a number, got true"),
        ("training: {nesterov: 1}", "F: training.nesterov: expected true or false, got 1"),
        ("training: {nesterov: yes}", "F: training.nesterov: expected true or false, got 'yes'"),
        ("training: {milestones: 3}", "F: training.milestones: expected a list, got 3"),
        ("training: {milestones: [1, x]}", "F: training.milestones.1: expected a whole number, got 'x'"),
        ("training: 3", "F: training: expected `key: value` lines, got 3"),
        ("training: {epohcs: 3}", "F: training.epohcs: unknown key; did you mean 'epochs'?"),
        ("trainig: {}", "F: trainig: unknown key; did you mean 'training'?"),
        ("pipelines: [{name: a}, {name: 20}]", "F: pipelines.1.name: expected text, got 20"),
        ("pipelines: [{}]", "F: pipelines.0.name: missing; it has no default, so give it a value"),
        (
            "pipelines: [{name: a, precision: bpf8}]",
            "F: pipelines.0.precision: expected 'fp32' or 'bfp8', got 'bpf8'; did you mean 'bfp8'?",
        ),
        (
            "pipelines: [{name: a, retrain: {zzz: 1}}]",
            "F: pipelines.0.retrain.zzz: unknown key; the keys here are epochs, learning_rate, milestones, nesterov",
        ),
        ("layers: {a: {epohcs: 1}}", "F: layers.a.epohcs: unknown key; did you mean 'epochs'?"),
        ("layers: [1]", "F: layers: expected `key: value` lines, got a list"),
        ("drops: {soon: 1}", "F: drops.soon: expected a whole number, got 'soon'"),
        ("layers: {a: {epochs: 0}}", "F: layers.a: epochs is 0; at least 1 is needed"),
        ("task: 2024-01-01", "F: task: YAML reads this as a date; put it in quotes to get text"),
        ("training: {null: 1}", "F: training: the key null is not text; put it in quotes"),
        ("drops: {1: 0.5, '1': 0.6}", "F: drops: the key '1' stands twice"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_key(tmp_path: Path, lines: str, problem: str) -> None:
    assert problems_of(write(tmp_path, lines if "task:" in lines else f"task: digits\n{lines}\n")) == [problem]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: x, epohcs: 3}\npipelines: [{name: 1}]\n")
    found = problems_of(path, ("training.nesterov=2", "pipelines.4.name=b"))
    assert sorted(found) == [
        "F: pipelines.0.name: expected text, got 1",
        "F: task: missing; it has no default, so give it a value",
        "F: training.epochs: expected a whole number, got 'x'",
        "F: training.epohcs: unknown key; did you mean 'epochs'?",
        "override 'pipelines.4.name=b': pipelines.4: no such entry; the list has entries 0 to 0",
        "override 'training.nesterov=2': training.nesterov: expected true or false, got 2",
    ]


def test_an_error_at_the_top_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs: -1")
    with pytest.raises(ConfigError) as caught:
        load(path, Training)
    assert str(caught.value) == f"{path}: epochs is -1; at least 1 is needed"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "F: the file is empty"),
        ("# only a comment\n", "F: the file is empty"),
        ("- 1\n", "F: expected `key: value` lines at the top, got a list"),
        ("task: [1\n", "F, line 2, column 1: expected ',' or ']'"),
        ("task: a\ntask: b\n", 'F, line 2, column 1: found duplicate key "task"'),
        ("task: !secret a\n", "F, line 1, column 7: could not determine a constructor"),
        ("task: a\n---\ntask: b\n", "F, line 2, column 1: but found another document"),
        ("task: \x01\n", "F: unacceptable character"),
    ],
)
def test_files_that_are_not_a_settings_mapping(tmp_path: Path, text: str, start: str) -> None:
    (problem,) = problems_of(write(tmp_path, text))
    assert problem.startswith(start)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "absent.yaml") == ["F: there is no such file"]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("task: Übung".encode("latin-1"))
    assert problems_of(latin)[0].startswith("F: cannot be read: ")
    assert problems_of(tmp_path)[0].startswith("F: cannot be read: ")


def test_overrides_mean_what_the_file_would_mean(tmp_path: Path) -> None:
    path = write(tmp_path, "task: digits\npipelines: [{name: full}]\n")
    loaded = load(
        path,
        Experiment,
        [
            "training.learning_rate=1e-3",
            "pipelines.0.precision=bfp8",
            "pipelines.0.retrain.epochs=2",
            "training.milestones=[4, 5]",
            "task='7'",
            "layers.conv.epochs=9",
            "task=cifar10",
        ],
    )
    assert loaded == Experiment(
        task="cifar10",
        training=Training(learning_rate=1e-3, milestones=(4, 5)),
        pipelines=(Pipeline("full", "bfp8", Training(epochs=2)),),
        layers={"conv": Training(epochs=9)},
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.epohcs=3", "training.epohcs: unknown key; did you mean 'epochs'?"),
        ("trainin.epochs=3", "trainin: unknown key; did you mean 'training'?"),
        ("training.epochs=1e-4", "training.epochs: expected a whole number, got 0.0001"),
        ("task.name=3", "task: is 'digits'; it has no keys below it"),
        ("pipelines.first.name=a", "pipelines.first: no such entry; the list has entries 0 to 1"),
        ("training.epochs", "expected `key.key=value`"),
        ("training..epochs=1", "expected `key.key=value`"),
    ],
)
def test_a_bad_override_names_itself(tmp_path: Path, override: str, problem: str) -> None:
    assert problems_of(write(tmp_path, FULL), (override,)) == [f"override {override!r}: {problem}"]


def test_an_override_with_broken_yaml_names_itself(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, FULL), ("task=[1",))
    assert problem.startswith("override 'task=[1', line 1, column 3: expected ',' or ']'")


trainings = st.builds(
    Training,
    epochs=st.integers(1, 300),
    learning_rate=st.floats(allow_nan=False),
    nesterov=st.booleans(),
    milestones=st.lists(st.integers()).map(tuple),
)
names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5)
pipelines = st.builds(Pipeline, names, st.sampled_from(["fp32", "bfp8"]), st.none() | trainings)
experiments = st.builds(
    Experiment,
    names,
    trainings,
    st.lists(pipelines, max_size=2).map(tuple),
    st.dictionaries(names, trainings, max_size=2),
    st.dictionaries(st.integers(), st.floats(allow_nan=False), max_size=2),
    st.none() | st.builds(Window, st.just("window"), st.integers()) | st.builds(Threshold, st.just("threshold")),
)


@given(experiments)
def test_plain_settings_load_back_to_an_equal_object(tmp_path_factory: pytest.TempPathFactory, one: Experiment) -> None:
    path = tmp_path_factory.mktemp("plain") / "a.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(to_plain(one), file)
    assert load(path, Experiment) == one


@given(experiments, experiments)
def test_digests_are_equal_exactly_for_equal_settings(one: Experiment, other: Experiment) -> None:
    assert (digest(one, 64) == digest(other, 64)) == (one == other)
    assert digest(one, 64) == digest(dataclasses.replace(one), 64)


def test_digest_ignores_defaults_and_options_added_later() -> None:
    old = dataclasses.make_dataclass("Old", [("epochs", int, 160)], frozen=True)
    new = dataclasses.make_dataclass("New", [("epochs", int, 160), ("warmup", int, 0)], frozen=True)
    assert digest(old(epochs=3)) == digest(new(epochs=3)) != digest(new(epochs=3, warmup=1))
    assert digest(Experiment("digits")) == digest(Experiment("digits", training=Training(epochs=160)))


def test_digest_is_stable_across_releases() -> None:
    """A changed value here means that every stored run would be orphaned."""
    settings = Experiment("digits", Training(epochs=3, learning_rate=1.0), (Pipeline("full"),))
    assert digest(settings, 64).startswith(digest(settings))
    assert digest(settings) == "49415fb628"


def test_digest_sees_numbers_not_their_spelling_and_not_uncompared_fields() -> None:
    assert digest(Training(learning_rate=1)) == digest(Training(learning_rate=1.0))
    assert digest(Experiment("digits", folder=Path("a"))) == digest(Experiment("digits", folder=Path("b")))
    window, threshold = Window("window"), Threshold("threshold")
    assert digest(Experiment("a", detector=window)) != digest(Experiment("a", detector=threshold))


@pytest.mark.parametrize("length", [0, 65])
def test_digest_refuses_a_length_sha256_does_not_have(length: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        digest(Training(), length)


@pytest.mark.parametrize("value", [{1, 2}, object(), 1j])
def test_a_setting_that_is_not_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="cannot be of type"):
        to_plain({"a": value})


# ---- one of several classes ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plain:
    name: Literal["plain"] = "plain"
    widths: tuple[int, ...] = (4,)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Deep:
    name: Literal["deep"] = tag("deep")
    depth: int = 18
    seed: int = 0
    inner: Training = Training()


@dataclasses.dataclass(frozen=True)
class Deeper:
    name: Literal["deeper"] = tag("deeper")
    depth: int = 18
    seed: int = 0


Model = Annotated[Plain | Deep | Deeper, OneOf("name", default="plain")]


@dataclasses.dataclass(frozen=True)
class Study:
    model: Model = dataclasses.field(default_factory=Plain)
    models: tuple[Model, ...] = ()
    by_name: Mapping[str, Model] = dataclasses.field(default_factory=dict)
    detector: Annotated[Window | Threshold, OneOf("kind")] | None = None


STUDY = """
model: {name: deep, depth: 34, inner: {epochs: 2}}
models: [{widths: [1, 2]}, {name: deeper}]
by_name: {deep: {name: deep}, name: {}}
detector: {kind: threshold, distance: 1}
"""


def test_a_key_picks_the_class_at_any_depth(tmp_path: Path) -> None:
    study = load(write(tmp_path, STUDY), Study)
    assert study == Study(
        Deep(depth=34, inner=Training(epochs=2)),
        (Plain(widths=(1, 2)), Deeper()),
        {"deep": Deep(), "name": Plain()},
        Threshold("threshold", 1.0),
    )
    path = tmp_path / "again.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(to_plain(study), file)
    assert load(path, Study) == study
    assert load(write(tmp_path, "detector: null"), Study) == Study()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            "model: {name: deepr}",
            "F: model.name: expected 'plain', 'deep' or 'deeper', got 'deepr'; did you mean 'deeper'?",
        ),
        ("model: {name: 3}", "F: model.name: expected 'plain', 'deep' or 'deeper', got 3"),
        ("model: {name: [deep]}", "F: model.name: expected 'plain', 'deep' or 'deeper', got a list"),
        ("model: {name: null}", "F: model.name: expected 'plain', 'deep' or 'deeper', got null"),
        ("model: deep", "F: model: expected `key: value` lines, got 'deep'"),
        ("model: null", "F: model: expected `key: value` lines, got null"),
        ("detector: {distance: 0.1}", "F: detector.kind: missing; give 'window' or 'threshold'"),
        ("detector: {}", "F: detector.kind: missing; give 'window' or 'threshold'"),
        (
            "model: {name: deep, widths: [1]}",
            "F: model.widths: is a key of 'plain'; name is 'deep' here, with depth, inner, name, seed",
        ),
        (
            "model: {depth: 20}",
            "F: model.depth: is a key of 'deep' and 'deeper'; name is left out: 'plain', with name, seed, widths",
        ),
        (
            "detector: {kind: window, distance: 0.1}",
            "F: detector.distance: is a key of 'threshold'; kind is 'window' here, with kind, length",
        ),
        (
            "models: [{}, {name: deeper, inner: {}}]",
            "F: models.1.inner: is a key of 'deep'; name is 'deeper' here, with depth, name, seed",
        ),
        ("by_name: {a: {widht: [1]}}", "F: by_name.a.widht: unknown key; did you mean 'widths'?"),
        ("model: {name: deep, width: 1}", "F: model.width: unknown key; did you mean 'depth'?"),  # not widths
        ("model: {name: deep, zzz: 1}", "F: model.zzz: unknown key; the keys here are depth, inner, name, seed"),
        ("model: {name: deep, inner: {epoch: 1}}", "F: model.inner.epoch: unknown key; did you mean 'epochs'?"),
        ("model: {name: deep, inner: {epochs: 0}}", "F: model.inner: epochs is 0; at least 1 is needed"),
        ("model: {name: deep, depth: x}", "F: model.depth: expected a whole number, got 'x'"),
        ("model: {widths: [1, x]}", "F: model.widths.1: expected a whole number, got 'x'"),
    ],
)
def test_mistakes_in_a_choice(tmp_path: Path, lines: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, lines), Study)
    assert [line.replace(str(tmp_path / "digits.yaml"), "F") for line in caught.value.problems] == [problem]


def test_an_override_can_change_the_class(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {seed: 3}")
    assert load(path, Study, ["model.name=deep"]) == Study(Deep(seed=3))
    with pytest.raises(ConfigError) as caught:
        load(path, Study, ["model.name=deepest"])
    assert str(caught.value).startswith("override 'model.name=deepest': model.name: expected 'plain', 'deep' or")
    with pytest.raises(ConfigError) as caught:
        load(path, Study, ["model.depth=3"])
    assert str(caught.value).startswith("override 'model.depth=3': model.depth: is a key of 'deep' and 'deeper'")


def test_digests_tell_the_classes_of_a_choice_apart() -> None:
    """The default class keeps the hash that it had before there was a choice."""
    models = (Plain(), Plain(seed=1), Deep(), Deep(seed=1), Deeper(), Deeper(seed=1), Deep(depth=5), Deeper(depth=5))
    assert len({digest(Study(model)) for model in models}) == len(models)
    before = dataclasses.make_dataclass("Before", [("widths", tuple[int, ...], (4,)), ("seed", int, 0)], frozen=True)
    assert digest(Plain(seed=1)) == digest(before(seed=1))


@dataclasses.dataclass(frozen=True)
class Forgotten:
    name: Literal["forgotten"] = "forgotten"


@dataclasses.dataclass(frozen=True)
class Free:
    name: str = "free"


@pytest.mark.parametrize(
    ("union", "choice", "message"),
    [
        (Plain | Forgotten, OneOf("name", "plain"), r"Forgotten.name: its default must be tag\('forgotten'\)"),
        (Plain | Deep, OneOf("name"), r"Plain.name: its default must be tag\('plain'\)"),
        (Deep | Free, OneOf("name"), "Free.* must be a dataclass with a field 'name' that is a Literal of one text"),
        (Deep | Window, OneOf("name"), "Window.* must be a dataclass with a field 'name'"),
        (Deep | None, OneOf("name"), "NoneType.* must be a dataclass"),
        (Deep | Deeper, OneOf("name", "shallow"), "the default 'shallow' is none of deep, deeper"),
    ],
)
def test_a_choice_that_cannot_work_is_refused(tmp_path: Path, union: Any, choice: OneOf, message: str) -> None:
    settings = dataclasses.make_dataclass("Settings", [("model", Annotated[union, choice])])
    with pytest.raises(TypeError, match=message):
        load(write(tmp_path, "model: {}"), settings)
