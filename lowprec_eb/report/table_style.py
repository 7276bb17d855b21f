"""How the tables of a comparison look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text


def new_table(title: str, caption: str) -> Table:
    """Without columns yet."""
    return Table(
        title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )


def add_columns(table: Table, texts: Iterable[str], numbers: Iterable[str]) -> None:
    """Headings as Text, since markup would swallow a unit in brackets; folded, since a cut number is a wrong one."""
    for heading in texts:
        table.add_column(Text(heading), overflow="fold")
    for heading in numbers:
        table.add_column(Text(heading), justify="right", overflow="fold")


def fitted(table: Table, console: Console) -> Iterator[Table]:
    """The table, or where it is wider than the console several with a part of its columns each.

    Each has the leading columns of text, which say what a row is; the caption stands below the last. An interval stays
    beside what it is of, if both fit.
    """
    names = list(takewhile(lambda column: column.justify == "left", table.columns))
    widths = {column._index: _width(_part(table, [column]), console) for column in table.columns}
    blocks: list[list[Column]] = []
    for column in table.columns[len(names) :]:
        of_last = blocks and "interval" in str(column.header) and len(blocks[-1]) == 1
        if of_last and _joint([*names, *blocks[-1], column], widths) <= console.width:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    parts = _packed(names, blocks, widths, console.width)
    # The narrowest that makes no more parts, so that the last one is not a column or two.
    least = next(w for w in range(1, console.width + 1) if len(_packed(names, blocks, widths, w)) <= len(parts))
    parts = _packed(names, blocks, widths, least)
    for place, columns in enumerate(parts, 1):
        found = _part(table, columns)
        if len(parts) > 1:
            found.title = Text(f"{table.title} ({place} of {len(parts)})")
        if place == len(parts):
            found.caption = table.caption
        yield found


def _packed(
    names: Sequence[Column], blocks: Sequence[Sequence[Column]], widths: Mapping[int, int], width: int
) -> list[list[Column]]:
    """Columns of each part: as many blocks as go into the width, one at least."""
    parts = [list(names)]
    for block in blocks:
        if _joint([*parts[-1], *block], widths) > width and len(parts[-1]) > len(names):
            parts.append(list(names))
        parts[-1] += block
    return parts


def _joint(columns: Sequence[Column], widths: Mapping[int, int]) -> int:
    """A column alone has two edges, and beside another it shares one."""
    return sum(widths[column._index] - 1 for column in columns) + 1


def _part(table: Table, columns: Sequence[Column]) -> Table:
    """With some of its columns, without a caption."""
    found = new_table(str(table.title), "")
    found.caption = None
    found.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
    found.rows = list(table.rows)
    return found


def _width(table: Table, console: Console) -> int:
    """What it takes so that no cell is folded."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum
