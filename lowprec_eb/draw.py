"""A ticket from somebody's own training loop: search, compaction, and what it saves, in one call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energy_models import HardwareProfile, load_profile
from lowprec_eb.layers import LoweredModule
from lowprec_eb.lowering import lower, raise_
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.tickets import (
    DETECTORS,
    Budget,
    BudgetSearch,
    ChannelGroup,
    ChannelGroups,
    Compaction,
    DrawnTicket,
    EarlyBird,
    NaNScores,
    ScoreHistory,
    Ticket,
    channel_groups,
    keep_uniform,
    plan_compaction,
    scorer,
)
from lowprec_eb.tickets.calls import Inputs, call, plain_copy
from lowprec_eb.tickets.detectors import Normalisation, RuleName
from lowprec_eb.tickets.equality import check_compaction
from lowprec_eb.tickets.graph import BATCH_NORMS
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.score_settings import StandingScore
from lowprec_eb.tickets.scores import Random, ScoreName, Scorer

Groups = Sequence[ChannelGroup] | Literal["coupled"] | None
TrainOneEpoch = Callable[..., Any]


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
        BudgetError: no ticket meets the budget; known before the search, but for budgets that only just can be met.
        ValueError: nothing can be pruned; the model does not take ``example_inputs``; a setting is out of range;
            ``train_one_epoch`` takes something else, or has changed no score in an epoch; the optimizer is not of this
            model, or its state cannot be cut.
        NaNScores: the training has diverged.
    """
    loop = _called_with_epoch(train_one_epoch)
    needed = DETECTORS[rule](window).memory if rule in DETECTORS else 0  # EarlyBird refuses an unknown rule
    if max_epochs < needed:
        raise ValueError(f"max_epochs must be at least {needed}: rule {rule!r} with window {window} cannot fire before")
    chip = load_profile(profile) if isinstance(profile, str) else profile
    chosen = _precision(model, precision)
    found = _groups(model, example_inputs, groups)
    detector = EarlyBird(
        ratio,
        threshold,
        window,
        rule,
        None if groups is None else tuple(found),
        scorer=_scorer(model, score, found, example_inputs, loss),
        normalised=normalised,
        score_momentum=score_momentum,
    )
    trial = _trial(model, found, detector, example_inputs)
    with _lowered(model, chosen):
        cut = None if budget is None else _reachable(model, budget, example_inputs, detector)
        with _penalised(model, optimizer, sparsity):
            ticket, history = _search(model, loop, detector, trial, optimizer, max_epochs)
    if cut is not None:
        met = cut.draw(_scores_of(history, ticket.epoch, score_momentum)).ticket
        ticket = replace(ticket, masks=met.masks, ratio=met.ratio)
    drawn = DrawnTicket.of(
        replace(ticket, precision=_name(chosen, optimizer)),
        model,
        example_inputs,
        unprunable=found.unprunable,
        history=history,
        profile=chip,
        precision=chosen,
    )
    if optimizer is not None:
        drawn.compaction.move_optimizer(optimizer, model, drawn.model)
    return drawn


# ---- before it is paid for ---------------------------------------------------------------------------------------


def _called_with_epoch(train_one_epoch: TrainOneEpoch) -> Callable[[nn.Module, int], Any]:
    """Its one way to be called, whether it has a parameter ``epoch`` or not."""
    parameters = inspect.signature(train_one_epoch).parameters
    keywords = ("epoch",) if "epoch" in parameters else ()
    try:
        inspect.signature(train_one_epoch).bind(None, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ValueError(
            f"train_one_epoch is called as train_one_epoch(model), or with epoch= too; yours takes "
            f"({', '.join(parameters)}): {error}. Wrap it: lambda model: ..."
        ) from error
    return lambda model, epoch: train_one_epoch(model, **dict.fromkeys(keywords, epoch))


def _precision(model: nn.Module, precision: str | Precision | None) -> Precision | None:
    if precision is None:
        return None
    if any(isinstance(module, LoweredModule) for module in model.modules()):
        raise ValueError("the model is lowered already, so leave precision out, or raise the model first (lp.raise_)")
    return named_precision(precision)


def _groups(model: nn.Module, example_inputs: Inputs, groups: Groups) -> ChannelGroups:
    _check_runs(model, example_inputs)
    if isinstance(groups, ChannelGroups):
        found = groups
    elif groups is None or isinstance(groups, str):
        if groups not in (None, "coupled"):
            raise ValueError(f"groups must be None, 'coupled' or channel groups of the model, got {groups!r}")
        found = channel_groups(model, example_inputs, coupled=groups is not None)
    else:
        found = ChannelGroups(tuple(groups), {})
    if found:
        return found
    why = "; ".join(f"{name} {reason}" for name, reason in list(found.unprunable.items())[:3])
    where = "with coupled groups" if groups is not None else "with one group per BatchNorm2d (try groups='coupled')"
    raise ValueError(f"{type(model).__name__} has nothing that can be pruned {where}{f': {why}' if why else ''}")


def _check_runs(model: nn.Module, example_inputs: Any) -> None:
    if isinstance(example_inputs, str) or not isinstance(example_inputs, Tensor | Sequence | Mapping):
        raise ValueError(
            "example_inputs must be a tensor, a sequence of positional arguments or a mapping of keyword arguments, "
            f"not a {type(example_inputs).__name__}"
        )
    try:
        with torch.no_grad():
            call(plain_copy(model), example_inputs)
    except Exception as error:  # the model's own code: anything
        raise ValueError(
            f"{type(model).__name__} fails on example_inputs ({type(error).__name__}: {error}); give one batch as the "
            "training does, on the model's device and without targets"
        ) from error


def _trial(model: nn.Module, found: ChannelGroups, detector: EarlyBird, example_inputs: Inputs) -> Compaction:
    """Drop the ratio of every group: raises what the real compaction would."""
    masks = keep_uniform({group.name: group.channels for group in found}, detector.ratio)
    plan = plan_compaction(model, Ticket(masks, detector.ratio, 0, groups=detector.groups), example_inputs)
    check_compaction(plan, model, example_inputs)
    return plan


def _scorer(
    model: nn.Module,
    score: ScoreName | Scorer,
    found: ChannelGroups,
    example_inputs: Inputs,
    loss: Callable[[nn.Module], Tensor] | None,
) -> Scorer:
    if callable(score):
        return score
    named = scorer(score, groups=found, example_inputs=example_inputs, loss=loss)
    if score == "random":
        raise ValueError("score 'random' does not depend on training: draw it by lowprec_eb.tickets.draw, without one")
    if score in get_args(StandingScore):
        named(model)  # raises what it would raise after an epoch
    return named


def _reachable(model: nn.Module, budget: Budget, example_inputs: Inputs, detector: EarlyBird) -> BudgetSearch:
    """The search for tickets under ``budget``; raises if none of random scores meets it."""
    search = BudgetSearch(model, budget, example_inputs, detector.groups)
    search.draw(Random(groups=detector.groups)(model))
    return search


def _scores_of(history: ScoreHistory, epoch: int, momentum: float) -> dict[str, Tensor]:
    """By group, the moving average of the scores that a look after ``epoch`` saw."""
    average = history.scores[0]
    for scores in history.scores[1:epoch]:
        average = average * momentum + scores * (1 - momentum)
    return Layout(history.names, history.widths).split(average)


def _name(precision: Precision | None, optimizer: Optimizer | None) -> str | None:
    """Of the precision that is noted on the ticket."""
    if precision is not None:
        return precision.name
    return optimizer.precision.name if isinstance(optimizer, LowPrecisionOptimizer) else None


# ---- the search --------------------------------------------------------------------------------------------------


def _search(
    model: nn.Module,
    loop: Callable[[nn.Module, int], Any],
    detector: EarlyBird,
    trial: Compaction,
    optimizer: Optimizer | None,
    max_epochs: int,
) -> tuple[Ticket, ScoreHistory]:
    """Train and look until there is a ticket, or the epochs are over."""
    if optimizer is not None:
        trial.check_optimizer(optimizer, model)
    recorded: list[Tensor] = []
    ticket = None
    while ticket is None and len(recorded) < max_epochs:
        loop(model, len(recorded))
        ticket = _look(model, detector, recorded)
        if optimizer is not None and len(recorded) == 1:
            trial.check_optimizer(optimizer, model)  # now it has a state
    layout = detector.layout
    assert layout is not None
    history = ScoreHistory(layout.names, layout.widths, 1, 0, tuple(range(1, len(recorded) + 1)), torch.stack(recorded))
    return ticket or _most_settled(detector, max_epochs), history


def _look(model: nn.Module, detector: EarlyBird, recorded: list[Tensor]) -> Ticket | None:
    """One look, its scores added to those recorded (on the CPU)."""
    epochs = len(recorded) + 1
    try:
        ticket = detector.update(model, epoch=epochs)
    except NaNScores as error:
        raise NaNScores(f"after {epochs} epochs {error}") from error
    assert detector.scores is not None
    scores = detector.scores.cpu().clone()
    if recorded and torch.equal(scores, recorded[-1]):
        raise ValueError(
            f"epoch {epochs} has not changed a single score: does train_one_epoch train the model that it is given, "
            "with an optimizer over its parameters, and are the normalisations trained?"
        )
    recorded.append(scores)
    return ticket


def _most_settled(detector: EarlyBird, max_epochs: int) -> Ticket:
    if (best := detector.best) is None:
        raise ValueError(f"the scores of all channels were equal after each of {max_epochs} epochs: no ticket to draw")
    warnings.warn(
        f"no ticket had settled within max_epochs={max_epochs}; the most settled mask, of epoch {best.epoch}, is taken",
        stacklevel=4,
    )
    return replace(best, on_time=False)


@contextmanager
def _lowered(model: nn.Module, precision: Precision | None) -> Iterator[None]:
    if precision is None:
        yield
        return
    lower(model, precision)
    try:
        yield
    finally:
        raise_(model)


@contextmanager
def _penalised(model: nn.Module, optimizer: Optimizer | None, strength: float) -> Iterator[None]:
    """Add ``strength * sign(gamma)`` to the gradient of every BatchNorm scale before each step (Liu et al. 2017)."""
    if not 0 <= strength < torch.inf:
        raise ValueError(f"sparsity must be 0 or more and finite, got {strength}")
    if not strength:
        yield
        return
    gammas = [m.weight for m in model.modules() if isinstance(m, BATCH_NORMS) and m.affine]
    if optimizer is None or not gammas:
        raise ValueError("sparsity is a penalty on BatchNorm scales, added at the optimizer's step: give optimizer=")

    @torch.no_grad()
    def penalise(*_: Any) -> None:
        for gamma in gammas:
            if gamma.grad is not None:
                gamma.grad.add_(gamma.sign(), alpha=strength)

    hook = optimizer.register_step_pre_hook(penalise)
    try:
        yield
    finally:
        hook.remove()
