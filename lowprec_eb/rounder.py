"""Rounds the operands of one product, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energy_models.tracing import is_counting
from energy_models.tracing.stand_in import stand_in
from lowprec_eb import ranges
from lowprec_eb.formats import Format, at_bits, is_affine
from lowprec_eb.gemm import LEADING, rotated
from lowprec_eb.precision import READERS, Rounded
from lowprec_eb.quantize import draw_seeds, operator
from lowprec_eb.quantize.blocks import spread
from lowprec_eb.quantize.fast.packed import Packed, round_and_pack
from lowprec_eb.quantize.random_bits import random_words
from lowprec_eb.scope import Scope
from lowprec_eb.scratch import scratch

# Whose seeds are drawn; the second activation of attention takes the weight's place. Two GEMMs that read one operand in
# two formats share its random bits: each rounding is unbiased by itself.
_SEEDED = ("activation", "weight", "output", "error")
_ACCUMULATORS = ("output", "grad_input", "grad_weight")
_WORTH_PACKING = 1024  # elements; of fewer, codes save nothing that is worth the time


class Reading(NamedTuple):
    """One tensor as one GEMM reads it."""

    operand: str
    named: str  # the GEMM under which the precision says how
    gemm: str  # the GEMM itself; another one where both factors of a product are activations
    axis: int | None  # that it sums over, and the number of parts of it that are summed apart
    parts: int
    slot: str  # tells two operands of a kind apart


class Observation(NamedTuple):
    """One tensor that was rounded, for whoever watches."""

    scope: Scope
    product: int  # which of the scope's products in one forward pass
    operand: str
    gemm: str | None  # None: all that read the operand, or it is read by none
    x: Tensor  # as it is rounded: rotated where its GEMM rotates
    rounded: Tensor
    inside: Tensor  # which elements lie within the range of their block
    fmt: Format
    rounding: str


watchers: list[Callable[[Observation], None]] = []  # global: on a GPU the backward pass runs in a thread of its own


@contextmanager
def watching(watcher: Callable[[Observation], None]) -> Iterator[None]:
    """Show ``watcher`` every tensor that is rounded while this is entered, by whatever model."""
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)


def show(observation: Observation) -> None:
    for watcher in watchers:
        watcher(observation)


class Rounder:
    """The rounding of one product's operands.

    Seeds are drawn in the forward pass, so the stream of random numbers does not depend on the order in which autograd
    runs the layers. In eval mode everything rounds to nearest, the error of a backward pass included.

    Args:
        call: of the scope's products in one forward pass, which this one is.
        operands: the two factors.
    """

    def __init__(self, scope: Scope, training: bool, call: int, *operands: Tensor) -> None:
        self.scope, self.training, self.call = scope, training, call
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}  # that were found in this call
        sizes = [size for size in scope.rotations.values() if size is not None]
        slots = [*_SEEDED, *(_ACCUMULATORS if scope.readings["accumulator", None] is not None else ())]
        needed = bool(sizes) or (training and scope.is_stochastic)
        drawn = draw_seeds(len(slots) + (1 if sizes else 0), *operands) if needed else None
        # Sent at once, and not waited for: a copy for each rounding would make each of them wait for the device.
        device = operands[0].device
        self.seeds = None if drawn is None or not training else drawn.to(device, non_blocking=True).unbind()
        self.signs = (
            None if drawn is None or not sizes or is_counting() else (random_words(max(sizes), drawn[-1:]) | 1).sign()
        )

    def follow(self, x: Tensor, reading: Reading) -> None:
        """Let the running range of an operand, if it has one, see ``x``. Not part of rounding, so that it is traced."""
        found = self.scope.readings[reading.operand, reading.named]
        if self.training and found is not None and found.running is not None:
            if is_counting():  # a smallest and a largest number; what follows is done once for each block
                stand_in(x.detach(), "running_range", int_add=2)
                return
            key = self._key(reading.slot, reading.named)
            self._bounds[key] = ranges.follow(self.scope.ranges, key, x, found.fmt, found.running)

    def _key(self, slot: str, gemm: str | None) -> str:
        return f"{self.call}.{slot}.{gemm}"

    def packed(self, x: Tensor, reading: Reading, place: str) -> tuple[Tensor, Tensor, Packed] | None:
        """``x`` as a GEMM reads it, in scratch memory, with 8-bit codes to keep for the backward pass.

        None where it has no such codes, or somebody watches, counts or compiles.
        """
        found = self.scope.readings[reading.operand, reading.named]
        if found is None or found.prescale != 1 or self.scope.rotations[reading.gemm] is not None:
            return None
        fmt = self.scope.along(found.fmt, 0 if reading.axis is LEADING else reading.axis) or found.fmt
        bits, leading = self.scope.bits.get(reading.operand), reading.axis is LEADING and fmt is not found.fmt
        if bits is not None or leading or not self.training or self.scope.precision.backend not in ("auto", "fast"):
            return None
        if x.numel() < _WORTH_PACKING or watchers or not operator.runs_now(x):
            return None
        if (out := scratch.like(place, x)) is None:
            return None
        rounding = str(found.rounding)
        seed = self._seed((reading.slot, reading.named)) if rounding == "stochastic" else None
        known = self._bounds.get(self._key(reading.slot, reading.named)) if is_affine(fmt) else None
        bounds = known if known is not None and known[0].numel() == 1 else None
        codes = round_and_pack(x, fmt, rounding, seed, out, bounds)
        return None if codes is None else (out, *codes)

    def operand(self, x: Tensor, reading: Reading, place: str = "") -> Tensor:
        """``x`` as a GEMM reads it; at a ``place`` in scratch memory it is good until the next one there."""
        size = self.scope.rotations[reading.gemm]
        if size is not None and is_counting():  # a fast Walsh-Hadamard transform, and its signs
            x = stand_in(x, "rotation", fp_add=size.bit_length() - 1, fp_mul=1, int_add=1)
        elif size is not None:
            assert self.signs is not None
            x = rotated(x, reading.axis, reading.parts, size, self.signs.to(x.device, non_blocking=True))
        found = self.scope.readings[reading.operand, reading.named]
        if found is None:
            return x
        slot = reading.slot, reading.named
        turned = self.scope.along(found.fmt, 0 if reading.axis is LEADING else reading.axis)
        if turned is not None and reading.axis is LEADING and x.dim() != 2:
            rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
            return self._values(rows, found, turned, reading.operand, slot, place).view(x.shape)
        return self._values(x, found, turned or found.fmt, reading.operand, slot, place)

    def result(self, x: Tensor, operand: str, slot: tuple[str, str | None]) -> Tensor:
        """A result as it is written: the layer's output, or a product as it leaves the accumulator. ``x`` is spent."""
        found = self.scope.readings[operand, None]
        return (
            x if found is None else self._values(x, found, self.scope.along(found.fmt, -1) or found.fmt, operand, slot)
        )

    def accumulated(self, parts: Iterable[Tensor], gemm: str) -> Tensor:
        """The running sum of ``parts``; each of them, and the sum after each addition, is rounded to the accumulator.

        An addition is done in the parts' dtype and rounded after it: as one rounding to nearest where a format's
        significand has at most 11 bits in float32, 25 in float64 (Figueroa 1995, "When is double rounding innocuous?").

        Source: Wang et al. 2018 ("Training Deep Neural Networks with 8-bit Floating Point Numbers"), chunk-based
        accumulation, of which this is the sum between chunks; theirs rounds within a chunk too.
        """
        reading, slot = self.scope.readings["accumulator", None], ("accumulator", gemm)
        assert reading is not None
        fmt = self.scope.along(reading.fmt, -1) or reading.fmt
        running: Tensor | None = None
        exact: Any = 0.0
        within: Any = True
        for number, part in enumerate(parts):
            held, inside = self._quantized(part, reading, fmt, "accumulator", slot, 2 * number)
            within = within & inside
            if watchers:
                exact = exact + part
            if running is not None:
                held, inside = self._quantized(running + held, reading, fmt, "accumulator", slot, 2 * number + 1)
                within = within & inside
            running = held
        assert running is not None
        if watchers:
            self._show(exact, running, within, reading, "accumulator", slot)
        return running

    def reads_alike(self, one: Reading, other: Reading) -> bool:
        """Whether two GEMMs read the very same rounded tensor: then it is rounded once."""
        first = self.scope.readings[one.operand, one.named]
        same = self.scope.same[one.operand, one.named, other.named]
        if not same or any(self.scope.rotations[reading.gemm] is not None for reading in (one, other)):
            return False
        return first is None or one.axis == other.axis or self.scope.along(first.fmt, 0) is None

    def _is_read_once(self, operand: str) -> bool:
        """Whether all GEMMs that read an operand read the same rounded tensor."""
        one, *others = (self.scope.readings[operand, gemm] for gemm in READERS.get(operand, (None,)))
        rotates = any(size is not None for size in self.scope.rotations.values())
        alike = operand in READERS and not rotates and all(other == one for other in others)
        return alike and one is not None and self.scope.along(one.fmt, 0) is None

    def _seed(self, slot: tuple[str, str | None]) -> Tensor | None:
        if self.seeds is None:
            return None
        name, gemm = slot
        if name == "accumulator":
            return self.seeds[len(_SEEDED) + _ACCUMULATORS.index(str(gemm))]
        return self.seeds[_SEEDED.index("weight" if name == "second activation" else name)]

    def _values(
        self,
        x: Tensor,
        reading: Rounded,
        fmt: Format,
        operand: str,
        slot: tuple[str, str | None],
        place: str | None = None,
    ) -> Tensor:
        """Rounded, in scratch memory at ``place``; ``""`` is memory of its own, None is in place of ``x``."""
        out = None
        if place != "" and not watchers and operator.runs_now(x):
            out = x if place is None else scratch.like(place, x)
        result, inside = self._quantized(x, reading, fmt, operand, slot, out=out)
        if watchers:
            self._show(x, result, inside, reading, operand, slot)
        return result

    def _quantized(
        self,
        x: Tensor,
        reading: Rounded,
        fmt: Format,
        operand: str,
        slot: tuple[str, str | None],
        turn: int = 0,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Rounded values; which lie within the range, True if nobody watches. Each ``turn`` has its own random bits."""
        rounding: Any = reading.rounding if self.training else "nearest"
        seed = self._seed(slot) if rounding == "stochastic" else None
        offset = None if seed is None or turn == 0 else torch.full((), turn * x.numel(), dtype=torch.int64)
        bits, backend = self.scope.bits.get(operand), self.scope.precision.backend
        scales = self._running_scales(reading, self._key(*slot), x.device, bits)
        # Straight to the operator: no gradient passes here, and a compiler cannot trace the checks of `quantize`.
        try:
            divisor = (
                None
                if reading.prescale == 1 or is_counting()
                else _spread_scale(x, fmt, scales, bits) / reading.prescale
            )
            wide, grid = (x, fmt) if divisor is None else (x / divisor, fmt.element)
            scales, bits = (scales, bits) if divisor is None else ([], None)
            how = (rounding, seed, offset, scales, bits, backend)
            if out is None:
                found = operator.rounded(wide, grid, *how)
            else:
                operator.round_into(found := out, wide, grid, *how)
        except ValueError as error:
            raise type(error)(f"layer {self.scope.name!r}, {operand}: {error}") from error
        inside = operator.in_range(wide, repr(grid), scales, bits) if watchers else True
        if divisor is not None:
            found = found * divisor if out is None else found.mul_(divisor)
        return found, inside

    def _show(
        self, x: Tensor, result: Tensor, inside: Tensor, reading: Rounded, operand: str, slot: tuple[str, str | None]
    ) -> None:
        bits = self.scope.bits.get(operand)
        shown = reading.fmt if bits is None else at_bits(reading.fmt, int(bits))
        name = f"second {operand}" if slot[0].startswith("second") else operand
        gemm = None if self._is_read_once(operand) else slot[1]
        rounding = str(reading.rounding) if self.training else "nearest"
        show(Observation(self.scope, self.call, name, gemm, x, result, inside, shown, rounding))

    def _running_scales(self, reading: Rounded, key: str, device: torch.device, bits: Tensor | None) -> list[Tensor]:
        """What evaluation uses in place of the tensor's own range, if training saw any; training uses none."""
        known = self.scope.ranges.get(key)
        if self.training or reading.running is None or known is None or is_counting():
            return []
        return ranges.running_scales(known.to(device), reading.fmt, bits)


def _spread_scale(x: Tensor, fmt: Format, given: list[Tensor], bits: Tensor | None) -> Tensor:
    """Each element's scale, found from its block or given."""
    assert fmt.blocks is not None
    scale = (given or operator.scales_of(x, repr(fmt), bits))[0].to(x.dtype)
    return spread(scale, fmt.blocks, x.shape)
