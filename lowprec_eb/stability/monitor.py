"""The monitor of a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowprec_eb.instability import Diverged, Instability, Response
from lowprec_eb.lowering import lower as lower_model
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.reference import RefusedNaN
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.stability.locate import Place, RandomState, first_nonfinite
from lowprec_eb.stability.norms import Judged, Levels, Slot, after_step, before_step, first_bad, trained
from lowprec_eb.stability.settings import StabilitySettings
from lowprec_eb.stability.snapshot import Snapshot
from lowprec_eb.trace import plain_name

_ADVICE = "lower the learning rate, raise the precision, or set on_unstable to skip or raise_precision"
_ADVICE_SKIPPING = "lower the learning rate, train in a higher precision, or raise max_skips"


class _Pending(NamedTuple):
    """A step that the host has not looked at."""

    step: int
    judged: tuple[Judged, Judged]
    bad: Tensor


class StabilityMonitor:
    """Takes the optimizer's steps, and tells at once when a number is NaN, infinite or exploding.

        for images, labels in batches:
            def closure():
                optimizer.zero_grad()
                loss = loss_of(model(images), labels)
                loss.backward()
                return loss
            monitor.step(closure)
        monitor.check()

    After each backward pass the loss and every gradient, after each step the optimizer's state and every weight are
    judged by their L2 norms in float32: bad is what is not finite, and what explodes: a norm above
    ``settings.explode_factor`` times the largest running mean (over about 100 steps) that the norm of its operand over
    all layers has had so far, or above ``settings.explode_above``. State other than momentum must only be finite.

    Nothing waits for a GPU but every ``settings.period`` steps, and where a step makes new state, as the first one
    does. With a period of 1 a bad batch is replayed at once, to find the first layer and operand that was not finite;
    so ``closure`` may run twice, with the same random numbers. With a longer one what is known is the loss, or which
    layer's gradient, momentum or master.

    A skipped step leaves parameters, optimizer state, buffers and running ranges bit for bit as they were; the random
    numbers of its forward pass are used up. With a period above 1 a ``LowPrecisionOptimizer`` also goes on to the next
    seeds of its stochastic rounding.

    Args:
        model: all that the optimizer trains.
        optimizer: any torch optimizer; ``step`` takes no closure.
        settings: what counts as unstable and what happens then; by default training stops.
        raise_to: the precision that ``settings.raise_to`` names, where it is no recipe's name.
        lower: puts a precision into the model in place, as :func:`lowprec_eb.lower` does with its defaults.

    Raises:
        ValueError: a parameter of the optimizer is not the model's; ``raise_to`` is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: StabilitySettings | None = None,
        *,
        raise_to: Precision | None = None,
        lower: Callable[[nn.Module, Precision], Any] = lower_model,
    ) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings or StabilitySettings()
        self.parameters = trained(model, optimizer)
        if not self.parameters:
            raise ValueError("the optimizer trains nothing: no parameter of its groups requires a gradient")
        self.device = next(iter(self.parameters.values())).device
        self.period = self.settings.period(self.device)
        wanted = self.settings.raise_to if raise_to is None else raise_to
        self.raise_to = None if wanted is None else named_precision(wanted)
        self.levels = Levels(self.device, self.settings.explode_factor, self.settings.explode_above)
        self.snapshot = Snapshot(model, optimizer) if self.settings.undoes else None
        self.events: list[Instability] = []
        self.epoch = self.steps = self.skipped = self.skips_in_row = 0
        self.raised = False
        self.accepted = torch.ones((), dtype=torch.bool, device=self.device)
        self._lower, self._pending = lower, list[_Pending]()

    def begin_epoch(self, epoch: int) -> None:
        """Steps count from 0 again; optional in a loop of one's own."""
        self.check()
        self.epoch, self.steps = epoch, 0

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Run ``closure`` (zero the gradients, compute the loss, run backward, return the loss) and step.

        Returns the loss; ``accepted`` (0-d bool, on the device) tells whether the step was a good one.

        Raises:
            Diverged: a bad step under ``on_unstable="stop"``, or more than ``max_skips`` bad ones in a row.
        """
        if self.snapshot is not None:
            self.snapshot.before_forward()
        random = RandomState(self.model)
        try:
            loss = closure()
        except RefusedNaN:
            self.check()
            loss = torch.full((), math.nan, device=self.device)
            self._refuse(_described(Slot("loss", ""), math.nan, self.epoch, self.steps, "stop"), closure, random)
        else:
            if self.period == 1:
                self._seen_step(loss, closure, random)
            else:
                self._unseen_step(loss)
        return loss

    def check(self) -> None:
        """Look at the steps since the last look, and respond; raises as :meth:`step` does."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        for item, bad in zip(pending, torch.stack([item.bad for item in pending]).tolist(), strict=True):
            self._settle(self._event(item.step, *item.judged) if bad else None)

    # A step that the host looks at ---------------------------------------------------------------------------------

    def _seen_step(self, loss: Tensor, closure: Callable[[], Tensor], random: RandomState) -> None:
        front = self.levels.judge(*before_step(loss, self.parameters))
        if bool(front.flags.any()):
            self._refuse(self._event(self.steps, front), closure, random)
            return
        event = self._taken(self.steps, front)
        self.steps += 1
        self.accepted = torch.tensor(event is None, device=self.device)
        self._settle(event)

    def _refuse(self, event: Instability, closure: Callable[[], Tensor], random: RandomState) -> None:
        """A step that is not taken, as the host knows before."""
        self.steps += 1
        self.accepted = torch.tensor(False, device=self.device)
        self._settle(self._located(event, closure, random))

    def _taken(self, number: int, front: Judged) -> Instability | None:
        if self.snapshot is not None:
            self.snapshot.before_step()
        refused = self._refused_by_optimizer()
        back = self.levels.judge(*after_step(self.parameters, self.optimizer))
        if refused is not None and not bool(back.flags.any()):
            raise refused
        if not bool(back.flags.any()):
            self.levels.follow(front.whole + back.whole, torch.tensor(True, device=self.device))
            return None
        if self.snapshot is not None:
            self.snapshot.undo()
        return self._event(number, back)

    def _refused_by_optimizer(self) -> RefusedNaN | None:
        """Step. A NaN that a format of the optimizer refuses to round is judged like any other; this is its error."""
        try:
            self.optimizer.step()
        except RefusedNaN as error:
            return error
        return None

    def _located(self, event: Instability, closure: Callable[[], Tensor], random: RandomState) -> Instability:
        """The event with the place where the batch went bad, if a replay shows one."""
        if self.snapshot is not None:
            self.snapshot.undo_forward()
        place: Place | None = None
        if event.kind != "exploding":
            place = first_nonfinite(self.model, closure, random)
            if self.snapshot is not None:
                self.snapshot.undo_forward()
        if place is None:
            return event
        layer, operand, parameter, value = place
        kind = _kind(value)
        return replace(event, layer=layer, operand=operand, parameter=parameter, kind=kind, value=value)

    # A step that it does not ---------------------------------------------------------------------------------------

    def _unseen_step(self, loss: Tensor) -> None:
        front = self.levels.judge(*before_step(loss, self.parameters))
        if self.snapshot is not None:
            self.snapshot.before_step()
            self.snapshot.check_undoable_unseen(self.device)
        refused = self._refused_by_optimizer()
        back = self.levels.judge(*after_step(self.parameters, self.optimizer))
        bad = front.flags.any() | back.flags.any()
        if refused is not None and not bool(bad):
            raise refused
        self.levels.follow(front.whole + back.whole, ~bad)
        self.accepted = ~bad
        self._pending.append(_Pending(self.steps, (front, back), bad))
        self.steps += 1
        if self.snapshot is not None:
            if refused is None and not self.snapshot.has_new():
                self.snapshot.undo_where(bad)
            elif bool(bad):
                self.snapshot.undo()
        if refused is not None or len(self._pending) >= self.period:
            self.check()

    # What then happens ---------------------------------------------------------------------------------------------

    def _event(self, step: int, *judged: Judged) -> Instability:
        slots = [slot for part in judged for slot in part.slots]
        norms = [norm for part in judged for norm in part.norms.tolist()]
        flags = [flag for part in judged for flag in part.flags.tolist()]
        slot, value = first_bad(slots, norms, flags)
        return _described(slot, value, self.epoch, step, self._response())

    def _response(self) -> Response:
        """What would be done now: in the precision that training was raised to, bad steps are skipped."""
        return "skip" if self.raised else self.settings.on_unstable

    def _settle(self, event: Instability | None) -> None:
        if event is None:
            self.skips_in_row = 0
            return
        event = replace(event, response=self._response())
        self.skips_in_row += 1
        stops = event.response == "stop" or self.skips_in_row > self.settings.max_skips
        self.events.append(replace(event, response="stop") if stops else event)
        if stops:
            repeated = f"{self.skips_in_row} steps in a row could not be taken; {_ADVICE_SKIPPING}"
            raise Diverged(self.events[-1], _ADVICE if event.response == "stop" else repeated)
        self.skipped += 1
        if event.response == "raise_precision":
            self.raise_precision()

    def raise_precision(self) -> None:
        """Go on in ``raise_to``: the layers are lowered anew, and the optimizer's formats change too."""
        if self.raise_to is None:
            raise ValueError("no precision to go on in: on_unstable is not raise_precision")
        self._lower(self.model, self.raise_to)
        if isinstance(self.optimizer, LowPrecisionOptimizer):
            self.optimizer.precision = self.raise_to
            self.optimizer.round_weights()
        self.raised = True

    # State ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What must be saved beside model and optimizer for a resumed run to equal the uninterrupted one."""
        self.check()
        numbers = ("epoch", "steps", "skipped", "skips_in_row", "raised")
        return {"levels": self.levels.state_dict(), **{name: getattr(self, name) for name in numbers}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """To be called before model and optimizer load theirs: it raises the precision where that had been done."""
        if state["raised"] and not self.raised:
            self.raise_precision()
        self.levels.load_state_dict(state["levels"])
        for name in ("epoch", "steps", "skipped", "skips_in_row", "raised"):
            setattr(self, name, state[name])


def _described(slot: Slot, value: float, epoch: int, step: int, response: Response) -> Instability:
    name = plain_name(slot.name)
    layer, _, _ = name.rpartition(".")
    return Instability(epoch, step, layer, slot.operand, name, _kind(value), value, response)


def _kind(value: float) -> Any:
    return "nan" if math.isnan(value) else "inf" if math.isinf(value) else "exploding"
