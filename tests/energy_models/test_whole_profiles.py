"""Laws of every shipped profile: all recipes have a price and a range, chips take time, bare arithmetic none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import energy_models as em
from energy_models.counts import Gemm, Operand
from energy_models.energy import NOT_MEMORY, Range
from energy_models.estimate import CORNERS
from energy_models.memory_traffic import Traffic
from energy_models.profile_files import available_profiles
from lowprec_eb.recipes import RECIPES

CHIPS = ("h100", "h200", "tpu", "tx2")


@pytest.fixture(scope="module")
def steps() -> dict[str, em.OpCounts]:
    """A training step of a small net in every recipe."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 10),
    )
    dense = em.count(model, torch.zeros(64, 3, 16, 16))
    return {name: dense.at(recipe) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("name", available_profiles())
def test_every_recipe_has_a_price_and_a_range_on_every_profile(name: str, steps: dict[str, em.OpCounts]) -> None:
    profile = em.load_profile(name)
    energies = {recipe: em.estimate(counts, profile) for recipe, counts in steps.items()}
    for energy in energies.values():
        assert all(0 < part.low <= part.nominal <= part.high for key, part in energy.components_j.items())
        levels = [key for key in energy.components_j if key not in NOT_MEMORY]
        assert levels == [level.name for level in profile.memory] == list(energy.level_bytes)
        assert energy.low_j < energy.nominal_j < energy.high_j
    nominal = {recipe: energy.nominal_j for recipe, energy in energies.items()}
    assert nominal["bfp8"] < nominal["bf16"] <= nominal["fp32"]
    assert nominal["swalp8"] > nominal["bfp8"]


@pytest.mark.parametrize("name", available_profiles())
def test_a_whole_chip_takes_time_and_static_energy_and_bare_arithmetic_neither(
    name: str, steps: dict[str, em.OpCounts]
) -> None:
    profile, counts = em.load_profile(name), steps["bf16"]
    time, static = em.modelled_time_s(counts, profile), em.estimate(counts, profile).static_j
    assert (profile.chip is not None) == (name in CHIPS)
    if profile.chip is None:
        assert time is None and static == Range(0, 0, 0)
        return
    assert time is not None and 0 < time.low <= time.nominal <= time.high
    assert static.nominal == pytest.approx(time.nominal * profile.chip.static_power.value)


def test_a_chip_with_arithmetic_is_bound_by_its_rate() -> None:
    profile, side = em.load_profile("tpu"), 2**14
    by_dram, by_rate = em.OpCounts((gemm(side, 16, side),)), em.OpCounts((gemm(side, side, side),))
    times = [em.modelled_time_s(counts, profile) for counts in (by_dram, by_rate)]
    assert times[0] is not None and times[1] is not None
    assert times[0].low == pytest.approx((side**2 + 32 * side) * 4 / 34e9)
    assert times[1].low == pytest.approx(side**3 / 46e12 / 0.93)


# ---- what registers and windows change in the traffic ------------------------------------------------------------


def gemm(m: int, n: int, k: int) -> Gemm:
    a, b = Operand("activation", (m, k), k), Operand("weight", (n, k), k)
    return Gemm("l", "output", 1, m, n, k, a, b, m * n)


def test_partial_sums_are_read_and_written_in_the_innermost_level() -> None:
    profile = em.load_profile("eyeriss")
    counts = em.OpCounts((gemm(64, 64, 64),))
    without = Traffic(counts, replace(profile, sum_reuse=None)).per_level("nominal", "nominal")
    sums = Traffic(counts, profile).per_level("nominal", "nominal")
    assert sums[:-1] == without[:-1]
    assert sums[-1] - without[-1] == 2 * 64**3 * 32


def conv_step(kernel: int, stride: int = 1, groups: int = 1) -> em.OpCounts:
    conv = nn.Sequential(nn.Identity(), nn.Conv2d(64, 64, kernel, stride, padding=kernel // 2, groups=groups))
    return em.count(conv, torch.zeros(8, 64, 64, 64, requires_grad=True))


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "reads"), [(3, 1, 1, 9), (1, 1, 1, 1), (3, 2, 1, 2.25), (5, 1, 4, 25)]
)
def test_windows_that_overlap_need_less_traffic(kernel: int, stride: int, groups: int, reads: float) -> None:
    """2 MACs / sqrt(R S), with R reads of each input by the windows: Chen et al. 2020; all three GEMMs alike."""
    counts = conv_step(kernel, stride, groups)
    profile = em.load_profile("eyeriss")
    tiny = replace(profile.memory[1], capacity=replace(profile.memory[2].capacity, value=1.0))
    two_levels = replace(profile, memory=(profile.memory[0], tiny), sum_reuse=None)
    assert {each.gemm for each in counts.gemms} >= {"output", "grad_weight"}
    for each in counts.gemms:
        bits = Traffic(em.OpCounts((each,)), two_levels).into_levels("nominal", "nominal")[0]
        written = sum(side.stored_bits for side in (each.a, each.b) if side.name in ("activation", "error"))
        bound = 2 * each.macs / (reads * 8192 / 32) ** 0.5 * 32
        expected = bound + each.result_elements * 32
        assert expected <= bits <= expected + written


def test_the_innermost_of_several_levels_keeps_its_tile_when_nothing_is_reused() -> None:
    profile = em.load_profile("eyeriss")
    big = gemm(2048, 2048, 2048)
    traffic = Traffic(em.OpCounts((big,)), profile)
    high, nominal = traffic.into_levels("high", "high"), traffic.into_levels("nominal", "high")
    assert nominal[0] < high[0] and high[2] == nominal[2]
    assert high[0] - big.a.stored_bits == pytest.approx(high[2])  # besides the activation, written before


def test_static_energy_of_a_known_time() -> None:
    chip = em.load_profile("h100")
    assert chip.chip is not None
    found = em.static_energy(chip, Range(10, 20, 30))
    power = chip.chip.static_power
    expected = Range(10 * power.low, 20 * power.value, 30 * power.high)
    assert found.components_j == {"static": expected}
    assert len(found.corners_j) == CORNERS and set(found.corners_j) == {expected.low, expected.high}
    with pytest.raises(ValueError, match="'45nm' has no chip"):
        em.static_energy(em.load_profile("45nm"), Range(1, 1, 1))
