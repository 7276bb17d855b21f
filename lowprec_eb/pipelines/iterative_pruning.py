"""Iterative channel pruning: train, then prune a little and fine-tune, again and again.

The loop of Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015, section 3,
with the channels and scores of Liu et al., ICCV 2017, whose section 3 calls it the multi-pass scheme: train with an L1
penalty on the BatchNorm scales, drop the channels with the smallest, and repeat. The last round is fine-tuned without
the penalty, so that one round is network slimming. Molchanov et al., ICLR 2017, drop single channels by another score.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings, IterativeSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome
from lowprec_eb.retraining import FINE_TUNING, Retraining

_PENALISED = Retraining("inherit", "restart", "new", penalty=True)


def iterative_pruning(lab: Lab, arm: ArmSettings) -> Outcome:
    how = arm.iterative or IterativeSettings()
    schedule = lab.schedule(how.epochs, how.learning_rate)
    stages = [lab.train(lab.initial(), "train", arm.precision, sparsity=lab.tickets.sparsity)]
    for left in how.shares(lab.tickets.ratio):
        trained = sum(stage.state.epoch for stage in stages)
        ticket = lab.draw(stages[-1], arm.precision, left=left, epoch=trained)
        retraining = _PENALISED if len(stages) < how.steps else FINE_TUNING
        small = lab.prune(lab.retrained_from(stages[-1], retraining), ticket)
        stages.append(lab.train(small, "retrain", arm.precision, retraining=retraining, training=schedule))
    return lab.outcome(arm, stages, ticket, retraining=FINE_TUNING)
