"""Stability detection: NaN, infinite and exploding numbers, found cheaply, and what is done about them."""

from lowprec_eb.instability import Diverged, Instability
from lowprec_eb.stability.monitor import StabilityMonitor
from lowprec_eb.stability.settings import StabilitySettings

__all__ = ["Diverged", "Instability", "StabilityMonitor", "StabilitySettings"]
