"""Pictures over several profiles: ranks, ranges and shares are those of the energies."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_example import example_comparison

import energy_models as em
from energy_models.counts import Gemm, Operand
from lowprec_eb.report import summarise
from lowprec_eb.report.profile_pictures import (
    Priced,
    price,
    priced_arms,
    profile_ranking,
    profile_split,
    write_profile_pictures,
)

PROFILES = ("45nm", "eyeriss", "tx2")


def counts(bits: int, rows: int) -> em.OpCounts:
    fmt = em.FormatSpec("integer", bits, 0, bits - 1)
    a, b = Operand("activation", (rows, 512), 512, fmt), Operand("weight", (512, 512), 512, fmt)
    return em.OpCounts((Gemm("l", "output", 1, rows, 512, 512, a, b, rows * 512),))


@pytest.fixture(scope="module")
def priced() -> Priced:
    work = {"dense": counts(16, 4096), "half the rows": counts(16, 2048), "8 bits": counts(8, 4096)}
    return price(work, [em.load_profile(name) for name in PROFILES])


def test_energies_are_those_of_the_profiles(priced: Priced) -> None:
    assert list(priced) == list(PROFILES)
    assert priced["tx2"]["8 bits"] == em.estimate(counts(8, 4096), em.load_profile("tx2"))


def test_ranks_and_markers_follow_the_nominal_ratios(priced: Priced) -> None:
    figure = profile_ranking(priced, "dense")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(PROFILES) and axes.get_yscale() == "log"
    markers = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    for column, energies in enumerate(priced.values()):
        for name, energy in energies.items():
            assert markers[name][column] == pytest.approx(energy.nominal_j / energies["dense"].nominal_j)
    heights = [[float(markers[name][column]) for name in markers] for column in range(len(PROFILES))]
    ranks = [(text.get_text(), text.xy[1]) for text in axes.texts]
    for column, of in enumerate(heights):
        found = sorted(ranks[3 * column : 3 * column + 3])
        assert found == [(str(n), y) for n, y in enumerate(sorted(of), start=1)]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["dense", "half the rows", "8 bits"]


def test_equals_share_a_rank(priced: Priced) -> None:
    twins = {profile: {**energies, "dense again": energies["dense"]} for profile, energies in priced.items()}
    (axes,) = profile_ranking(twins, "dense").axes
    assert sorted(text.get_text() for text in axes.texts[:4]) == ["1", "2", "3", "3"]


def test_bars_are_whole_and_say_the_total(priced: Priced) -> None:
    figure = profile_split(priced)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    widths: dict[float, float] = {}
    for bar in axes.patches:
        widths[bar.get_y()] = widths.get(bar.get_y(), 0) + bar.get_width()
    assert list(widths.values()) == pytest.approx([1] * 9)
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["dense", "half the rows", "8 bits"] * 3
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["MACs", "other arithmetic", "dram", "buffer, l2", "array, shared", "rf", "static"]
    assert sum("to" in text.get_text() for text in axes.texts) == 9


def test_a_comparison_priced_twice(tmp_path: Path) -> None:
    comparison = example_comparison()
    rows = {
        stage: tuple(replace(row, modelled=row.modelled * 2) for row in rows) for stage, rows in comparison.rows.items()
    }
    priced = priced_arms({"45nm": comparison, "7nm": replace(comparison, rows=rows)})
    arms = [arm.arm for arm in summarise(comparison)]
    assert list(priced["45nm"]) == list(priced["7nm"]) == arms
    assert priced["7nm"][arms[0]].nominal_j == pytest.approx(2 * priced["45nm"][arms[0]].nominal_j)
    paths = write_profile_pictures(priced, tmp_path / "new")
    assert [path.name for path in paths] == ["profile_ranking.png", "profile_split.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def test_what_cannot_be_drawn(priced: Priced) -> None:
    with pytest.raises(ValueError, match="no pipeline 'sparse' to compare with; there are dense, half the rows"):
        profile_ranking(priced, "sparse")
    with pytest.raises(ValueError, match="at least one profile"):
        profile_split({})
    others = {**priced, "tx2": {"dense": priced["tx2"]["dense"]}}
    with pytest.raises(ValueError, match="profile 'tx2' has other pipelines than '45nm'"):
        profile_split(others)
