"""The early-bird search (You et al., "Drawing Early-Bird Tickets", ICLR 2020): when a ticket is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb.tickets.detectors import DETECTORS, Normalisation, RuleName, TicketSettings, Watch
from lowprec_eb.tickets.detectors.watch import Candidate
from lowprec_eb.tickets.importance import gamma_scores
from lowprec_eb.tickets.masks import Layout, check_finite, flatten, rank
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.scores import Scorer, Scores
from lowprec_eb.tickets.ticket import Ticket


class _Search:
    """Scores, their moving average and one watch a ratio."""

    def __init__(
        self,
        ratios: Sequence[float],
        threshold: float,
        window: int,
        rule: RuleName,
        groups: Sequence[ChannelGroup] | None,
        scorer: Scorer | None,
        normalised: Normalisation | None,
        score_momentum: float,
    ) -> None:
        for ratio in ratios:  # the same checks
            TicketSettings(
                ratio=ratio,
                threshold=threshold,
                window=window,
                rule=rule,
                normalised=normalised,
                score_momentum=score_momentum,
            )
        if groups is not None and scorer is None:
            raise ValueError("groups need a scorer= that gives the scores of each group by its name")
        self.threshold, self.window, self.rule, self.normalised = threshold, window, rule, normalised
        self.groups, self.scorer, self.score_momentum = groups, scorer or gamma_scores, score_momentum
        self.epoch = 0  # of the last look
        self.looked = 0  # how often
        self.scores: Tensor | None = None  # of the last look, on their device (channels,)
        self.layout: Layout | None = None
        self._average: Tensor | None = None
        detector = DETECTORS[rule](window)
        self._watches = [Watch(ratio, detector, threshold, normalised) for ratio in ratios]
        self._warn_of_thresholds()

    def _warn_of_thresholds(self) -> None:
        if self.normalised is not None or not DETECTORS[self.rule].uses_masks:
            return
        for watch in self._watches:
            farthest = 2 * min(watch.ratio, 1 - watch.ratio)
            if farthest <= self.threshold:
                warnings.warn(
                    f"two masks of ratio {watch.ratio} differ in at most {farthest:g} of their channels, so a "
                    f"threshold of {self.threshold:g} says nothing: lower it, or use normalised='layer'",
                    stacklevel=4,
                )

    def _look(
        self, scores: Scores, watches: Sequence[Watch], precision: str | None, epoch: int | None
    ) -> dict[float, Candidate]:
        """One look at ``scores``; what fired, by ratio. It waits for the device once."""
        self._take(scores)
        self.looked += 1
        self.epoch = self.looked if epoch is None else epoch
        assert self._average is not None and self.layout is not None
        values, order = rank(self._average, self.layout)
        parts = [watch.compare(order, self.layout) for watch in watches]
        ends = torch.stack([values[0], values[-1]])
        flags = ends.isfinite().all()[None], values[:1] > values[-1:]
        finite, differ, *numbers = torch.cat([*flags, *(t for part in parts for t in part)]).tolist()
        if not finite:
            check_finite(self.layout.split(self._average))  # names the group
        if not differ:  # an untrained state: there is no largest score, and so no mask to compare
            return {}
        fired = {}
        for watch, part in zip(watches, parts, strict=True):
            length = sum(t.numel() for t in part)
            own, numbers = numbers[:length], numbers[length:]
            if (candidate := watch.judge(own, self.layout, self.epoch, precision)) is not None:
                fired[watch.ratio] = candidate
        return fired

    def _take(self, scores: Scores) -> None:
        """Into the moving average. Product and sum are rounded one by one, so that every device gives the same."""
        layout = Layout.of(scores)
        if layout != self.layout:
            self._check_layout(layout)
        self.layout, self.scores = layout, flatten(scores)
        if self._average is None or not self.score_momentum:
            self._average = self.scores
        else:
            kept = self._average.to(self.scores.device) * self.score_momentum
            self._average = kept + self.scores * (1 - self.score_momentum)

    def _check_layout(self, layout: Layout) -> None:
        if self.layout is not None:
            raise ValueError("these scores are of other layers or widths than those of the looks before")
        if self.groups is not None:
            wanted = {group.name: group.channels for group in self.groups}
            if wanted != dict(zip(layout.names, layout.widths, strict=True)):
                raise ValueError(f"the scorer gave scores of {list(layout.names)}, and the groups are {list(wanted)}")

    def _ticket(self, candidate: Candidate, ratio: float) -> Ticket:
        assert self.layout is not None
        masks = self.layout.split(candidate.mask.cpu())
        return Ticket(
            masks,
            ratio,
            candidate.epoch,
            candidate.distances,
            precision=candidate.precision,
            groups=self.groups,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """What decides what the state means."""
        return {
            "class": type(self).__name__,
            "ratios": [watch.ratio for watch in self._watches],
            "rule": self.rule,
            "window": self.window,
            "threshold": self.threshold,
            "normalised": self.normalised,
            "score_momentum": self.score_momentum,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs to go on exactly: settings, queues, distances, the average, the best so far."""
        layout = self.layout
        return {
            "settings": self._settings,
            "epoch": self.epoch,
            "looked": self.looked,
            "layout": None if layout is None else (layout.names, layout.widths),
            "average": self._average if self.score_momentum else None,
            "watches": [watch.state_dict() for watch in self._watches],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` of a search with the same settings gave.

        Raises:
            ValueError: it is of other settings; the message names them.
        """
        theirs = state["settings"]
        if differing := [name for name, value in self._settings.items() if theirs[name] != value]:
            pairs = ", ".join(f"{name} {theirs[name]!r} (here {self._settings[name]!r})" for name in differing)
            raise ValueError(f"this is the state of a search with {pairs}: make the detector with the same settings")
        self.epoch, self.looked, self._average = state["epoch"], state["looked"], state["average"]
        self.layout = None if state["layout"] is None else Layout(*state["layout"])
        for watch, of in zip(self._watches, state["watches"], strict=True):
            watch.load_state_dict(of)


class EarlyBird(_Search):
    """Watches the channel mask of a model in training and says when it has settled.

    The sources disagree on the rule, so all are here by name, see :mod:`lowprec_eb.tickets.detectors.rules`:

    - ``"window"`` (the public code): of the last ``window`` masks, compare the newest with each of the others; a ticket
      when no distance exceeds ``threshold``;
    - ``"consecutive"`` (the paper's algorithm 1): the last ``window`` distances between the masks of consecutive looks;
      a ticket when all are below ``threshold``;
    - ``"single"`` (the paper's text): the newest of these distances alone;
    - ``"pairwise"``: all pairs among the last ``window`` masks; a ticket when no distance exceeds ``threshold``;
    - ``"epi"`` (Shen et al., CVPR 2022): how much the widths of the layers differ, whichever channels they are. Its
      distance is 1 - EPI, so its tau of 0.983 is ``threshold=0.017``.

    Thresholds in use: 0.1 (You et al.), and 0.1 for vision and 0.01 for text (Early Transformers, arXiv 2405.02353).

    Args:
        ratio: share of channels to drop.
        groups: None, one group per BatchNorm as in the paper; else :func:`channel_groups` of the model, for which
            ``scorer`` gives scores by group.
        scorer: model -> scores by layer or group, each (channels,); None: ``|gamma|``.
        normalised: divide each distance by that of two random masks, so that 1 says "as far as by chance" at every
            ratio and ``threshold`` is in units of that. ``"layer"``: masks that keep the same number of channels of
            each layer, the control that a ticket is held against; where some layers keep all or nearly all of theirs it
            asks for more. ``"global"``: masks of the same ratio, 2 p (1 - p). None: the share of channels that differ.
        score_momentum: m of a moving average of the scores, average = m * average + (1 - m) * scores, once a look; it
            begins with the first scores. 0: the newest scores alone. For looks inside an epoch.

    A look at scores that are all equal (an untrained model) is counted, but there is nothing to compare.
    """

    def __init__(
        self,
        ratio: float,
        threshold: float = 0.1,
        window: int = 5,
        rule: RuleName = "window",
        groups: Sequence[ChannelGroup] | None = None,
        *,
        scorer: Scorer | None = None,
        normalised: Normalisation | None = None,
        score_momentum: float = 0.0,
    ) -> None:
        super().__init__((ratio,), threshold, window, rule, groups, scorer, normalised, score_momentum)
        self.ratio = ratio

    @classmethod
    def from_settings(
        cls, settings: TicketSettings, scorer: Scorer | None = None, groups: Sequence[ChannelGroup] | None = None
    ) -> EarlyBird:
        """That of ``settings.ratio``."""
        return cls(settings.ratio, groups=groups, scorer=scorer, **settings.of_detector())

    def update(self, model: nn.Module, precision: str | None = None, *, epoch: int | None = None) -> Ticket | None:
        """Look at the model, once an epoch or more often; the ticket if it has appeared.

        ``precision`` is noted on the ticket, and so is ``epoch``, how many epochs have begun (None: one look is one
        epoch).

        Raises:
            NaNScores: a score is NaN or infinite.
            ValueError: the scores are of other layers than before, or than the groups.
        """
        return self.observe(self.scorer(model), precision, epoch=epoch)

    def observe(self, scores: Scores, precision: str | None = None, *, epoch: int | None = None) -> Ticket | None:
        """:meth:`update` with the scores themselves."""
        fired = self._look(scores, self._watches, precision, epoch)
        return self._ticket(fired[self.ratio], self.ratio) if fired else None

    @property
    def best(self) -> Ticket | None:
        """The most settled mask so far; None before the first look with different scores."""
        best = self._watches[0].best
        return None if best is None else self._ticket(best, self.ratio)

    @property
    def mask(self) -> Tensor | None:
        """The mask of the last look, flat over all layers: bool (channels,), on the scores' device."""
        return self._watches[0].mask

    def distances(self) -> list[float]:
        """The distances that the rule looks at now."""
        return list(self._watches[0].distances())


class EarlyBirds(_Search):
    """:class:`EarlyBird` for several ratios over the same scores: each gets its ticket at its own time.

    ``tickets`` are those drawn so far, by ratio. A ratio that has its ticket is not watched any more.
    """

    def __init__(
        self,
        ratios: Sequence[float],
        threshold: float = 0.1,
        window: int = 5,
        rule: RuleName = "window",
        groups: Sequence[ChannelGroup] | None = None,
        *,
        scorer: Scorer | None = None,
        normalised: Normalisation | None = None,
        score_momentum: float = 0.0,
    ) -> None:
        if not ratios or len(set(ratios)) < len(ratios):
            raise ValueError(f"ratios must be one or more, each once, got {tuple(ratios)}")
        super().__init__(tuple(ratios), threshold, window, rule, groups, scorer, normalised, score_momentum)
        self.tickets: dict[float, Ticket] = {}

    @classmethod
    def from_settings(
        cls, settings: TicketSettings, scorer: Scorer | None = None, groups: Sequence[ChannelGroup] | None = None
    ) -> EarlyBirds:
        return cls(settings.ratios, groups=groups, scorer=scorer, **settings.of_detector())

    @property
    def done(self) -> bool:
        """Whether every ratio has its ticket."""
        return len(self.tickets) == len(self._watches)

    def update(
        self, model: nn.Module, precision: str | None = None, *, epoch: int | None = None
    ) -> dict[float, Ticket]:
        """Look at the model; the tickets that appeared at this look, by ratio. See :meth:`EarlyBird.update`."""
        return self.observe(self.scorer(model), precision, epoch=epoch)

    def observe(self, scores: Scores, precision: str | None = None, *, epoch: int | None = None) -> dict[float, Ticket]:
        """:meth:`update` with the scores themselves."""
        waiting = [watch for watch in self._watches if watch.ratio not in self.tickets]
        fired = self._look(scores, waiting, precision, epoch)
        drawn = {ratio: self._ticket(candidate, ratio) for ratio, candidate in fired.items()}
        self.tickets |= drawn
        return drawn

    def distances(self, ratio: float) -> list[float]:
        """The distances that the rule looks at now, or looked at when the ticket of ``ratio`` was drawn."""
        return list(self._watch(ratio).distances())

    def best(self, ratio: float) -> Ticket | None:
        """The most settled mask so far; None before the first look with different scores."""
        best = self._watch(ratio).best
        return None if best is None else self._ticket(best, ratio)

    def _watch(self, ratio: float) -> Watch:
        return next(watch for watch in self._watches if watch.ratio == ratio)

    def state_dict(self) -> dict[str, Any]:
        tickets = [ticket.to_tree() for ticket in self.tickets.values()]
        return {**super().state_dict(), "tickets": tickets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.tickets = {ticket.ratio: ticket for ticket in map(Ticket.from_tree, state["tickets"])}
