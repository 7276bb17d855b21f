"""Number formats for people: the table of all, and one in full. Both fit 80 columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowprec_eb.format_sheet import LISTED_BITS, FormatSheet, field_values, float_codes, positive_values
from lowprec_eb.formats import Float, Format, as_format

_CAPTION = (
    "Bits of an element, its share of the scales counted, in a tensor of {shape}. Largest and smallest are magnitudes "
    "at scale 1; the smallest of fixed point, block float and integers is their step. Range: 20 log10 of largest over "
    "smallest, under one scale and over all scales."
)


def print_sheets(sheets: Sequence[FormatSheet], console: Console) -> None:
    """One format in full, several as a table with a row each."""
    if len(sheets) == 1:
        _print_full(sheets[0], console)
    else:
        console.print(build_sheet_table(sheets))
        console.print(Text(_CAPTION.format(shape=_shape_text(sheets[0]))))


def build_sheet_table(sheets: Sequence[FormatSheet]) -> Table:
    """One row a format: kind, bits with scales, largest and smallest value, dynamic range."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text("name"), overflow="fold", min_width=15)
    table.add_column(Text("kind"), no_wrap=True)
    for heading in ("bits", "largest", "smallest", "block\n[dB]", "overall\n[dB]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for sheet in sheets:
        cells = (
            sheet.name,
            _words(sheet.kind),
            f"{sheet.bits_per_element:.4g}",
            _short(sheet.largest),
            f"{sheet.smallest:.3g}",
            f"{sheet.block_range_db:.0f}",
            f"{sheet.dynamic_range_db:.0f}",
        )
        table.add_row(*map(Text, cells))
    return table


def _print_full(sheet: FormatSheet, console: Console) -> None:
    fmt = as_format(sheet.constructor)
    console.print(Text(sheet.name, style="bold"))
    if sheet.name != sheet.constructor:
        console.print(Text(f"lp.{sheet.constructor}"))
    sections = {
        "fields": [(name, str(value)) for name, value in field_values(fmt).items()],
        "derived": _derived(sheet),
        "meaning": [(_words(name), text) for name, text in dataclasses.asdict(sheet.semantics).items()],
        "storage": _storage(sheet),
    }
    for title, rows in sections.items():
        console.print(Text(title, style="bold"))
        console.print(_pairs(rows))
    console.print(Text("values at scale 1", style="bold"))
    if fmt.bits > LISTED_BITS:
        console.print(Text(f"  not listed: a code has more than {LISTED_BITS} bits"))
    elif isinstance(fmt.element, Float):
        console.print(Text("  of each code; a negative value has the sign bit, left of these, set"))
        console.print(_code_table(fmt.element))
    else:
        console.print(Text(f"  {_even_values(fmt)}"))


def _even_values(fmt: Format) -> str:
    texts = [f"{value:g}" for value in positive_values(fmt)]
    listed = ", ".join(texts if len(texts) < 5 else [*texts[:3], "...", texts[-1]])
    others = "above the zero point" if fmt.has_zero_point else "and their negatives, and 0"
    return f"{listed} {others}"


def _derived(sheet: FormatSheet) -> list[tuple[str, str]]:
    fmt = as_format(sheet.constructor)
    element = fmt.element
    rows = [
        ("kind", _words(sheet.kind)),
        ("bits", f"{sheet.bits}: exponent {sheet.exponent_bits}, mantissa {sheet.mantissa_bits}"),
    ]
    if isinstance(element, Float):
        exponents = f"{element.min_exponent} to {element.max_exponent}, bias {element.bias}"
        rows.append(("exponents", exponents))
    at_one = f"largest {sheet.largest:.7g}, smallest {sheet.smallest:.7g}, {sheet.block_range_db:.1f} dB"
    if fmt.blocks is None:
        return [*rows, ("range", at_one)]
    overall = f"largest {sheet.largest_overall:.3g}, smallest {sheet.smallest_overall:.3g}"
    low, high = fmt.scale_limits
    return [
        *rows,
        ("at scale 1", at_one),
        ("scales", f"{low:.3g} to {high:.3g}"),
        ("over all scales", f"{overall}, {sheet.dynamic_range_db:.1f} dB"),
    ]


def _storage(sheet: FormatSheet) -> list[tuple[str, str]]:
    size = f"{sheet.storage_bits / 8:,.0f} bytes, {sheet.bits_per_element:.7g} bits an element"
    return [(f"a tensor of {_shape_text(sheet)}", size)]


def _code_table(element: Float) -> Table:
    """Values of the non-negative codes, up to four in a row, so that all digits fit a narrow terminal."""
    columns = min(2**element.man, 4)
    codes = float_codes(element)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(Text("code"), no_wrap=True)
    for column in range(columns):
        table.add_column(Text(f"+{column}"), justify="right", no_wrap=True)
    for first in range(0, len(codes), columns):
        table.add_row(f"0x{first:02x}", *(f"{value:.12g}" for value in codes[first : first + columns]))
    return table


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _short(value: float) -> str:
    return f"{value:.5g}" if value < 1e6 else f"{value:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shape_text(sheet: FormatSheet) -> str:
    return " x ".join(map(str, sheet.shape))
