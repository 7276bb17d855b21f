"""Which arm plays which part in the closing sentences and pictures, found by what the arms are, not by their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lowprec_eb.report.summary import ArmSummary, find_arm

EIGHT_BITS = "bfp8"


@dataclass(frozen=True)
class Roles:
    """The arms that the report speaks about; None: no such arm. Names as in You et al. 2020, section 4.3."""

    full: ArmSummary | None
    full_8bit: ArmSummary | None
    slimming: ArmSummary | None
    slimming_8bit: ArmSummary | None
    ff: ArmSummary | None  # early bird, search and retrain in fp32
    ll: ArmSummary | None  # early bird, search and retrain in 8 bits


def assign_roles(arms: Iterable[ArmSummary]) -> Roles:
    """The first arm of each kind counts; the early-bird arms are those that come first with the weights of a search."""
    arms = [arm for arm in arms if arm.weights == "inherit"]
    return Roles(
        full=find_arm(arms, "full", "fp32"),
        full_8bit=find_arm(arms, "full", EIGHT_BITS),
        slimming=find_arm(arms, "network_slimming", "fp32"),
        slimming_8bit=find_arm(arms, "network_slimming", EIGHT_BITS),
        ff=find_arm(arms, "early_bird", "fp32"),
        ll=find_arm(arms, "early_bird", EIGHT_BITS),
    )


def random_pairs(arms: Iterable[ArmSummary]) -> list[tuple[ArmSummary, ArmSummary]]:
    """(early-bird arm, random ticket arm) of equal precision, a pair for each random ticket that has a counterpart.

    A random ticket needs no search, so only its training precision must match when it states no search precision.
    """
    arms = tuple(arms)
    birds = [arm for arm in arms if arm.pipeline == "early_bird"]
    pairs = []
    for control in (arm for arm in arms if arm.pipeline == "random_ticket"):
        bird = next((bird for bird in birds if _same_conditions(bird, control)), None)
        if bird is not None:
            pairs.append((bird, control))
    return pairs


def _same_conditions(bird: ArmSummary, control: ArmSummary) -> bool:
    if (bird.precision, bird.ratio, bird.conditions) != (control.precision, control.ratio, control.conditions):
        return False
    return control.search_precision in (None, bird.search_precision)
