"""``lowprec-eb ticket``: look at saved tickets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_models.units import share_text
from lowprec_eb.report.figures import save_picture
from lowprec_eb.report.ticket_pictures import compared_tickets, ticket_picture
from lowprec_eb.terminal import explained, new_console
from lowprec_eb.tickets import Ticket
from lowprec_eb.tickets.masks import chance_distance

app = typer.Typer(no_args_is_help=True, help="Look at saved tickets.")


@app.callback()
def main() -> None:
    """Look at saved tickets."""


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="What Ticket.save or lowprec-eb search wrote.")],
    compare: Annotated[Path | None, typer.Option(help="A second ticket of the same model.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw which channels stay.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file of --plot, or a folder for it.")] = Path(),
) -> None:
    """Print a ticket: channels by group, and how it was drawn; with --compare how far two of them differ."""
    console = new_console()
    with explained(console):
        ticket = Ticket.load(file)
        other = None if compare is None else Ticket.load(compare)
        console.print(_table(ticket, other))
        for line in _notes(ticket, other):
            console.print(Text(f"- {line}"))
        if plot:
            _draw(ticket, other, (file, compare), out, console)


def _table(ticket: Ticket, other: Ticket | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("group", overflow="fold", min_width=8)
    parts = {} if other is None else ticket.compare(other)
    of_two = ("both", "first", "second", "neither") if parts else ()
    for heading in ("unit", "of", "stay", "share", *of_two):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for name, mask in ticket.masks.items():
        kept = ticket.widths[name]
        cells = [name, ticket.unit(name), str(mask.numel()), str(kept), share_text(kept, mask.numel())]
        table.add_row(*map(Text, cells + [str(parts[name][part]) for part in of_two]))
    table.add_section()
    kept, every = ticket.channels_kept, ticket.channels_total
    sums = [str(sum(of[part] for of in parts.values())) for part in of_two]
    table.add_row(*map(Text, ["all", "", str(every), str(kept), share_text(kept, every), *sums]))
    return table


def _notes(ticket: Ticket, other: Ticket | None) -> list[str]:
    found = [_origin(ticket)]
    if other is None:
        return found
    widths = tuple(mask.numel() for mask in ticket.masks.values())
    chance = chance_distance(tuple(ticket.widths.values()), tuple(other.widths.values()), widths)
    distance = ticket.distance(other)
    times = f", x{distance / chance:.3g} of that" if chance else ""
    found.append(f"the second: {_origin(other)}")
    found.append(f"mask distance {distance:.4g}; two random tickets of these widths: {chance:.4g} on average{times}")
    return found


def _origin(ticket: Ticket) -> str:
    settled = f"settled after {ticket.epoch} epochs" if ticket.on_time else f"not settled, of epoch {ticket.epoch}"
    how = "coupled groups" if ticket.groups is not None else "one group per BatchNorm"
    return f"ratio {ticket.ratio:g}, {settled}, {how}, precision {ticket.precision or 'not said'}"


def _draw(ticket: Ticket, other: Ticket | None, files: tuple[Path, Path | None], out: Path, console: Console) -> None:
    path = out if out.suffix == ".png" else out / f"{files[0].stem}.png"
    if other is None or files[1] is None:
        figure = ticket_picture(ticket, files[0].stem)
    else:
        one, two = _names(files[0], files[1])
        figure = compared_tickets(ticket, other, (one, two), f"{one} and {two}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)
    console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The files' names, or their folders' too where these are alike."""
    if first.name != second.name:
        return first.stem, second.stem
    return f"{first.resolve().parent.name}/{first.stem}", f"{second.resolve().parent.name}/{second.stem}"
