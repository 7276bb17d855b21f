"""A drawn ticket with all that follows from it: the smaller model, widths, savings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from energy_models import HardwareProfile, load_profile
from energy_models.units import si_text
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import Compaction, plan_compaction
from lowprec_eb.tickets.equality import check_compaction
from lowprec_eb.tickets.groups import channel_groups
from lowprec_eb.tickets.history import ScoreHistory
from lowprec_eb.tickets.savings import Savings
from lowprec_eb.tickets.step_times import StepTimes, measure_steps
from lowprec_eb.tickets.ticket import Ticket
from lowprec_eb.tickets.widths import LayerWidths

if TYPE_CHECKING:
    from rich.table import Table

_MOST_LAYERS, _MOST_NAMES = 40, 5  # in a table, in a note


@dataclass(frozen=True, eq=False)
class DrawnTicket:
    """A ticket, the model cut down to it, and what that saves.

    Args:
        ticket: the channels that stay. ``ticket.on_time`` is False where none had settled in time.
        dense: the model that it was drawn from, with the weights of that time.
        model: the smaller plain model; its outputs equal those of ``dense`` after ``ticket.apply(dense)``.
        compaction: how the one became the other: ``.optimizer_state``, ``.select``.
        unprunable: layers with channels that no ticket can drop, and why.
        example_inputs: the batch that savings are of.
        history: the scores of every look, for :func:`lowprec_eb.replay` and pictures; None where there were none.
        profile, precision: under which energy is modelled; precision None: as the models are.
    """

    ticket: Ticket
    dense: nn.Module
    model: nn.Module
    compaction: Compaction
    unprunable: Mapping[str, str]
    example_inputs: Inputs
    history: ScoreHistory | None
    profile: HardwareProfile
    precision: Precision | None = None

    @classmethod
    def of(
        cls,
        ticket: Ticket,
        dense: nn.Module,
        example_inputs: Inputs,
        *,
        unprunable: Mapping[str, str] | None = None,
        history: ScoreHistory | None = None,
        profile: str | HardwareProfile = "45nm",
        precision: str | Precision | None = None,
    ) -> DrawnTicket:
        """Cut ``dense`` down to a ticket that is there already.

        Raises:
            ValueError: see :func:`lowprec_eb.compact`.
        """
        if unprunable is None:
            unprunable = channel_groups(dense, example_inputs, coupled=ticket.groups is not None).unprunable
        compaction = plan_compaction(dense, ticket, example_inputs)
        check_compaction(compaction, dense, example_inputs)
        chip = load_profile(profile) if isinstance(profile, str) else profile
        chosen = None if precision is None else named_precision(precision)
        small = compaction.apply(dense)
        return cls(ticket, dense, small, compaction, unprunable, example_inputs, history, chip, chosen)

    @property
    def zeroed(self) -> Mapping[str, int]:
        """By group, how many dropped channels stay in the model as zeros, since others write them or need them."""
        return self.compaction.zeroed

    # ---- what it saves ----

    @cached_property
    def _counted(self) -> Savings:
        inputs, profile, precision = self.example_inputs, self.profile, self.precision
        return Savings.of(self.dense, self.model, inputs, profile=profile, precision=precision)

    @cached_property
    def _measured(self) -> StepTimes:
        return measure_steps(self.dense, self.model, self.example_inputs)

    def savings(self, times: StepTimes | None = None, *, measure: bool = True) -> Savings:
        """Forward MACs, training FLOPs, parameters, modelled energy and measured time of a step on the example batch.

        The first call takes some seconds for the measurement; ``measure=False`` leaves it out. ``times``: measured
        before.
        """
        return replace(self._counted, times=times or (self._measured if measure else None))

    # ---- widths ----

    def layers(self) -> list[LayerWidths]:
        """Widths, parameters and forward MACs of every layer with parameters, before and after."""
        return self._counted.layers(self.dense, self.model)

    def rows(self) -> list[dict[str, Any]]:
        """:meth:`layers` as plain data, one row a layer."""
        return [layer.row() for layer in self.layers()]

    def group_rows(self) -> list[dict[str, Any]]:
        """One row a channel group: its unit (channel or head), how many there were, stay, and stay as zeros."""
        ticket = self.ticket
        return [
            {
                "group": name,
                "unit": ticket.unit(name),
                "before": mask.numel(),
                "after": ticket.widths[name],
                "zeroed": self.zeroed.get(name, 0),
            }
            for name, mask in ticket.masks.items()
        ]

    def table(self, limit: int | None = _MOST_LAYERS) -> Table:
        """Layers that multiply, for a terminal: the ``limit`` with the most MACs (None: all)."""
        from rich import box
        from rich.table import Table  # 20 ms that importing the package need not take
        from rich.text import Text

        layers = [layer for layer in self.layers() if layer.multiplies]
        kept = sorted(layers, key=lambda layer: -(layer.macs or (0, 0))[0])[:limit]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("layer", overflow="fold", min_width=8)
        table.add_column("type", overflow="fold")
        for heading in ("channels in", "channels out", "parameters", "forward MACs"):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in layers:
            if layer in kept:
                table.add_row(*map(Text, _layer_cells(layer)))
        if len(kept) < len(layers):
            table.caption = Text(f"the {len(kept)} largest of {len(layers)} layers that multiply; rows() has all")
            table.caption_justify = "left"
        return table

    def notes(self) -> list[str]:
        """When the ticket was drawn, what it drops, and what could not go."""
        return list(self._notes())

    def _notes(self) -> Iterator[str]:
        ticket = self.ticket
        if ticket.on_time:
            yield f"ticket after {ticket.epoch} epochs, {_distance_text(ticket)}"
        else:
            yield f"no ticket had settled by the last epoch; the most settled mask, of epoch {ticket.epoch}, is taken"
        yield f"{ticket.channels_kept} of {ticket.channels_total} channels stay"
        if self.zeroed:
            of = _listed([f"{name} ({number})" for name, number in self.zeroed.items()])
            yield f"{sum(self.zeroed.values())} dropped channels stay as zeros, since others write or need them: {of}"
        if self.unprunable:
            yield f"layers with channels that cannot be pruned: {_listed(list(self.unprunable))}"

    def __str__(self) -> str:
        """Notes, and the savings without the measurement if that has not been made."""
        measured = "_measured" in self.__dict__
        return "\n".join([*self.notes(), str(self.savings(measure=measured))])


def _layer_cells(layer: LayerWidths) -> tuple[str, ...]:
    pairs = (layer.read, layer.written, layer.parameters, layer.macs or (None, None))
    return layer.name or "(model)", layer.layer, *(_change(pair) for pair in pairs)


def _change(pair: tuple[int | None, int | None]) -> str:
    before, after = ("?" if number is None else si_text(number) for number in pair)
    return before if before == after else f"{before} -> {after}"


def _distance_text(ticket: Ticket) -> str:
    return f"largest of the distances that decided: {max(ticket.distances, default=0.0):.3g}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
