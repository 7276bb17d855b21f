"""What getting data ready says while it lasts: on stderr, so that a program's own output stays its own."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Notices:
    """Lines, and bars where stderr is a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TaskProgressColumn())
        self.bars = Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text)

    def progress(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items, counted in a bar."""
        bar = self.bars.add_task(what, total=total)
        for item in items:
            yield item
            self.bars.advance(bar)
