"""How long a run must be to cost so much."""

import pytest

from lowprec_eb.matching import nearest_length
from lowprec_eb.outcome import MatchSummary


def cost(epochs):
    return 10.0 * epochs + 3  # a test pass at the end


@pytest.mark.parametrize(
    ("target", "epochs"), [(43, 4), (47, 4), (48, 4), (49, 5), (1, 1), (0, 1), (203, 20), (1e4, 1000)]
)
def test_the_nearest_length_the_shorter_of_two_alike(target, epochs):
    assert nearest_length(target, cost, 1, 5) == epochs


def test_no_shorter_than_it_can_be():
    assert nearest_length(13, cost, 3, 5) == 3


def test_beyond_reason_is_refused():
    with pytest.raises(ValueError, match="over 5000 epochs to cost 1e\\+06"):
        nearest_length(1e6, cost, 1, 5)


def test_how_far_off():
    assert MatchSummary("LL", "flops", 200.0, 190.0, 3).error == pytest.approx(-0.05)
