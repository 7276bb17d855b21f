"""Early-bird training (You et al., "Drawing Early-Bird Tickets", ICLR 2020, algorithm 1).

Search: train with an L1 penalty on the BatchNorm scales; after each epoch draw the channel mask of the largest scales;
stop when it has settled. Then prune, and train only the ticket. With the search in 8 bits and the rest in full
precision this is the paper's LF, with both in 8 bits its LL, with none its FF.
"""

from __future__ import annotations

from lowprec_eb.lab import ArmSettings, Lab
from lowprec_eb.outcome import Outcome


def early_bird(lab: Lab, arm: ArmSettings) -> Outcome:
    search = lab.train(lab.initial(), "search", arm.search, sparsity=lab.tickets.sparsity, detect=True)
    ticket = search.ticket
    assert ticket is not None  # a search ends with one, on time or at its deadline
    # "inherit" goes on with the schedule at the epoch of the ticket; "reinit" trains new weights over all of it.
    start = search.state if arm.weights == "inherit" else lab.fresh()
    final = lab.train(lab.prune(start, ticket), "retrain", arm.precision)
    return lab.outcome(arm, [search, final], ticket)
