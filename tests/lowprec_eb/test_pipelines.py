"""Each pipeline against its algorithm box: what it trains, from which weights, in which precision, what it prunes."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from lowprec_eb.arms import ArmSettings, IterativeSettings, MatchSettings, SnipSettings, ThinetSettings
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.retraining import FINE_TUNING, LOTTERY, Retraining


@dataclass(frozen=True)
class FakeStart:
    key: str
    epoch: int = 0


@dataclass
class RecordingLab:
    """Takes notes instead of training; a search stops after 7 epochs."""

    tickets: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(sparsity=1e-4, ratio=0.64))
    trained: list = field(default_factory=list)
    notes: list = field(default_factory=list)  # other things that were done
    reconstructable: tuple = ("first", "second")

    def initial(self):
        return FakeStart("initial")

    def schedule(self, epochs=None, learning_rate=None):
        return SimpleNamespace(epochs=epochs or 30, learning_rate=learning_rate)

    def between_layers(self, epochs):
        return SimpleNamespace(epochs=epochs, learning_rate="last")

    def train(self, start, phase, precision, *, sparsity=0.0, detect=False, retraining=None, training=None):
        self.trained.append((phase, start.key, start.epoch, precision, sparsity, detect))
        self.notes.append((retraining, training))
        epoch = 7 if detect else (training or self.schedule()).epochs
        return SimpleNamespace(state=FakeStart(phase, epoch), ticket="early-bird ticket" if detect else None)

    def draw(self, dense, precision, *, left=1 - 0.64, epoch=None):
        self.notes.append((round(left, 9), epoch))
        return f"ticket of {dense.state.key}"

    def draw_sensitive(self, start, precision, batches):
        return replace(start, key=f"{start.key} seen in {precision} by {batches}"), "sensitive ticket"

    def reconstruct(self, start, layer, precision, how, *, epoch):
        self.notes.append(("layer", layer, epoch))
        return replace(start, key=f"{start.key} without some of {layer}"), f"ticket of {layer}"

    def randomize(self, ticket):
        return f"random like {ticket}"

    def retrained_from(self, trained, how):
        epoch = trained.state.epoch if how.schedule == "continue" else 0
        return FakeStart(f"{how.weights} {trained.state.key}, {how.optimizer} momentum", epoch)

    def matched(self, match, precision):
        return 11, 1e6

    def prune(self, start, ticket):
        return replace(start, key=f"{start.key} pruned to {ticket}")

    def outcome(self, arm, stages, ticket=None, *, retraining=None, target=None):
        self.notes.append(("outcome", retraining, target))
        return [stage.state.key for stage in stages], ticket


def run(pipeline, **settings):
    lab = RecordingLab()
    charged, ticket = PIPELINES[pipeline](lab, ArmSettings("arm", pipeline, **settings))
    return lab.trained, charged, ticket


def notes(pipeline, **settings):
    lab = RecordingLab()
    PIPELINES[pipeline](lab, ArmSettings("arm", pipeline, **settings))
    return lab.notes


SEARCH = ("search", "initial", 0)
DENSE = ("train", "initial", 0)


def test_full():
    trained, charged, ticket = run("full", precision="bf16")
    assert trained == [(*DENSE, "bf16", 0.0, False)]
    assert (charged, ticket) == (["train"], None)


def test_network_slimming_restarts_the_schedule_with_the_weights_that_stayed():
    trained, charged, ticket = run("network_slimming", precision="bfp8")
    small = "inherit train, new momentum pruned to ticket of train"
    assert trained == [(*DENSE, "bfp8", 1e-4, False), ("retrain", small, 0, "bfp8", 0.0, False)]
    assert (charged, ticket) == (["train", "retrain"], "ticket of train")


def test_one_shot_ticket_rewinds_to_the_initial_weights():
    trained, charged, _ = run("one_shot_ticket")
    rewound = ("retrain", "rewind train, new momentum pruned to ticket of train", 0, "fp32", 0.0, False)
    assert trained == [(*DENSE, "fp32", 1e-4, False), rewound]
    assert charged == ["train", "retrain"]


@pytest.mark.parametrize(
    ("name", "search", "retrain"), [("FF", "fp32", "fp32"), ("LF", "bfp8", "fp32"), ("LL", "bfp8", "bfp8")]
)
def test_early_bird_goes_on_where_the_ticket_appeared(name, search, retrain):
    trained, charged, ticket = run("early_bird", search_precision=search, precision=retrain)
    going_on = ("retrain", "inherit search, keep momentum pruned to early-bird ticket", 7, retrain, 0.0, False)
    assert trained == [(*SEARCH, search, 1e-4, True), going_on]
    assert (charged, ticket) == (["search", "retrain"], "early-bird ticket")


def test_early_bird_reinitialised_trains_new_weights_over_the_whole_schedule():
    trained, charged, _ = run("early_bird", weights="reinit")
    assert trained[1] == ("retrain", "reinit search, new momentum pruned to early-bird ticket", 0, "fp32", 0.0, False)
    assert charged == ["search", "retrain"]  # the search is paid for


def test_random_ticket_differs_from_early_bird_in_the_mask_alone():
    random, charged, ticket = run("random_ticket", precision="bfp8")
    bird, _, _ = run("early_bird", precision="bfp8")
    assert random[0] == bird[0] and random[1][2:] == bird[1][2:]
    assert random[1][1] == "inherit search, keep momentum pruned to random like early-bird ticket"
    assert (charged, ticket) == (["search", "retrain"], "random like early-bird ticket")


@pytest.mark.parametrize("pipeline", ["early_bird", "random_ticket", "final_ticket"])
@pytest.mark.parametrize(
    ("keys", "how"),
    [
        ({}, Retraining("inherit", "continue", "keep")),
        ({"weights": "reinit"}, Retraining("reinit", "restart", "new")),
        ({"weights": "reinit", "schedule": "continue"}, Retraining("reinit", "continue", "new")),
        ({"weights": "rewind", "rewind_epoch": 2}, Retraining("rewind", "continue", "keep", rewind_epoch=2)),
        ({"weights": "rewind", "penalty": True}, Retraining("rewind", "continue", "new", penalty=True)),
    ],
)
def test_the_four_keys_reach_training_and_outcome(pipeline, keys, how):
    said = notes(pipeline, **keys)
    assert (how, None) in said and said[-1] == ("outcome", how, None)


def test_pipelines_without_these_keys_say_theirs():
    assert (FINE_TUNING, None) in notes("network_slimming")
    assert (LOTTERY, None) in notes("one_shot_ticket")


def test_the_final_ticket_differs_from_early_bird_in_the_mask_alone():
    trained, charged, ticket = run("final_ticket", search_precision="bfp8", precision="bf16")
    bird, _, _ = run("early_bird", search_precision="bfp8", precision="bf16")
    assert trained[0] == bird[0]
    assert trained[1] == (*DENSE, "bfp8", 1e-4, False)  # as the search, to the end
    small = "inherit search, keep momentum pruned to ticket of train"
    assert trained[2] == ("retrain", small, *bird[1][2:])
    assert (charged, ticket) == (["search", "train", "retrain"], "ticket of train")


def test_iterative_pruning_goes_in_rounds_and_drops_the_penalty_in_the_last():
    how = IterativeSettings(steps=2, epochs=4, learning_rate=0.01)
    trained, charged, _ = run("iterative_pruning", precision="bfp8", iterative=how)
    assert [of[0] for of in trained] == charged == ["train", "retrain", "retrain"]
    assert trained[1][1] == "inherit train, new momentum pruned to ticket of train"
    assert trained[2][1] == "inherit retrain, new momentum pruned to ticket of retrain"
    assert {of[3] for of in trained} == {"bfp8"} and trained[0][4] == 1e-4
    said = notes("iterative_pruning", iterative=how)
    assert [of[0].penalty for of in said if isinstance(of[0], Retraining)] == [True, False]
    assert [of[1] for of in said if isinstance(of[0], Retraining)] == [
        SimpleNamespace(epochs=4, learning_rate=0.01)
    ] * 2
    assert [of for of in said if isinstance(of[0], float)] == [(0.6, 30), (0.36, 34)]  # shares left, epochs until then


def test_snip_prunes_before_training():
    trained, charged, ticket = run("snip", precision="bfp8", snip=SnipSettings(batches=3))
    start = "initial seen in bfp8 by 3 pruned to sensitive ticket"
    assert trained == [("train", start, 0, "bfp8", 0.0, False)]
    assert (charged, ticket) == (["train"], "sensitive ticket")


def test_thinet_goes_layer_by_layer():
    trained, charged, ticket = run("thinet", thinet=ThinetSettings(layer_epochs=2, epochs=5))
    assert charged == ["train", *["retrain"] * 3] and ticket == "ticket of second"
    assert trained[0] == (*DENSE, "fp32", 0.0, False)  # no penalty: the stage of full training
    assert [of[1] for of in trained[1:]] == [
        "inherit train, new momentum without some of first",
        "inherit retrain, new momentum without some of second",
        "inherit retrain, new momentum",
    ]
    said = notes("thinet", thinet=ThinetSettings(layer_epochs=2, epochs=5))
    assert [of[1].epochs for of in said if of[0] == FINE_TUNING] == [2, 2, 5]
    assert [of for of in said if of[0] == "layer"] == [("layer", "first", 30), ("layer", "second", 32)]


def test_thinet_without_training_in_between():
    trained, _, _ = run("thinet", thinet=ThinetSettings(layer_epochs=0))
    both = "inherit train, new momentum without some of first without some of second"
    assert [of[1] for of in trained] == ["initial", both]


def test_a_matched_run_is_dense_and_as_long_as_its_match():
    match = MatchSettings("LL", "energy")
    trained, charged, ticket = run("dense_matched", precision="bf16", match=match)
    assert trained == [(*DENSE, "bf16", 0.0, False)] and (charged, ticket) == (["train"], None)
    said = notes("dense_matched", match=match)
    assert said[0][1].epochs == 11 and said[-1] == ("outcome", None, 1e6)
