"""What the steps of an epoch cost, each in the precision in which it was done."""

from __future__ import annotations

import time
from collections.abc import Callable

from lowprec_eb.costs import EpochCosts, Work
from lowprec_eb.instability import to_text
from lowprec_eb.stability import StabilityMonitor


class Tally:
    """Counts an epoch's batches by size and precision, and the updates of a weight average by precision: it may be
    raised between two steps.

    Args:
        count: the costs in the precision that is in force when it is called.
    """

    def __init__(self, count: Callable[[], EpochCosts], monitor: StabilityMonitor | None) -> None:
        self.monitor, self._count = monitor, count
        self._costs: dict[bool, EpochCosts] = {}  # before and after the precision was raised
        self._batches: dict[bool, dict[int, int]] = {False: {}, True: {}}
        self._updates: dict[bool, int] = {False: 0, True: 0}
        self._began_s = 0.0

    def begin_epoch(self) -> None:
        self._at(self._raised)  # counted as the model stands now
        self._batches, self._updates = {False: {}, True: {}}, {False: 0, True: 0}
        self._began_s = time.perf_counter()

    @property
    def _raised(self) -> bool:
        return self.monitor is not None and self.monitor.raised

    def add(self, samples: int) -> None:
        """A step on ``samples`` examples begins; if it raises the precision, it was itself done in the old one."""
        batches = self._batches[self._raised]
        batches[samples] = batches.get(samples, 0) + 1

    def add_update(self) -> None:
        """A weight average took the weights: after a step that raised the precision, those of the new one."""
        self._updates[self._raised] += 1

    @property
    def costs(self) -> EpochCosts:
        """Of the precision in force."""
        return self._at(self._raised)

    def _at(self, raised: bool) -> EpochCosts:
        """Of the precision in force, or of that before it was raised, which has been counted."""
        if raised == self._raised and raised not in self._costs:
            self._costs[raised] = self._count()
        return self._costs[raised]

    def train_costs(self) -> Work:
        """The steps of this epoch."""
        return [
            (self._at(raised).train_batch[size], times)
            for raised, of in self._batches.items()
            for size, times in of.items()
        ]

    def average_costs(self) -> Work:
        """This epoch's updates of a weight average."""
        work = []
        for raised, times in self._updates.items():
            if times:
                costs = self._at(raised).average
                assert costs is not None
                work.append((costs.update, times))
        return work

    def samples(self) -> int:
        return sum(size * times for of in self._batches.values() for size, times in of.items())

    def steps(self) -> int:
        """Taken in this epoch."""
        return sum(times for of in self._batches.values() for times in of.values())

    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self._began_s

    def metrics(self, epoch: int) -> dict[str, float | str | None]:
        """For the ledger row of an epoch: what the monitor saw, and the precision in force if it was raised."""
        events = [] if self.monitor is None else [event for event in self.monitor.events if event.epoch == epoch]
        metrics: dict[str, float | str | None] = {}
        if events:
            metrics["skipped_steps"] = sum(event.response != "stop" for event in events)
            metrics["instabilities"] = to_text(events)
        if self._raised:
            assert self.monitor is not None and self.monitor.raise_to is not None
            metrics["precision"] = self.monitor.raise_to.name
            if self._batches[False]:
                metrics["raised_after_steps"] = sum(self._batches[False].values())
        return metrics
