"""ThiNet (Luo, Wu and Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017).

Train dense. Then layer by layer, from the input on: drop the channels whose absence the next layer's output notices
least on sampled images, rescale those that stay by least squares, and fine-tune shortly. At the end fine-tune. Passes,
samples and least squares are charged, as a search.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings, ThinetSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome
from lowprec_eb.retraining import FINE_TUNING


def thinet(lab: Lab, arm: ArmSettings) -> Outcome:
    how = arm.thinet or ThinetSettings()
    stages = [lab.train(lab.initial(), "train", arm.precision)]
    start = lab.retrained_from(stages[0], FINE_TUNING)
    for layer in lab.reconstructable:
        trained = sum(stage.state.epoch for stage in stages)
        start, ticket = lab.reconstruct(start, layer, arm.precision, how, epoch=trained)
        if how.layer_epochs:
            shortly = lab.between_layers(how.layer_epochs)
            stages.append(lab.train(start, "retrain", arm.precision, retraining=FINE_TUNING, training=shortly))
            start = lab.retrained_from(stages[-1], FINE_TUNING)
    schedule = lab.schedule(how.epochs, how.learning_rate)
    stages.append(lab.train(start, "retrain", arm.precision, retraining=FINE_TUNING, training=schedule))
    return lab.outcome(arm, stages, ticket, retraining=FINE_TUNING)
