"""The settings of stability detection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lowprec_eb.instability import Response

_EVERY_ON_DEVICES = 20  # one wait for a device in 20 steps is not felt


@dataclass(frozen=True)
class StabilitySettings:
    """What counts as unstable, when the host looks, and what happens then.

    on_unstable: ``"stop"`` raises; ``"skip"`` leaves parameters, optimizer state and buffers as they were before the
    step; ``"raise_precision"`` skips it too, and training goes on in the recipe ``raise_to``; what is unstable even
    there is skipped. check_every: steps between two looks of the host; None is 1 on the CPU, where a look waits for
    nothing and every bad step can be replayed, and 20 elsewhere. explode_factor: a loss or a norm that is larger by
    this factor than is usual counts as exploding (see :class:`lowprec_eb.StabilityMonitor`). explode_above: an absolute
    bound as well. max_skips: more skipped steps in a row than that stop the training.
    """

    on_unstable: Response = "stop"
    raise_to: str | None = None
    check_every: int | None = None
    explode_factor: float = 1000.0
    explode_above: float | None = None
    max_skips: int = 10

    def __post_init__(self) -> None:
        if (self.on_unstable == "raise_precision") != (self.raise_to is not None):
            raise ValueError(
                "raise_to names the precision of on_unstable: raise_precision; give both or neither, got "
                f"on_unstable {self.on_unstable!r} and raise_to {self.raise_to!r}"
            )
        if self.check_every is not None and self.check_every < 1:
            raise ValueError(f"check_every must be at least 1, got {self.check_every}")
        if not 1 < self.explode_factor <= math.inf:
            raise ValueError(f"explode_factor must be above 1, got {self.explode_factor}")
        if self.explode_above is not None and not self.explode_above > 0:
            raise ValueError(f"explode_above must be above 0, got {self.explode_above}")
        if self.max_skips < 1:
            raise ValueError(f"max_skips must be at least 1, got {self.max_skips}")

    @property
    def undoes(self) -> bool:
        """Whether a bad step is taken back."""
        return self.on_unstable != "stop"

    def period(self, device: torch.device) -> int:
        """Steps between two looks of the host."""
        if self.check_every is not None:
            return self.check_every
        return 1 if device.type == "cpu" else _EVERY_ON_DEVICES
