"""set_bits() refuses what it could only ignore."""

import pytest
import torch
from torch import nn

import lowprec_eb as lp


@pytest.mark.parametrize(
    ("precision", "operand", "message"),
    [
        (lp.Precision(activation=lp.Rounded(lp.Int(8), prescale=3 / 4)), "activation", "has a prescale"),
        (lp.Precision(normalization=lp.Int(8)), "normalization", "'normalization' cannot be set"),
    ],
)
def test_bits_that_would_not_be_followed_are_refused(precision, operand, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    lp.lower(model, precision)
    x = torch.randn(2, 4)
    before = model(x)
    with pytest.raises(ValueError, match=message):
        lp.set_bits(model, {operand: 4})
    assert lp.precision_state(model) == {} and torch.equal(model(x), before)
