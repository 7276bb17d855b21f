"""What a lowered module carries: its precision, prepared for every call, and what changes while it trains.

A scope is one plain attribute of the module, so it is copied, pickled and deep-copied with it and adds no key to the
model's state_dict.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from lowprec_eb.formats import Format, at_bits
from lowprec_eb.formats.base import MAX_DIMENSIONS
from lowprec_eb.precision import READERS, Precision

# How each operand is read, by (operand, GEMM); results have no GEMM.
READINGS: tuple[tuple[str, str | None], ...] = (
    ("activation", "output"),
    ("activation", "grad_weight"),
    ("weight", "output"),
    ("weight", "grad_input"),
    ("error", "grad_input"),
    ("error", "grad_weight"),
    ("output", None),
    ("accumulator", None),
    ("normalization", None),
)
GEMMS = ("output", "grad_input", "grad_weight")
_AXES = range(-2, MAX_DIMENSIONS)


@dataclass
class Scope:
    """The low precision of one module.

    ranges: running scales of operands, by call and operand; kept outside the model's state_dict, see
    :func:`lowprec_eb.precision_state`. bits: 0-d tensors that stand in for an operand's own number of bits, so that a
    change recompiles nothing; see :func:`lowprec_eb.set_bits`.
    """

    name: str
    precision: Precision
    ranges: dict[str, Tensor] = field(default_factory=dict)
    bits: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.readings = {key: self.precision.of(*key) for key in READINGS}
        self.rotations = {gemm: self.precision.rotation(gemm) for gemm in GEMMS}
        # Compared here: a compiler may take the numbers in a format for variables.
        self.same = {
            (operand, one, other): self.readings[operand, one] == self.readings[operand, other]
            for operand, readers in READERS.items()
            for one in readers
            for other in readers
        }
        used = [reading for reading in self.readings.values() if reading is not None]
        follows = self.precision.block_axis == "reduction"
        turned = {reading.fmt for reading in used if follows and reading.fmt.block_size is not None}
        self._along = {repr(fmt): {axis: _along(fmt, axis) for axis in _AXES} for fmt in turned}
        self.is_plain = not used
        self.is_stochastic = any(reading.rounding == "stochastic" for reading in used)

    def along(self, fmt: Format, axis: int) -> Format | None:
        """``fmt`` with its blocks along the dimension that a GEMM sums over; None for formats that follow none."""
        turned = self._along.get(repr(fmt))
        return None if turned is None else turned[axis]

    def operand_format(self, gemm: str, operand: str) -> Format | None:
        """The format in which ``gemm`` reads ``operand`` (or sums) now, set bits included; None is full precision."""
        found = self.precision.in_gemm(gemm, operand)
        if found is None:
            return None
        return at_bits(found.fmt, int(self.bits[operand])) if operand in self.bits else found.fmt


def _along(fmt: Format, axis: int) -> Format:
    along: Format = replace(fmt, block_axis=axis)  # type: ignore[type-var]
    return along
