"""The control for a ticket: the same search, widths, weights and schedule, but channels chosen at random.

What an early-bird ticket gains over this arm is what its choice of channels is worth. The search is charged here too,
since the widths come from it: the two arms cost the same, and only the mask differs.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def random_ticket(lab: Lab, arm: ArmSettings) -> Outcome:
    search = lab.train(lab.initial(), "search", arm.search, sparsity=lab.tickets.sparsity, detect=True)
    assert search.ticket is not None
    ticket = lab.randomize(search.ticket)
    small = lab.prune(lab.retrained_from(search, arm.retraining), ticket)
    final = lab.train(small, "retrain", arm.precision, retraining=arm.retraining)
    return lab.outcome(arm, [search, final], ticket, retraining=arm.retraining)
