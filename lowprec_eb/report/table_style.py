"""How the tables of a comparison look."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
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
