"""Early-bird training (You et al., "Drawing Early-Bird Tickets", ICLR 2020, algorithm 1).

Search: train with an L1 penalty on the BatchNorm scales; after each epoch draw the channel mask of the largest scales;
stop when it has settled. Then prune, and train only the ticket: with which weights, momentum and penalty, and from
where in the schedule, the arm says (:class:`lowprec_eb.retraining.Retraining`). With the search in 8 bits and the rest
in full precision this is the paper's LF, with both in 8 bits its LL, with none its FF.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def early_bird(lab: Lab, arm: ArmSettings) -> Outcome:
    search = lab.train(lab.initial(), "search", arm.search, sparsity=lab.tickets.sparsity, detect=True)
    ticket = search.ticket
    assert ticket is not None  # a search ends with one, on time or at its deadline
    small = lab.prune(lab.retrained_from(search, arm.retraining), ticket)
    final = lab.train(small, "retrain", arm.precision, retraining=arm.retraining)
    return lab.outcome(arm, [search, final], ticket, retraining=arm.retraining)
