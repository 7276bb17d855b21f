"""A ticket from somebody's own training loop: search, compaction, and what it saves, in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer

from energy_models import HardwareProfile
from lowprec_eb.draw_checks import (
    Groups,
    TrainOneEpoch,
    called_with_epoch,
    chosen_precision,
    chosen_profile,
    chosen_scorer,
    found_groups,
    trial_compaction,
)
from lowprec_eb.draw_search import Search, lowered
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.tickets import (
    Budget,
    BudgetSearch,
    ChannelGroups,
    DrawnTicket,
    EarlyBird,
    ScoreHistory,
    Ticket,
    TicketSettings,
)
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.detectors import Normalisation, RuleName
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.scores import Random, ScoreName, Scorer


class CutError(RuntimeError):
    """A ticket was drawn, and the model could not be cut down to it; ``__cause__`` says why.

    Nothing that was trained for is lost: the model keeps its weights, and ``lp.compact(model, error.ticket, inputs)``
    cuts it once the cause is gone.

    Args:
        ticket: as it was drawn; of ``ratio``, where the budget was not met.
        history: the scores of every look.
        drawn: the smaller model, where only the optimizer could not follow.
    """

    def __init__(self, ticket: Ticket, history: ScoreHistory, drawn: DrawnTicket | None, cause: Exception) -> None:
        after = "the optimizer could not be moved to the smaller model" if drawn else "the model could not be cut"
        super().__init__(
            f"the ticket of epoch {ticket.epoch} was drawn, and {after} ({type(cause).__name__}: {cause}). The ticket "
            "and its scores are this error's .ticket and .history"
        )
        self.ticket, self.history, self.drawn = ticket, history, drawn


def draw_ticket(
    model: nn.Module,
    train_one_epoch: TrainOneEpoch,
    example_inputs: Inputs,
    *,
    ratio: float = 0.5,
    groups: Groups = None,
    score: ScoreName | Scorer = "gamma",
    budget: Budget | None = None,
    rule: RuleName = "window",
    threshold: float = 0.1,
    window: int = 5,
    normalised: Normalisation | None = None,
    score_momentum: float = 0.0,
    max_epochs: int = 20,
    optimizer: Optimizer | None = None,
    sparsity: float = 0.0,
    loss: Callable[[nn.Module], Tensor] | None = None,
    precision: str | Precision | None = None,
    profile: str | HardwareProfile = "45nm",
) -> DrawnTicket:
    """Train ``model`` until its ticket appears, and cut it down to that.

    Before the search the model is compacted on trial, so that what cannot work is known before it is paid for. A look
    is taken after each epoch; for looks inside one use :class:`lowprec_eb.EarlyBird` in the loop itself.

    Args:
        model: is trained in place by ``train_one_epoch``, and keeps its size.
        train_one_epoch: called as ``train_one_epoch(model)``, or with ``epoch=`` (0, 1, ...) too if it has a parameter
            of that name. It trains this very model for one epoch; what it returns is not looked at.
        example_inputs: one batch as in training, or the model's positional or keyword arguments. Savings are of it.
        ratio: the share of channels to drop; with a ``budget`` only that of the masks which the detector watches.
        groups: None, one per BatchNorm2d as in You et al. 2020; ``"coupled"``, or :func:`lowprec_eb.channel_groups`
            of the model.
        score: a name in ``lowprec_eb.tickets.SCORES``, or a function model -> scores by group, each (channels,).
            ``"taylor"`` reads the gradients that an epoch leaves behind, so the loop must not clear them at its end.
        budget: the ticket that is taken meets it, drawn from the scores of the look that settled; None: the channels
            of ``ratio``.
        rule, threshold, window, normalised, score_momentum: of :class:`lowprec_eb.EarlyBird`.
        max_epochs: where no ticket has appeared by then the most settled mask is taken, with a warning.
        optimizer: the one that trains the model. It goes on with the smaller one, in place: parameter groups,
            schedules that hold it, momentum. None: make a new one for the smaller model.
        sparsity: s of the L1 penalty s * |gamma| on BatchNorm scales (Liu et al. 2017), added to the gradients at
            each step of ``optimizer``, which it needs. 0: none.
        loss: model -> scalar over one batch, which the score ``"gradient_flow"`` needs.
        precision: lower the model to it for the search, and raise it again afterwards, so that both models come back
            plain; a plain optimizer then keeps float32 weights, a :class:`lowprec_eb.LowPrecisionOptimizer` rounds
            them. Energy is modelled in it. None: the model is trained as it is, lowered or not.
        profile: of the hardware whose energy is modelled: a name, a file, or the profile itself.

    Raises:
        BudgetError: no ticket meets the budget; known before the search.
        TypeError: an argument is of another kind.
        ValueError: nothing can be pruned; the model does not take ``example_inputs``; a setting is out of range;
            ``train_one_epoch`` takes something else, or has changed no parameter in the first two epochs; the optimizer
            is not of this model, or its state cannot be cut.
        NaNScores: the training has diverged.
        CutError: the ticket is there, and what follows has failed: a budget that only just could be met, the check of
            the smaller model, the optimizer's move. It has the ticket and the scores.
    """
    settings = TicketSettings(
        ratio, sparsity, threshold, window, rule, normalised=normalised, score_momentum=score_momentum
    )
    loop = called_with_epoch(train_one_epoch)
    found = found_groups(model, example_inputs, groups)
    scores = chosen_scorer(model, score, found, example_inputs, loss)
    detector = EarlyBird.from_settings(settings, scores, None if groups is None else tuple(found))
    trial = trial_compaction(model, found, detector, example_inputs)
    search = Search(model, loop, settings, detector, trial, optimizer, max_epochs)
    cut = _Cut(model, example_inputs, found, detector, budget, optimizer, precision, profile)
    with lowered(model, cut.chosen):
        cut.check_budget()
        ticket, history = search.run()
    return cut.make(ticket, history)


class _Cut:
    """What becomes of the ticket: checked before the search, made after it."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        found: ChannelGroups,
        detector: EarlyBird,
        budget: Budget | None,
        optimizer: Optimizer | None,
        precision: str | Precision | None,
        profile: str | HardwareProfile,
    ) -> None:
        if not isinstance(budget, Budget | None):
            raise TypeError(f"budget must be a Budget(kind, ratio) or None, got {budget!r}: Budget('flops', 0.5)")
        self.model, self.example_inputs, self.found, self.detector = model, example_inputs, found, detector
        self.budget, self.optimizer = budget, optimizer
        self.chosen = chosen_precision(model, precision)
        self.profile = chosen_profile(profile)
        self.budgets: BudgetSearch | None = None

    def check_budget(self) -> None:
        """Raise BudgetError if no ticket of random scores meets the budget; the model is as in the search."""
        if self.budget is None:
            return
        groups = self.detector.groups
        self.budgets = BudgetSearch(self.model, self.budget, self.example_inputs, groups)
        self.budgets.draw(Random(groups=groups)(self.model))

    def make(self, ticket: Ticket, history: ScoreHistory) -> DrawnTicket:
        drawn = None
        try:
            drawn = self._drawn(self._budgeted(ticket, history), history)
            if self.optimizer is not None:
                drawn.compaction.move_optimizer(self.optimizer, self.model, drawn.model)
        except Exception as error:  # whatever it is, what was trained for is handed over
            raise CutError(ticket if drawn is None else drawn.ticket, history, drawn, error) from error
        return drawn

    def _budgeted(self, ticket: Ticket, history: ScoreHistory) -> Ticket:
        """The ticket with the masks that meet the budget, drawn from the scores that it was drawn from."""
        if self.budgets is not None:
            scores = _scores_of(history, ticket.epoch, self.detector.score_momentum)
            met = self.budgets.draw(scores).ticket
            ticket = replace(ticket, masks=met.masks, ratio=met.ratio)
        return replace(ticket, precision=self._precision_name)

    def _drawn(self, ticket: Ticket, history: ScoreHistory) -> DrawnTicket:
        return DrawnTicket.of(
            ticket,
            self.model,
            self.example_inputs,
            unprunable=self.found.unprunable,
            history=history,
            profile=self.profile,
            precision=self.chosen,
        )

    @property
    def _precision_name(self) -> str | None:
        """What is noted on the ticket."""
        if self.chosen is not None:
            return self.chosen.name
        return self.optimizer.precision.name if isinstance(self.optimizer, LowPrecisionOptimizer) else None


def _scores_of(history: ScoreHistory, epoch: int, momentum: float) -> dict[str, Tensor]:
    """By group, the moving average of the scores that a look after ``epoch`` saw."""
    average = history.scores[0]
    for scores in history.scores[1:epoch]:
        average = average * momentum + scores * (1 - momentum)
    return Layout(history.names, history.widths).split(average)
