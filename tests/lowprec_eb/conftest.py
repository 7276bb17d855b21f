"""A tiny comparison that runs in seconds."""

import pytest
import torch

from lowprec_eb.arms import ArmSettings
from lowprec_eb.config import Config
from lowprec_eb.models import VGGSettings
from lowprec_eb.tasks import TaskSettings
from lowprec_eb.tickets import TicketSettings
from lowprec_eb.train import TrainSettings


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from two, and a sum must not change with the number of them."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Two seeds of every pipeline on 150 digits."""
    return Config(
        name="tiny",
        task=TaskSettings(max_train=150, max_test=60, batch_size=32),
        model=VGGSettings(widths=(6, "M", 8)),
        training=TrainSettings(epochs=5, learning_rate=0.05),
        ticket=TicketSettings(ratio=0.4, window=2, threshold=0.3, deadline=3),
        seeds=(0, 1),
        pipelines=(
            ArmSettings("full fp32", "full"),
            ArmSettings("slimming fp32", "network_slimming"),
            ArmSettings("one-shot", "one_shot_ticket"),
            ArmSettings("FF", "early_bird"),
            ArmSettings("LF", "early_bird", search_precision="bfp8"),
            ArmSettings("LL", "early_bird", precision="bfp8"),
            ArmSettings("LL re-init", "early_bird", precision="bfp8", weights="reinit"),
            ArmSettings("random 8 bit", "random_ticket", precision="bfp8"),
        ),
    )
