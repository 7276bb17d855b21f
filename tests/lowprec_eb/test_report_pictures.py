import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from report_example import built, example_comparison, row

from lowprec_eb.report import Comparison, missing_pictures, summarise, write_pictures, write_report
from lowprec_eb.report.curves import epoch_curve
from lowprec_eb.report.label_placement import Canvas, overlaps, place_labels
from lowprec_eb.report.pictures import energy_accuracy, energy_phases, epochs, mask_distance

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return example_comparison()


def test_write_report_writes_everything(comparison: Comparison, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(comparison, folder)
    names = ["report.txt", "summary.csv", "summary.json", "baselines.csv"]
    pictures = ["energy_accuracy.png", "energy_phases.png", "epochs.png", "mask_distance.png"]
    assert [path.name for path in paths] == names + pictures
    assert sorted(folder.iterdir()) == sorted(paths)  # nothing unfinished stays
    for path in paths[len(names) :]:
        assert path.read_bytes()[:4] == PNG
        assert path.stat().st_size > 20_000
    report = paths[0].read_text()
    assert max(map(len, report.splitlines())) <= 150
    assert "\x1b" not in report
    for sentence in json.loads(paths[2].read_text())["sentences"]:
        assert " ".join(sentence.split()) in " ".join(report.split())


def test_a_picture_without_data_is_skipped_and_said(comparison: Comparison, tmp_path: Path) -> None:
    rows = {stage: tuple(replace(r, metrics={}) for r in rows) for stage, rows in comparison.rows.items()}
    bare = replace(comparison, mask_histories=(), rows=rows, outcomes=comparison.outcomes[:3])
    (tmp_path / "epochs.png").write_bytes(b"of an earlier report")
    written = write_pictures(bare, tmp_path)
    assert [path.name for path in written] == ["energy_accuracy.png", "energy_phases.png"]
    assert sorted(tmp_path.iterdir()) == written
    assert "validation_accuracy" in missing_pictures(bare)["epochs.png"]
    assert "masks" in missing_pictures(bare)["mask_distance.png"]
    others = replace(comparison, outcomes=tuple(o for o in comparison.outcomes if o.pipeline == "random_ticket"))
    assert missing_pictures(others) == missing_pictures(comparison) == {}
    lines = [line for line in epochs(others).axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["random fp32", "random 8 bit"]


def test_labels_of_points_lie_apart_from_each_other_and_in_the_plot(comparison: Comparison) -> None:
    figure = energy_accuracy(comparison)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [arm.arm for arm in summarise(comparison)]
    boxes = np.array([text.get_window_extent().extents for text in axes.texts])
    assert overlaps(boxes, boxes).sum() == pytest.approx(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum())
    frame = np.array(axes.get_window_extent().extents)
    assert (boxes[:, :2] >= frame[:2]).all()
    assert (boxes[:, 2:] <= frame[2:]).all()
    kinds, signs = figure.legends
    assert kinds.get_window_extent().x0 > frame[2]
    assert signs.get_window_extent().y1 < axes.get_tightbbox().y0
    assert axes.get_xscale() == "log"


def many_arms(number: int) -> Comparison:
    kinds = [("full", None), ("early_bird", "fp32"), ("snip", None)]
    arms = [(f"arm {i}", *kinds[i % 3], "fp32", 1.0 + i / 4, (0.95 + i / 1000, 0.96)) for i in range(number - 1)]
    return built(*arms, ("poor", "early_bird", "fp32", "fp32", 2.0, (0.61, 0.63)))


def test_of_many_arms_numbers_stand_in_the_plot_and_names_beside_it() -> None:
    comparison = many_arms(20)
    figure = energy_accuracy(comparison)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [*map(str, range(1, 20)), "20: \N{DOWNWARDS ARROW} 62.00 %"]
    listed = [text.get_text() for text in figure.legends[0].get_texts()]
    assert listed[1:21] == [f"{i}  {arm.arm}" for i, arm in enumerate(summarise(comparison), 1)]
    handles = figure.legends[0].legend_handles
    drawn = [line for line in axes.lines if line.get_markersize() == 8 and len(line.get_xdata()) == 1]
    assert [h.get_marker() for h in handles[1:21]] == [line.get_marker() for line in drawn]


@pytest.mark.parametrize(("number", "cut"), [(20, True), (9, True), (5, False)])
def test_an_arm_far_below_all_others_stands_at_the_foot(number: int, cut: bool) -> None:
    (axes,) = energy_accuracy(many_arms(number)).axes
    bottom, _ = axes.get_ylim()
    assert (bottom > 85) == cut
    drawn = [line for line in axes.lines if line.get_markersize() == 8 and len(line.get_xdata()) == 1]
    poor = drawn[-1]
    assert poor.get_ydata()[0] == pytest.approx(bottom if cut else 62.0)
    assert any("62.00 %" in text.get_text() for text in axes.texts) == cut


@pytest.mark.parametrize("number", [1, 2, 12])
def test_labels_of_coinciding_points_do_not_coincide(number: int) -> None:
    points = np.full((number, 2), 300.0)
    markers = np.hstack([points - 5, points + 5])
    canvas = Canvas(points, markers, np.empty((0, 4)), np.array([0.0, 0.0, 600.0, 600.0]), unit=1.5)
    boxes = place_labels(canvas, np.tile([80.0, 12.0], (number, 1)))
    assert overlaps(boxes, boxes).sum() == pytest.approx(number * 80 * 12)
    assert overlaps(boxes, markers).sum() == 0


def test_bars_of_an_arm_end_at_its_total(comparison: Comparison) -> None:
    arms = summarise(comparison)
    (axes,) = energy_phases(comparison).axes
    ends = [max(bar[i].get_x() + bar[i].get_width() for bar in axes.containers) for i in range(len(arms))]
    assert ends == pytest.approx([1000 * arm.energy.nominal_j for arm in arms])
    assert [text.get_text() for text in axes.texts] == [f"{1000 * arm.energy.nominal_j:.3g}" for arm in arms]
    labels = [bar.get_label() for bar in axes.containers]
    assert labels == ["search", "train", "prune + detect (too small to see)", "retrain", "eval"]
    assert len({to_hex(bar[0].get_facecolor()) for bar in axes.containers}) == 5


def test_averaging_has_a_bar_of_its_own_and_leaves_the_curves_accuracy(comparison: Comparison) -> None:
    stage = comparison.outcomes[0].stages[0]
    extra = row(stage, "average", 20, 0.05)
    longer = replace(comparison, rows={**comparison.rows, stage: (*comparison.rows[stage], extra)})
    (axes,) = energy_phases(longer).axes
    bars = {bar.get_label(): bar for bar in axes.containers}
    assert list(bars) == ["search", "train", "prune + detect (too small to see)", "retrain", "average", "eval"]
    assert bars["average"][0].get_width() == pytest.approx(1000 * 0.05 / 3)  # mean over three seeds
    assert len({to_hex(bar[0].get_facecolor()) for bar in bars.values()}) == 6
    before, after = (epoch_curve(c, c.outcomes[0]) for c in (comparison, longer))
    assert after.energy_j[-1] == pytest.approx(before.energy_j[-1] + 0.05)
    assert list(after.accuracy[1:]) == list(before.accuracy[1:])


def test_epoch_curves_end_at_the_arms_energy(comparison: Comparison) -> None:
    energy_axes, accuracy_axes = epochs(comparison).axes
    curves = {line.get_label(): line for line in energy_axes.lines if not line.get_label().startswith("_")}
    assert set(curves) == {"full fp32", "full 8 bit", "slimming fp32", "early-bird FF", "early-bird LL"}
    totals = {arm.arm: arm.energy.nominal_j for arm in summarise(comparison)}
    for arm, line in curves.items():
        assert line.get_ydata()[-1] == pytest.approx(1000 * totals[arm])  # all seeds train 20 or 40 epochs
        assert len(line.get_xdata()) == (41 if arm == "slimming fp32" else 21)
    bottom, top = accuracy_axes.get_ylim()
    assert f"begins at {bottom:.0f} %" in accuracy_axes.get_ylabel()
    assert 80 < bottom < 97 < top <= 100.5


def test_mask_distances_of_the_first_seed_share_one_scale_and_mark_the_ticket(comparison: Comparison) -> None:
    first, second, _ = mask_distance(comparison).axes
    assert first.get_title() == "fp32\n(dashed: ticket drawn after 6 epochs)"
    assert second.get_title() == "bfp8\n(dashed: ticket drawn after 7 epochs)"
    assert first.images[0].get_clim() == second.images[0].get_clim()
    assert {line.get_xdata()[0] for line in first.lines} | {line.get_ydata()[0] for line in first.lines} >= {6}
    assert first.images[0].get_extent() == [0.5, 20.5, 0.5, 20.5]
    history = comparison.mask_histories[0]
    one = replace(comparison, mask_histories=(replace(history, ticket_epoch=None),))
    axes, _ = mask_distance(one).axes
    assert axes.get_title() == "fp32"
    assert not axes.lines


def test_mask_distances_of_a_sweep_stand_in_rows_under_their_own_labels(comparison: Comparison) -> None:
    history = comparison.mask_histories[0]
    labels = [f"fp32, ratio {ratio:g}" for ratio in (0.1, 0.2, 0.3, 0.5, 0.7)]
    sweep = replace(comparison, mask_histories=tuple(replace(history, label=label) for label in labels))
    figure = mask_distance(sweep)
    FigureCanvasAgg(figure).draw()
    panels = figure.axes[:5]
    assert [axes.get_title().splitlines()[0] for axes in panels] == labels
    boxes = [axes.get_window_extent() for axes in panels]
    assert boxes[0].y0 == pytest.approx(boxes[2].y0) and boxes[3].y1 < boxes[0].y0
    assert boxes[3].x0 == pytest.approx(boxes[0].x0)
