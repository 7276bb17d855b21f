"""Number formats as the counts see them: how many bits an element has, and what a tensor takes as stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

FP32_BITS = 32


class NumberFormat(Protocol):
    """A number format; `lowprec_eb.formats` satisfies it, `FormatSpec` spells one out, any other object may serve."""

    @property
    def kind(self) -> str:
        """What arithmetic it takes: "float", "block_float", "fixed_point", "integer", "scaled_float", "mx"."""

    @property
    def bits(self) -> int:
        """Stored bits of one element, sign included, a shared scale excluded."""

    @property
    def exponent_bits(self) -> int:
        """The element's own exponent bits (0 for block float, fixed point and integers)."""

    @property
    def mantissa_bits(self) -> int:
        """The element's own mantissa bits, without sign and hidden bit."""

    @property
    def scale_bits(self) -> int:
        """Bits of one shared scale; 0 = there is none."""

    @property
    def block_dim(self) -> int | tuple[int, ...] | None:
        """One scale per slice of this dimension, or index of these; None = one for the whole tensor."""

    @property
    def block_size(self) -> int | None:
        """Elements of a fixed-size block; None = blocks are slices or the whole tensor."""

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits that a tensor of `shape` takes, every scale included."""


@dataclass(frozen=True)
class FormatSpec:
    """A `NumberFormat` spelled out field by field. Blocks of `block_size` lie along the last dimension."""

    kind: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    scale_bits: int = 0
    block_dim: int | tuple[int, ...] | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError(f"a number format needs at least 1 bit, this one has bits={self.bits}")

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits that a tensor of `shape` takes, every scale included."""
        return math.prod(shape) * self.bits + self._scales(shape) * self.scale_bits

    def _scales(self, shape: Sequence[int]) -> int:
        if not shape:
            return 1
        if self.block_size is not None:
            return math.prod(shape[:-1]) * -(-shape[-1] // self.block_size)
        if self.block_dim is None:
            return 1
        kept = self.block_dim if isinstance(self.block_dim, tuple) else (self.block_dim,)
        return math.prod(shape[dim] for dim in kept)


FP32: NumberFormat = FormatSpec("float", bits=FP32_BITS, exponent_bits=8, mantissa_bits=23)
FP64: NumberFormat = FormatSpec("float", bits=64, exponent_bits=11, mantissa_bits=52)
FP16: NumberFormat = FormatSpec("float", bits=16, exponent_bits=5, mantissa_bits=10)
BF16: NumberFormat = FormatSpec("float", bits=16, exponent_bits=8, mantissa_bits=7)


def is_fp32(fmt: NumberFormat) -> bool:
    """Whether `fmt` is plain 32-bit floating point, by whatever object it is described."""
    return (fmt.kind, fmt.bits, fmt.exponent_bits, fmt.mantissa_bits) == ("float", 32, 8, 23)


# What chips multiply in, by the usual names.
UNIT_FORMATS: dict[str, NumberFormat] = {
    "fp64": FP64,
    "fp32": FP32,
    "tf32": FormatSpec("float", bits=19, exponent_bits=8, mantissa_bits=10),
    "bf16": BF16,
    "fp16": FP16,
    "fp8": FormatSpec("float", bits=9, exponent_bits=5, mantissa_bits=3),  # E4M3 and E5M2 both
    "fp4": FormatSpec("float", bits=4, exponent_bits=2, mantissa_bits=1),
    "int16": FormatSpec("integer", bits=16, exponent_bits=0, mantissa_bits=15),
    "int8": FormatSpec("integer", bits=8, exponent_bits=0, mantissa_bits=7),
    "int4": FormatSpec("integer", bits=4, exponent_bits=0, mantissa_bits=3),
}


def holds(unit: NumberFormat, fmt: NumberFormat) -> bool:
    """Whether every element of `fmt`, its shared scale aside, is a number of `unit`."""
    if fmt.exponent_bits:
        return unit.exponent_bits >= fmt.exponent_bits and unit.mantissa_bits >= fmt.mantissa_bits
    if unit.exponent_bits:
        return unit.mantissa_bits + 1 >= fmt.bits - 1  # magnitudes of up to 2^(bits - 1)
    return unit.bits >= fmt.bits
