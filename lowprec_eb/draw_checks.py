"""The arguments of :func:`lowprec_eb.draw_ticket`, checked before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from energy_models import HardwareProfile, load_profile
from lowprec_eb.layers import LoweredModule
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.tickets import (
    ChannelGroup,
    ChannelGroups,
    Compaction,
    EarlyBird,
    Ticket,
    channel_groups,
    keep_uniform,
    plan_compaction,
    scorer,
)
from lowprec_eb.tickets.calls import Inputs, call, check_example, plain_copy
from lowprec_eb.tickets.equality import check_compaction
from lowprec_eb.tickets.score_settings import StandingScore
from lowprec_eb.tickets.scores import ScoreName, Scorer

Groups = Sequence[ChannelGroup] | Literal["coupled"] | None
TrainOneEpoch = Callable[..., Any]


def called_with_epoch(train_one_epoch: TrainOneEpoch) -> Callable[[nn.Module, int], Any]:
    """Its one way to be called, whether it has a parameter ``epoch`` or not."""
    if not callable(train_one_epoch):
        raise TypeError(f"train_one_epoch must be a function of the model, got {train_one_epoch!r}")
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


def chosen_precision(model: nn.Module, precision: str | Precision | None) -> Precision | None:
    if precision is None:
        return None
    if not isinstance(precision, str | Precision):
        raise TypeError(f"precision must be the name of a recipe, a Precision or None, got {precision!r}")
    if any(isinstance(module, LoweredModule) for module in model.modules()):
        raise ValueError("the model is lowered already, so leave precision out, or raise the model first (lp.raise_)")
    return named_precision(precision)


def chosen_profile(profile: str | HardwareProfile) -> HardwareProfile:
    if isinstance(profile, HardwareProfile):
        return profile
    if not isinstance(profile, str | Path):
        raise TypeError(f"profile must be a name, a file or a HardwareProfile, got {profile!r}")
    return load_profile(profile)


def found_groups(model: nn.Module, example_inputs: Inputs, groups: Groups) -> ChannelGroups:
    _check_runs(model, example_inputs)
    if isinstance(groups, ChannelGroups):
        found = groups
    elif groups is None or isinstance(groups, str):
        if groups not in (None, "coupled"):
            raise ValueError(f"groups must be None, 'coupled' or channel groups of the model, got {groups!r}")
        found = channel_groups(model, example_inputs, coupled=groups is not None)
    else:
        found = ChannelGroups(_sequence_of_groups(groups), {})
    if found:
        return found
    why = "; ".join(f"{name} {reason}" for name, reason in list(found.unprunable.items())[:3])
    where = "with coupled groups" if groups is not None else "with one group per BatchNorm2d (try groups='coupled')"
    raise ValueError(f"{type(model).__name__} has nothing that can be pruned {where}{f': {why}' if why else ''}")


def _sequence_of_groups(groups: Any) -> tuple[ChannelGroup, ...]:
    if not isinstance(groups, Sequence) or not all(isinstance(group, ChannelGroup) for group in groups):
        raise TypeError(f"groups must be None, 'coupled' or channel groups of the model, got {groups!r}")
    return tuple(groups)


def _check_runs(model: nn.Module, example_inputs: Inputs) -> None:
    check_example(model, example_inputs)
    try:
        with torch.no_grad():
            call(plain_copy(model), example_inputs)
    except Exception as error:  # the model's own code: anything
        raise ValueError(
            f"{type(model).__name__} fails on example_inputs ({type(error).__name__}: {error}); give one batch as the "
            "training does, on the model's device and without targets"
        ) from error


def trial_compaction(model: nn.Module, found: ChannelGroups, detector: EarlyBird, example_inputs: Inputs) -> Compaction:
    """Drop the ratio of every group: raises what the real compaction would."""
    masks = keep_uniform({group.name: group.channels for group in found}, detector.ratio)
    plan = plan_compaction(model, Ticket(masks, detector.ratio, 0, groups=detector.groups), example_inputs)
    check_compaction(plan, model, example_inputs)
    return plan


def chosen_scorer(
    model: nn.Module,
    score: ScoreName | Scorer,
    found: ChannelGroups,
    example_inputs: Inputs,
    loss: Callable[[nn.Module], Tensor] | None,
) -> Scorer:
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function, model -> scalar, or None, got {loss!r}")
    if callable(score):
        return score
    if not isinstance(score, str):
        raise TypeError(f"score must be a name or a function, model -> scores by group, got {score!r}")
    named = scorer(score, groups=found, example_inputs=example_inputs, loss=loss)
    if score == "random":
        raise ValueError("score 'random' does not depend on training: draw it by lowprec_eb.tickets.draw, without one")
    if score in get_args(StandingScore):
        named(model)  # raises what it would raise after an epoch
    return named
