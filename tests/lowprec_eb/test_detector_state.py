"""Detectors between looks: their state, saved and resumed, and what a look waits for."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lowprec_eb as lp
from lowprec_eb import checkpoints
from lowprec_eb.tickets import DETECTORS, EarlyBirds
from lowprec_eb.tickets.masks import Layout, flatten, keep_first, rank


@pytest.mark.parametrize(
    "options", [{}, {"normalised": "layer"}, {"score_momentum": 0.7}], ids=["plain", "layer", "average"]
)
@pytest.mark.parametrize("rule", list(DETECTORS))
def test_a_resumed_search_goes_on_exactly(rule, options, tmp_path):
    if rule == "epi":  # widths are not normalised
        options = {key: value for key, value in options.items() if key != "normalised"}
    torch.manual_seed(1)
    runs = [{"a": row[:24], "b": row[24:]} for row in torch.rand(24, 40).cumsum(0)]

    def new():
        return EarlyBirds((0.3, 0.6), threshold=0.08, window=3, rule=rule, **options)

    def seen(detector, rows):
        return [(detector.observe(row).keys(), detector.distances(0.3), detector.distances(0.6)) for row in rows]

    whole = new()
    expected = seen(whole, runs)
    for kill in (1, 7, 15):
        first, second = new(), new()
        begun = seen(first, runs[:kill])
        tensors, plain = checkpoints.pack(first.state_dict())
        checkpoints.save(tmp_path / "state", tensors, {"tree": plain})
        tensors, meta = checkpoints.load(tmp_path / "state")
        second.load_state_dict(checkpoints.unpack(tensors, json.loads(json.dumps(meta["tree"]))))
        assert begun + seen(second, runs[kill:]) == expected
        for ratio in (0.3, 0.6):
            a, b = whole.best(ratio), second.best(ratio)
            assert (a.epoch, a.distances) == (b.epoch, b.distances) and lp.mask_distance(a.masks, b.masks) == 0
        assert {r: t.epoch for r, t in whole.tickets.items()} == {r: t.epoch for r, t in second.tickets.items()}


SETTINGS = {"ratio": 0.5, "threshold": 0.1, "window": 5, "rule": "window", "normalised": None, "score_momentum": 0.0}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ratio": 0.4}, r"ratios \[0\.4\] \(here \[0\.5\]\)"),
        ({"threshold": 0.3}, r"threshold 0\.3 \(here 0\.1\)"),
        ({"window": 3}, r"window 3 \(here 5\)"),
        ({"rule": "single"}, r"rule 'single' \(here 'window'\)"),
        ({"normalised": "layer"}, r"normalised 'layer' \(here None\)"),
        ({"score_momentum": 0.9}, r"score_momentum 0\.9 \(here 0\.0\)"),
        ({"window": 3, "normalised": "global"}, r"window 3 \(here 5\), normalised 'global' \(here None\): make"),
    ],
)
def test_the_state_of_other_settings_is_refused(other, message):
    theirs = lp.EarlyBird(**SETTINGS | other)
    for row in torch.eye(6):
        theirs.observe({"a": row})
    mine = lp.EarlyBird(**SETTINGS)
    with pytest.raises(ValueError, match=message):
        mine.load_state_dict(theirs.state_dict())
    assert mine.looked == 0 and mine.best is None


def test_the_state_of_another_class_or_of_other_ratios_is_refused():
    several = EarlyBirds((0.3, 0.5))
    with pytest.raises(ValueError, match=r"class 'EarlyBird' \(here 'EarlyBirds'\), ratios"):
        several.load_state_dict(lp.EarlyBird(0.5).state_dict())
    with pytest.raises(ValueError, match=r"ratios \[0\.5, 0\.3\] \(here \[0\.3, 0\.5\]"):
        several.load_state_dict(EarlyBirds((0.5, 0.3)).state_dict())


class Waits(TorchDispatchMode):
    """Counts what a device would have to be waited for: a number read, a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", list(DETECTORS))
def test_a_look_reads_one_tensor_whatever_the_number_of_layers(rule, monkeypatch):
    """Of all ratios together; torch turns it into numbers by tolist, which no dispatcher sees."""
    detector = EarlyBirds((0.2, 0.5, 0.8), rule=rule, score_momentum=0.5)
    read = []
    monkeypatch.setattr(
        torch.Tensor, "tolist", (lambda plain: lambda t: read.append(t.shape) or plain(t))(torch.Tensor.tolist)
    )
    torch.manual_seed(0)
    with Waits() as waits:
        for _ in range(7):
            detector.observe({f"layer{i}": torch.rand(5 + i) for i in range(20)})
    assert len(read) == 7 and waits.found == []


def test_the_ranking_and_the_masks_run_on_a_device_of_their_own():
    """On the meta device, where nothing can be read."""
    scores = {"a": torch.empty(7, device="meta"), "b": torch.empty(5, device="meta")}
    layout = Layout.of(scores)
    _, order = rank(flatten(scores), layout)
    mask = keep_first(order, layout.kept(0.5), layout)
    assert mask.is_meta and layout.count(mask).shape == (2,)
