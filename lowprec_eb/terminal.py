"""What the commands share: the console, and errors said in words."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

_WIDTH = 150  # of a table in a file or a pipe


def new_console() -> Console:
    """The terminal at its own width; 150 columns in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


@contextmanager
def explained(console: Console) -> Iterator[None]:
    """Say what is wrong in words for errors that the person at the keyboard can mend."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError, BrokenProcessPool) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on", highlight=False)
        raise typer.Exit(130) from None
