"""What a ticket saves: the dense and the compacted model, counted, priced and timed side by side."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from energy_models import HardwareProfile, ModelledEnergy, OpCounts, Range, count, estimate
from energy_models.units import si_text
from lowprec_eb.lowering import lower
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.step_times import StepTimes
from lowprec_eb.tickets.widths import LayerWidths, layer_widths

if TYPE_CHECKING:
    from rich.table import Table


class Saving(NamedTuple):
    """One quantity before and after; ``ratio`` is after over before, with its range where it is uncertain."""

    quantity: str
    unit: str
    before: float
    after: float
    ratio: Range

    def row(self) -> dict[str, Any]:
        """Plain data, for tables and files."""
        ratio = {"ratio": self.ratio.nominal, "ratio_low": self.ratio.low, "ratio_high": self.ratio.high}
        return {"quantity": self.quantity, "unit": self.unit, "before": self.before, "after": self.after} | ratio


@dataclass(frozen=True, eq=False)
class Cost:
    """One model on the example batch: its forward pass and its training step (forward and backward, no optimizer)."""

    parameters: int
    forward: OpCounts
    step: OpCounts
    energy: ModelledEnergy

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, profile: HardwareProfile, precision: Precision | None) -> Cost:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if precision is not None:
            model = copy.deepcopy(model)
            lower(model, precision)
        step = count(model, inputs)
        return cls(parameters, count(model, inputs, training=False), step, estimate(step, profile))

    @property
    def macs_by_layer(self) -> Mapping[str, int]:
        """Of the forward pass."""
        found: Counter[str] = Counter()
        for gemm in self.forward.gemms:
            found[gemm.layer] += gemm.macs
        return found


@dataclass(frozen=True, eq=False)
class Savings:
    """What compaction saves on one batch like the example inputs.

    Energy is modelled under ``profile``, in ``precision`` (None: as the models are), with the range of the ratio taken
    jointly, since what is open about a chip is the same before and after. ``times`` are measured, on this machine.
    """

    dense: Cost
    small: Cost
    profile: str
    precision: str | None
    times: StepTimes | None = None

    @classmethod
    def of(
        cls,
        dense: nn.Module,
        small: nn.Module,
        example_inputs: Inputs,
        *,
        profile: HardwareProfile,
        precision: str | Precision | None = None,
        times: StepTimes | None = None,
    ) -> Savings:
        chosen = None if precision is None else named_precision(precision)
        before, after = (Cost.of(model, example_inputs, profile, chosen) for model in (dense, small))
        return cls(before, after, profile.name, None if chosen is None else chosen.name, times)

    @cached_property
    def quantities(self) -> tuple[Saving, ...]:
        """Forward MACs, training FLOPs (2 a MAC), parameters, modelled energy and measured time of a step."""
        return tuple(self._quantities())

    def _quantities(self) -> Iterator[Saving]:
        dense, small = self.dense, self.small
        yield _exact("forward MACs", "", dense.forward.total_macs, small.forward.total_macs)
        yield _exact("training FLOPs", "", 2 * dense.step.total_macs, 2 * small.step.total_macs)
        yield _exact("parameters", "", dense.parameters, small.parameters)
        ratio = small.energy.ratio_to(dense.energy)
        yield Saving(f"modelled energy, {self.profile}", "J", dense.energy.nominal_j, small.energy.nominal_j, ratio)
        if self.times is not None:
            yield Saving("measured step time", "s", *self.times.median_s, self.times.ratio)

    def rows(self) -> list[dict[str, Any]]:
        """One row a quantity, as plain data."""
        return [saving.row() for saving in self.quantities]

    def layers(self, dense: nn.Module, small: nn.Module) -> list[LayerWidths]:
        """Widths, parameters and forward MACs by layer of the two models that this is of."""
        return layer_widths(dense, small, (self.dense.macs_by_layer, self.small.macs_by_layer))

    def table(self) -> Table:
        """The quantities for a terminal."""
        from rich import box
        from rich.table import Table  # 20 ms that importing the package need not take
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("on the example batch", no_wrap=True)
        for heading in ("before", "after", "after / before", "low - high"):
            table.add_column(heading, justify="right", no_wrap=True)
        for saving in self.quantities:
            table.add_row(*map(Text, _cells(saving)))
        return table

    def __str__(self) -> str:
        lines = []
        for saving in self.quantities:
            name, before, after, ratio, ends = _cells(saving)
            lines.append(f"{name}: {before} -> {after}, {ratio}{f' ({ends})' if ends else ''}")
        return "\n".join(lines)


def _exact(quantity: str, unit: str, before: int, after: int) -> Saving:
    ratio = after / before
    return Saving(quantity, unit, before, after, Range(ratio, ratio, ratio))


def _cells(saving: Saving) -> tuple[str, str, str, str, str]:
    ratio = saving.ratio
    ends = "" if ratio.low == ratio.high else f"{ratio.low:.3g} - {ratio.high:.3g}"
    before, after = (_text(value, saving.unit) for value in (saving.before, saving.after))
    return saving.quantity, before, after, f"x{ratio.nominal:.3g}", ends


def _text(value: float, unit: str) -> str:
    if not unit or value >= 1:
        return si_text(value, unit)
    factor, prefix = (1e3, "m") if value >= 1e-3 else (1e6, "u")
    return f"{factor * value:.3g} {prefix}{unit}"
