"""Each pipeline against its algorithm box: what it trains, from which weights, in which precision, what it prunes."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from lowprec_eb.arms import ArmSettings
from lowprec_eb.pipelines import PIPELINES


@dataclass(frozen=True)
class FakeStart:
    key: str
    epoch: int = 0

    def restarted(self):
        return replace(self, key=f"{self.key}, restarted", epoch=0)


@dataclass
class RecordingLab:
    """Takes notes instead of training; a search stops after 7 epochs."""

    tickets: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(sparsity=1e-4))
    trained: list = field(default_factory=list)
    stages: list = field(default_factory=list)

    def initial(self):
        return FakeStart("initial")

    def fresh(self):
        return FakeStart("fresh")

    def train(self, start, phase, precision, *, sparsity=0.0, detect=False):
        self.trained.append((phase, start.key, start.epoch, precision, sparsity, detect))
        epoch = 7 if detect else 30
        return SimpleNamespace(state=FakeStart(phase, epoch), ticket="early-bird ticket" if detect else None)

    def draw(self, dense, precision):
        return f"ticket of {dense.state.key}"

    def randomize(self, ticket):
        return f"random like {ticket}"

    def prune(self, start, ticket):
        return replace(start, key=f"{start.key} pruned to {ticket}")

    def outcome(self, arm, stages, ticket=None):
        return [stage.state.key for stage in stages], ticket


def run(pipeline, **settings):
    lab = RecordingLab()
    charged, ticket = PIPELINES[pipeline](lab, ArmSettings("arm", pipeline, **settings))
    return lab.trained, charged, ticket


SEARCH = ("search", "initial", 0)
DENSE = ("train", "initial", 0)


def test_full():
    trained, charged, ticket = run("full", precision="bf16")
    assert trained == [(*DENSE, "bf16", 0.0, False)]
    assert (charged, ticket) == (["train"], None)


def test_network_slimming_restarts_the_schedule_with_the_weights_that_stayed():
    trained, charged, ticket = run("network_slimming", precision="bfp8")
    small = "train, restarted pruned to ticket of train"
    assert trained == [(*DENSE, "bfp8", 1e-4, False), ("retrain", small, 0, "bfp8", 0.0, False)]
    assert (charged, ticket) == (["train", "retrain"], "ticket of train")


def test_one_shot_ticket_rewinds_to_the_initial_weights():
    trained, charged, _ = run("one_shot_ticket")
    rewound = ("retrain", "initial pruned to ticket of train", 0, "fp32", 0.0, False)
    assert trained == [(*DENSE, "fp32", 1e-4, False), rewound]
    assert charged == ["train", "retrain"]


@pytest.mark.parametrize(
    ("name", "search", "retrain"), [("FF", "fp32", "fp32"), ("LF", "bfp8", "fp32"), ("LL", "bfp8", "bfp8")]
)
def test_early_bird_goes_on_where_the_ticket_appeared(name, search, retrain):
    trained, charged, ticket = run("early_bird", search_precision=search, precision=retrain)
    going_on = ("retrain", "search pruned to early-bird ticket", 7, retrain, 0.0, False)
    assert trained == [(*SEARCH, search, 1e-4, True), going_on]
    assert (charged, ticket) == (["search", "retrain"], "early-bird ticket")


def test_early_bird_reinitialised_trains_new_weights_over_the_whole_schedule():
    trained, charged, _ = run("early_bird", weights="reinit")
    assert trained[1] == ("retrain", "fresh pruned to early-bird ticket", 0, "fp32", 0.0, False)
    assert charged == ["search", "retrain"]  # the search is paid for


def test_random_ticket_differs_from_early_bird_in_the_mask_alone():
    random, charged, ticket = run("random_ticket", precision="bfp8")
    bird, _, _ = run("early_bird", precision="bfp8")
    assert random[0] == bird[0] and random[1][2:] == bird[1][2:]
    assert random[1][1] == "search pruned to random like early-bird ticket"
    assert (charged, ticket) == (["search", "retrain"], "random like early-bird ticket")
