"""The one-shot lottery ticket (Frankle and Carbin 2019, section 1, with one round; channels as in You et al. 2020).

Train dense (the gamma penalty makes the scales rank the channels), prune, rewind the surviving weights to their initial
values, retrain over the whole schedule.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome
from lowprec_eb.retraining import LOTTERY


def one_shot_ticket(lab: Lab, arm: ArmSettings) -> Outcome:
    dense = lab.train(lab.initial(), "train", arm.precision, sparsity=lab.tickets.sparsity)
    ticket = lab.draw(dense, arm.precision)
    rewound = lab.prune(lab.retrained_from(dense, LOTTERY), ticket)
    final = lab.train(rewound, "retrain", arm.precision, retraining=LOTTERY)
    return lab.outcome(arm, [dense, final], ticket, retraining=LOTTERY)
