"""What rounding does to each layer's operands in one training step: the first thing to look at when a run diverges."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowprec_eb.checkpoints import write_text
from lowprec_eb.formats import Format, format_name
from lowprec_eb.layers import LoweredModule
from lowprec_eb.rounder import Observation, watching
from lowprec_eb.scope import Scope

if TYPE_CHECKING:
    from rich.table import Table

OPERANDS = (
    *("activation", "second activation", "weight", "second weight"),
    *("error", "accumulator", "output", "normalization"),
)
_GEMMS = (None, "output", "grad_input", "grad_weight")
_Key = tuple[str, int, str, str | None]


@dataclass(frozen=True)
class TracedOperand:
    """One operand of one product of a layer, over all times that it was rounded for this GEMM in the step.

    Args:
        layer: its name in the model. product: which of the layer's products; attention has several.
        operand: a field of :class:`lowprec_eb.Precision`; ``second activation`` is the other factor of a product of
            two activations, as in attention.
        gemm: the GEMM under which the precision has its format, where GEMMs read the operand differently (attention's
            backward products are under ``grad_input`` and, for activations, ``grad_weight``); None where all that read
            it read the same rounded tensor.
        rounding: as it was done, so ``nearest`` in eval mode.
        elements: rounded in all. Of an accumulator in chunks, whole sums: x is the sum in full precision, clamped is
            what was so on the way.
        saturation_rate: share of the elements beyond the largest number of their block that were clamped to a finite
            one. overflow_rate: share that was finite and became an infinity or NaN.
        underflow_rate: share of the non-zero elements that became zero.
        nonfinite_rate: share of the elements that were NaN or infinite before.
        snr_db: 10 log10 of sum x^2 over sum (rounded - x)^2, over finite x; infinite if rounding changed nothing, minus
            infinity if an element overflowed.
        smallest, largest: finite magnitudes before rounding, the smallest of the non-zero ones; 0 if all are zero.
    """

    layer: str
    product: int
    operand: str
    gemm: str | None
    fmt: Format
    rounding: str
    elements: int
    saturation_rate: float
    overflow_rate: float
    underflow_rate: float
    nonfinite_rate: float
    snr_db: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class QuantizationTrace:
    """What :func:`trace_quantization` saw: operands by layer, in the model's order.

    not_reached: lowered layers that round something and had nothing to round for this batch.
    """

    operands: tuple[TracedOperand, ...]
    not_reached: tuple[str, ...] = ()

    def worst(self, count: int | None = None) -> tuple[TracedOperand, ...]:
        """The operands by signal-to-noise ratio, the lowest first; all, or ``count`` of them."""
        return tuple(sorted(self.operands, key=lambda item: (item.snr_db, -item.saturation_rate))[:count])

    def rows(self) -> list[dict[str, Any]]:
        """One row an operand, as plain data; the format as its constructor call."""
        names = [field.name for field in fields(TracedOperand)]
        return [{n: repr(item.fmt) if n == "fmt" else getattr(item, n) for n in names} for item in self.operands]

    def to_csv(self, path: str | Path) -> None:
        """Write one line an operand; infinite decibels as ``inf`` and ``-inf``, an empty cell for no GEMM."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(TracedOperand)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        write_text(path, text.getvalue())

    def to_json(self, path: str | Path) -> None:
        """Write the rows and ``not_reached``; infinite decibels, which JSON has not, as the texts "inf" and "-inf"."""
        rows = [row | {"snr_db": _json_number(row["snr_db"])} for row in self.rows()]
        tree = {"operands": rows, "not_reached": list(self.not_reached)}
        write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")

    def table(self, order: Literal["worst", "layer"] = "worst", count: int | None = None) -> Table:
        """The rows for a terminal of 120 columns: the worst signal-to-noise ratio first, or by layer."""
        if order not in ("worst", "layer"):
            raise ValueError(f"order must be 'worst' or 'layer', got {order!r}")
        from rich import box
        from rich.table import Table
        from rich.text import Text

        chosen = self.worst(count) if order == "worst" else self.operands[:count]
        shown = {"saturated": True, "underflow": True}
        shown["overflow"] = any(item.overflow_rate for item in self.operands)
        shown["NaN, inf"] = any(item.nonfinite_rate for item in self.operands)
        rates = {name: rate for name, rate in _RATES.items() if shown[name]}
        missing = "".join(f"\nNothing to round: {name or '(model)'}." for name in self.not_reached)
        table = Table(title="What rounding does", caption=Text(_CAPTION + missing), box=box.SIMPLE_HEAD)
        table.show_edge, table.pad_edge, table.padding = False, False, (0, 1, 0, 0)
        table.add_column("layer", overflow="fold", min_width=8)
        table.add_column("operand", no_wrap=True)
        apart = any(item.gemm for item in self.operands)
        if apart:
            table.add_column("for GEMM", no_wrap=True)
        table.add_column("format", overflow="fold", min_width=9)
        for heading in ("SNR\n[dB]", *(f"{name}\n[%]" for name in rates), "range"):
            table.add_column(heading, justify="right", no_wrap=True)
        several = places_with_several_products(self.operands)
        for item in chosen:
            shares = (f"{100 * rate(item):.3g}" for rate in rates.values())
            place, snr = place_of(item, several), f"{item.snr_db:.1f}" if item.largest else "all zero"
            span = f"{item.smallest:.2g} .. {item.largest:.2g}"
            gemm = (item.gemm or "",) if apart else ()
            cells = (place, item.operand, *gemm, format_name(item.fmt), snr, *shares, span)
            table.add_row(*map(Text, cells))
        return table

    def __str__(self) -> str:
        lines = []
        for row in self.worst():
            gemm = f" for {row.gemm}" if row.gemm else ""
            rates = f"saturated {row.saturation_rate:.3%}, underflow {row.underflow_rate:.3%}"
            lines.append(f"{row.layer or '(model)'}: {row.operand}{gemm}: SNR {row.snr_db:.1f} dB, {rates}")
        return "\n".join(lines)


_CAPTION = (
    "Shares of the elements, underflow of the non-zero ones; range: smallest non-zero and largest magnitude before "
    "rounding."
)


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


_RATES: dict[str, Callable[[TracedOperand], float]] = {
    "saturated": lambda item: item.saturation_rate,
    "overflow": lambda item: item.overflow_rate,
    "underflow": lambda item: item.underflow_rate,
    "NaN, inf": lambda item: item.nonfinite_rate,
}


def places_with_several_products(operands: Sequence[TracedOperand]) -> set[str]:
    """Layers whose products are told apart by a number."""
    return {item.layer for item in operands if item.product > 0}


def place_of(item: TracedOperand, several: set[str]) -> str:
    """The layer for people, with the number of the product where it has several."""
    return (item.layer or "(model)") + (f" #{item.product}" if item.layer in several else "")


# ---- tracing -----------------------------------------------------------------------------------------------------


def trace_quantization(
    model: nn.Module,
    batch: Tensor | Sequence[Any] | Mapping[str, Any],
    loss: Callable[[Any], Tensor] | None = None,
) -> QuantizationTrace:
    """Run one forward and backward pass and say what rounding did to every operand that it rounded.

    Everything is left as it was: gradients, buffers, running ranges, random state. The model runs in the mode that it
    is in, and draws the random numbers that the next step will draw; a compiled model runs uncompiled.

    Args:
        model: lowered by :func:`lowprec_eb.lower`.
        batch: one tensor, the positional arguments, or the keyword arguments.
        loss: of the model's output, a tensor of one element; it decides how large the errors are. By default the mean
            square of the output's elements (of each tensor, summed, where the output holds several).

    Raises:
        ValueError: the model is not lowered; nothing was rounded; ``loss`` gives no tensor of one element.
    """
    scopes = {id(m.lowering): (plain_name(n), m.lowering) for n, m in model.named_modules() if _is_lowered(m)}
    if not scopes:
        raise ValueError(f"{type(model).__name__} has no lowered layer: lp.lower(model, ...) first")
    recorder = _Recorder({key: name for key, (name, _) in scopes.items()})
    with ExitStack() as stack:
        for context in (uncompiled(), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        stack.enter_context(_unchanged(model, [scope for _, scope in scopes.values()]))
        stack.enter_context(watching(recorder))
        _forward_and_backward(model, batch, loss or _mean_square)
    if not recorder.tallies:
        raise ValueError(
            f"no layer of {type(model).__name__} rounded anything: its precision leaves every operand in float32, or "
            "no lowered layer was reached"
        )
    reached = {layer for layer, *_ in recorder.tallies}
    missed = [name for name, scope in scopes.values() if name not in reached and not scope.is_plain]
    return QuantizationTrace(recorder.operands(), tuple(missed))


def _is_lowered(module: nn.Module) -> bool:
    return isinstance(module, LoweredModule)


def plain_name(name: str) -> str:
    """Without what ``torch.compile`` puts into names."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled modules run as written. Who has compiled one has loaded the compiler, which takes seconds to load."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _forward_and_backward(model: nn.Module, batch: Any, loss: Callable[[Any], Tensor]) -> None:
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*((batch,) if isinstance(batch, Tensor) else batch))
    value = loss(output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"loss must give a tensor of one element, got {shape}")
    inputs = [leaf for leaf in pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch) if _wants(leaf)]
    wanted = [*(p for p in model.parameters() if p.requires_grad), *inputs]
    if wanted and value.requires_grad:  # not `backward`, which would change .grad and run what hangs on it
        torch.autograd.grad(value.sum(), wanted, allow_unused=True)


def _wants(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _mean_square(output: Any) -> Tensor:
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors:
        raise ValueError(f"the model's output, a {type(output).__name__}, holds no tensor of numbers: give loss")
    return torch.stack([x.float().square().mean() for x in tensors]).sum()


@contextmanager
def _unchanged(model: nn.Module, scopes: Sequence[Scope]) -> Iterator[None]:
    """Random state, buffers and running ranges as they were, whatever happens inside."""
    owned = [
        (m, name, b, b.detach().clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    ranges = [(scope, dict(scope.ranges)) for scope in scopes]
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    with torch.random.fork_rng(sorted(device.index for device in devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, values in owned:
                    module._buffers[name] = buffer
                    buffer.copy_(values)
            for scope, known in ranges:
                scope.ranges.clear()
                scope.ranges.update(known)


class _Recorder:
    """Sums up what it is shown, by layer, product, operand and GEMM."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.tallies: dict[_Key, _Tally] = {}

    def __call__(self, seen: Observation) -> None:
        layer = self.names.get(id(seen.scope))
        if layer is None:  # another model, in another thread
            return
        key = (layer, seen.product, seen.operand, seen.gemm)
        tally = self.tallies.setdefault(key, _Tally(seen.fmt, seen.rounding))
        tally.add(seen.x, seen.rounded, seen.inside)

    def operands(self) -> tuple[TracedOperand, ...]:
        place = {name: index for index, name in enumerate(self.names.values())}

        def order(key: _Key) -> tuple[int, ...]:
            layer, product, operand, gemm = key
            return place[layer], product, OPERANDS.index(operand), _GEMMS.index(gemm)

        return tuple(self.tallies[key].operand(key) for key in sorted(self.tallies, key=order))


class _Tally:
    """Counts and sums over the tensors of one operand."""

    def __init__(self, fmt: Format, rounding: str) -> None:
        self.fmt, self.rounding = fmt, rounding
        self.sums = [0.0] * 8
        self.smallest, self.largest = math.inf, 0.0

    def add(self, x: Tensor, rounded: Tensor, inside: Tensor) -> None:
        if x.numel() == 0:
            return
        finite, becomes_finite = x.isfinite(), rounded.isfinite()
        exact = torch.where(finite, x.double(), 0.0)
        noise = torch.where(finite, rounded.double() - x.double(), 0.0)
        size = exact.abs()
        found = (
            finite.logical_not().sum(),
            (~inside & becomes_finite).sum(),
            (finite & ~becomes_finite).sum(),
            (size > 0).sum(),
            ((size > 0) & (rounded == 0)).sum(),
            exact.square().sum(),
            noise.square().sum(),
            torch.where(size > 0, size, torch.inf).amin(),
            size.amax(),
        )
        *sums, smallest, largest = torch.stack([part.double() for part in found]).tolist()  # one wait for the device
        self.sums = [old + new for old, new in zip(self.sums, (x.numel(), *sums), strict=True)]
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)

    def operand(self, key: _Key) -> TracedOperand:
        count, nonfinite, clamped, overflowed, nonzero, vanished, signal, noise = self.sums
        return TracedOperand(
            *key,
            fmt=self.fmt,
            rounding=self.rounding,
            elements=int(count),
            saturation_rate=_share(clamped, count),
            overflow_rate=_share(overflowed, count),
            underflow_rate=_share(vanished, nonzero),
            nonfinite_rate=_share(nonfinite, count),
            snr_db=-math.inf if overflowed else _decibels(signal, noise),
            smallest=self.smallest if math.isfinite(self.smallest) else 0.0,
            largest=self.largest,
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
