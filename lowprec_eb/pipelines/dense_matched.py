"""The control for a cost: the dense model, trained for as many epochs as cost what another arm does.

The schedule is the comparison's, scaled to these epochs, so that all drops of the learning rate happen. The other arm's
stages tell what it cost; they are charged to that arm alone.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def dense_matched(lab: Lab, arm: ArmSettings) -> Outcome:
    assert arm.match is not None
    epochs, target = lab.matched(arm.match, arm.precision)
    dense = lab.train(lab.initial(), "train", arm.precision, training=lab.schedule(epochs))
    return lab.outcome(arm, [dense], target=target)
