"""Pictures of number formats: which values there are, how values between them round, and how much noise that makes."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from torch import Tensor

from lowprec_eb.format_sheet import LISTED_BITS, positive_values, sample_shape, sqnr_db
from lowprec_eb.formats import Float, Format, format_name, is_affine
from lowprec_eb.quantize import Rounding, quantize
from lowprec_eb.report.figures import COLOURS, new_figure, save_picture

MOST_FORMATS = len(COLOURS)
_NORMAL, _SUBNORMAL = COLOURS[0], COLOURS[1]
_LOWEST_DB = -10  # below, the noise is ten times the signal
_LABEL_WIDTH = 26  # characters
_STEPS_SHOWN = 10  # of the rounding panel
_NOISE_STYLES: dict[Rounding, Literal["-", "--"]] = {"nearest": "-", "stochastic": "--"}
_ROUNDING_STYLES: dict[Rounding, tuple[str, str]] = {"nearest": ("-", COLOURS[0]), "toward_zero": ("--", COLOURS[2])}


def write_format_picture(formats: Sequence[Format], out: Path) -> Path:
    """Draw ``formats`` into the PNG file ``out``, or into a file named after them in the folder ``out``.

    Raises:
        ValueError: no format or too many, or another kind of file.
    """
    if not 1 <= len(formats) <= MOST_FORMATS:
        raise ValueError(f"--plot needs the names of 1 to {MOST_FORMATS} formats, got {len(formats)}")
    if out.suffix not in ("", ".png") and not out.is_dir():
        raise ValueError(f"{out}: pictures are PNG files; give a name that ends in .png, or a folder")
    path = out if out.suffix == ".png" else out / f"{_file_name(formats)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(format_picture(formats), path)
    return path


def format_picture(formats: Sequence[Format]) -> Figure:
    """Number lines and noise of ``formats``; of a single one that can be drawn value by value also how it rounds."""
    if len(formats) > 1:
        figure = new_figure(11, 4.6 + 0.55 * len(formats))
        panels = figure.subplot_mosaic([["linear", "log"], ["noise", "noise"]], height_ratios=[0.5 * len(formats), 3.4])
    elif formats[0].bits > LISTED_BITS:
        figure = new_figure(11, 5)
        panels = dict(zip(("log", "noise"), figure.subplots(2, height_ratios=[1, 5]), strict=True))
    else:
        figure = new_figure(11, 7)
        panels = figure.subplot_mosaic(
            [["linear", "linear"], ["log", "log"], ["rounding", "noise"]], height_ratios=[1, 1, 5]
        )
        _rounding(panels["rounding"], formats[0])
    if "linear" in panels:
        _linear_number_lines(panels["linear"], formats)
    _log_number_lines(panels["log"], formats, labels="linear" not in panels)
    _noise(panels["noise"], formats)
    figure.suptitle(format_name(formats[0]) if len(formats) == 1 else "Values and noise of number formats")
    return figure


def _file_name(formats: Sequence[Format]) -> str:
    return "_".join(re.sub(r"\W+", "_", format_name(fmt)).strip("_") for fmt in formats)[:120]


# ---- values ------------------------------------------------------------------------------------------------------


def _linear_number_lines(axes: Axes, formats: Sequence[Format]) -> None:
    """The positive values as strokes, a row a format, over the largest where these differ."""
    shared = len({_largest(fmt) for fmt in formats}) == 1
    for row, fmt in enumerate(formats):
        _strokes(axes, row, fmt, 1.0 if shared else 1 / _largest(fmt))
    band = " (a band: too many to draw)" if any(fmt.bits > LISTED_BITS for fmt in formats) else ""
    axes.set_xlabel(_values_text(formats) + ("" if shared else " / the largest") + band)
    axes.set_xlim(left=0)
    _rows(axes, formats if len(formats) > 1 else (), len(formats))


def _log_number_lines(axes: Axes, formats: Sequence[Format], labels: bool) -> None:
    """The same over a logarithmic axis; short orange strokes are subnormal."""
    for row, fmt in enumerate(formats):
        _strokes(axes, row, fmt, 1.0)
        if fmt.bits > LISTED_BITS and len(formats) == 1:
            middle = math.sqrt(fmt.element.smallest) * math.sqrt(_largest(fmt))
            axes.text(middle, row, _density_text(fmt), ha="center", va="center", fontsize=8, color="white")
    axes.set_xlabel(_values_text(formats))
    axes.set_xscale("log", base=2)
    _mark_powers_of_two(axes)
    _rows(axes, formats if labels and len(formats) > 1 else (), len(formats))
    if any(isinstance(fmt.element, Float) and fmt.element.subnormals for fmt in formats):
        kinds = {"normal": _NORMAL, "subnormal": _SUBNORMAL}
        handles = [Line2D([], [], color=colour, linewidth=2, label=label) for label, colour in kinds.items()]
        corner = (1.0, 1.0)
        axes.legend(handles=handles, ncols=2, frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=corner)


def _rows(axes: Axes, labelled: Sequence[Format], count: int) -> None:
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(len(labelled)), [_label(fmt) for fmt in labelled])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _mark_powers_of_two(axes: Axes) -> None:
    """At most eight marks, at round exponents."""
    low, high = (math.log2(end) for end in axes.get_xlim())
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if (high - low) / step <= 8)
    axes.set_xticks([2.0**k for k in range(math.ceil(low / step) * step, math.floor(high) + 1, step)])
    axes.xaxis.set_minor_locator(NullLocator())


def _values_text(formats: Sequence[Format]) -> str:
    return "positive values" + (" at scale 1" if any(fmt.blocks is not None for fmt in formats) else "")


def _strokes(axes: Axes, row: int, fmt: Format, factor: float) -> None:
    border = 2.0**fmt.element.min_exponent if isinstance(fmt.element, Float) else 0.0
    if fmt.bits > LISTED_BITS:  # too dense for strokes: a band
        smallest, largest = fmt.element.smallest * factor, _largest(fmt) * factor
        if border * factor > smallest:
            axes.fill_betweenx([row - 0.15, row + 0.15], smallest, border * factor, color=_SUBNORMAL, linewidth=0)
        axes.fill_betweenx([row - 0.3, row + 0.3], max(smallest, border * factor), largest, color=_NORMAL, linewidth=0)
        return
    values = positive_values(fmt)
    for chosen, reach, colour in (
        ([value for value in values if value >= border], 0.3, _NORMAL),
        ([value for value in values if value < border], 0.15, _SUBNORMAL),
    ):
        places = [value * factor for value in chosen]
        axes.vlines(places, row - reach, row + reach, color=colour, linewidth=0.9)


def _largest(fmt: Format) -> float:
    return float(fmt.levels) if is_affine(fmt) else fmt.element.max


def _density_text(fmt: Format) -> str:
    if isinstance(fmt.element, Float):
        return f"{2**fmt.mantissa_bits} values in each power of two"
    return f"{round(_largest(fmt) / fmt.element.smallest)} even steps"


def _label(fmt: Format) -> str:
    return "\n".join(textwrap.wrap(format_name(fmt), _LABEL_WIDTH))


# ---- rounding ----------------------------------------------------------------------------------------------------


def _rounding(axes: Axes, fmt: Format) -> None:
    """Rounded over exact values, up to and beyond the largest; a dot is where a tie goes."""
    values = [0.0, *positive_values(fmt)][-_STEPS_SHOWN:]
    low, high = values[0], values[-1] + 2 * (values[-1] - values[-2])
    x = torch.linspace(low, high, 2000, dtype=torch.float64)
    random = torch.linspace(low, high, 140, dtype=torch.float64)
    axes.plot(random, _at_scale_one(random, fmt, "stochastic"), ".", color=COLOURS[1], markersize=4,
              label="stochastic, one draw each")  # fmt: skip
    for rounding, (style, colour) in _ROUNDING_STYLES.items():
        label = rounding.replace("_", " ")
        axes.plot(x, _at_scale_one(x, fmt, rounding), style, color=colour, linewidth=1.4, label=label)
    ends = torch.tensor(values, dtype=torch.float64)
    ties = (ends[1:] + ends[:-1]) / 2
    axes.plot(ties, _at_scale_one(ties, fmt, "nearest"), "o", color=COLOURS[0], markersize=4.5, label="ties, nearest")
    axes.axline((low, low), slope=1, color="#999999", linewidth=0.7, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low - 0.03 * (high - low), high)
    axes.set_yticks(values, [f"{value:g}" for value in values], fontsize=8)
    axes.grid(True, axis="y", alpha=0.2)
    axes.set_xlabel("exact value" + (" (scale 1)" if fmt.blocks is not None else ""))
    axes.set_ylabel("rounded value")
    axes.set_title("rounding of the largest values", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _at_scale_one(x: Tensor, fmt: Format, rounding: Rounding) -> Tensor:
    if is_affine(fmt):
        return quantize(x, fmt, rounding, seed=0, scale=(torch.tensor(1.0), torch.tensor(0.0)))
    return quantize(x, fmt.element, rounding, seed=0)


# ---- noise -------------------------------------------------------------------------------------------------------


def _noise(axes: Axes, formats: Sequence[Format]) -> None:
    """SQNR over the standard deviation of Gaussian samples: solid to nearest, dashed stochastic."""
    exponents = _exponents(formats)
    stds = [2.0**exponent for exponent in exponents]
    highest, overflows = 0.0, False
    for fmt, colour in zip(formats, COLOURS, strict=False):
        for rounding, style in _NOISE_STYLES.items():
            curve = _from_lowest(sqnr_db(fmt, stds, rounding))
            overflows = overflows or math.isnan(curve[-1])
            highest = max([highest, *(value for value in curve if not math.isnan(value))])
            axes.plot(stds, curve, style, color=colour, linewidth=1.4)
    axes.set_xlim(stds[0], stds[-1])
    axes.set_ylim(_LOWEST_DB, 1.08 * highest + 3)
    axes.set_xscale("log", base=2)
    _mark_powers_of_two(axes)
    axes.axhline(0, color="#999999", linewidth=0.7, zorder=0)
    axes.grid(True, alpha=0.25)
    axes.set_xlabel("standard deviation of the Gaussian" + (" (a curve ends where samples overflow)" * overflows))
    axes.set_ylabel("signal to quantization noise [dB]")
    shapes = sorted({" x ".join(map(str, sample_shape(fmt))) for fmt in formats})
    axes.set_title(f"noise, {' or '.join(shapes)} Gaussian samples", fontsize=10)
    _noise_legend(axes, formats)


def _from_lowest(curve: list[float]) -> list[float]:
    """The curve without what lies left of the panel's floor: there, hardly a sample rounds to anything but zero."""
    below = [place for place, value in enumerate(curve) if value < _LOWEST_DB]
    return [math.nan] * below[-1] + curve[below[-1] :] if below else curve


def _noise_legend(axes: Axes, formats: Sequence[Format]) -> None:
    """Colours are formats and styles roundings; beside the panel if there are several formats."""
    shade = COLOURS[0] if len(formats) == 1 else "#555555"
    handles = [Line2D([], [], color=shade, linestyle=style, label=name) for name, style in _NOISE_STYLES.items()]
    if len(formats) == 1:
        axes.legend(handles=handles, fontsize=8, loc="lower center", edgecolor="white", framealpha=1)
        return
    colours = zip(formats, COLOURS, strict=False)
    handles = [*(Line2D([], [], color=colour, label=_label(fmt)) for fmt, colour in colours), *handles]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _exponents(formats: Sequence[Format]) -> list[float]:
    """Exponents of the standard deviations: over the range of the formats without scales, or else all that is."""
    bare = [fmt for fmt in formats if fmt.blocks is None]
    low = min(math.log2(fmt.smallest) for fmt in bare or formats) - 6
    high = max(math.log2(fmt.max) for fmt in bare or formats) + 6
    first, last = math.floor(low), math.ceil(high)
    # Noise of a block format repeats from one power of two to the next: whole steps, or finer ones, keep its shape.
    step = next(step for step in (0.25, 0.5, 1, 2, 3, 4) if (last - first) / step <= 120)
    return [first + step * i for i in range(math.floor((last - first) / step) + 1)]
