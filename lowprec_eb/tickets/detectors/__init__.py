"""Detectors: when the mask of a model in training has settled."""

from lowprec_eb.tickets.detectors.rules import DETECTORS, Detector, Look, RuleName
from lowprec_eb.tickets.detectors.settings import Normalisation, TicketSettings
from lowprec_eb.tickets.detectors.watch import Watch

__all__ = ["DETECTORS", "Detector", "Look", "Normalisation", "RuleName", "TicketSettings", "Watch"]
