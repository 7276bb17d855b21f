"""What all arms of a comparison have in common, as a lab needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lowprec_eb.arms import ArmSettings
from lowprec_eb.models import ModelSettings
from lowprec_eb.precision import Precision
from lowprec_eb.tasks import TaskSettings
from lowprec_eb.tickets import TicketSettings
from lowprec_eb.tickets.detectors import DETECTORS
from lowprec_eb.train import TrainSettings


@dataclass(frozen=True)
class LabSettings:
    """What all arms of a comparison have in common; ``precisions`` are names beside those of the recipes.

    rewind_epochs: which states of a search some arm is rewound to; every search keeps them. sweeps: whether arms have
    ratios of their own.
    """

    task: TaskSettings
    model: ModelSettings
    training: TrainSettings
    ticket: TicketSettings
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    rewind_epochs: tuple[int, ...] = ()
    sweeps: bool = False

    def of_arm(self, arm: ArmSettings) -> LabSettings:
        """The same without averaging, for an arm that is to have none, and with the ratio of the arm."""
        found = self if arm.averaging else replace(self, training=replace(self.training, averaging=None))
        return found if arm.ratio is None else replace(found, ticket=replace(found.ticket, ratio=arm.ratio, also=()))

    def check_rewinds(self, steps_per_epoch: int) -> None:
        """Raise ValueError where a search may end before an epoch that an arm is rewound to: no ticket appears before
        its rule has seen enough."""
        ticket = self.ticket
        looks = DETECTORS[ticket.rule](ticket.window).memory
        first = looks if ticket.check_every is None else looks * ticket.check_every // steps_per_epoch
        if late := [epoch for epoch in self.rewind_epochs if epoch > first]:
            raise ValueError(
                f"rewind_epoch ({late[0]}) must be at most {first}: a ticket may appear after so many epochs, and a "
                f"search that has ended has no later state (rule {ticket.rule!r}, window {ticket.window})"
            )
