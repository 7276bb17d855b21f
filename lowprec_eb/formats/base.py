"""What every number format shares: which elements share a scale, ranges, and stored bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from lowprec_eb.formats.elements import FixedPoint, Float

MAX_DIMENSIONS = 8


def check_range(format_name: str, field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{format_name}: {field} must be a whole number from {low} to {high}, got {value!r}")


def check_choice(format_name: str, field: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices or type(value) not in {type(choice) for choice in choices}:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{format_name}: {field} must be one of {listed}, got {value!r}")


def check_block(format_name: str, block: object, block_axis: object) -> None:
    check_range(format_name, "block", block, 1, 1 << 30)
    check_range(format_name, "block_axis", block_axis, -MAX_DIMENSIONS, MAX_DIMENSIONS - 1)


@dataclass(frozen=True)
class Blocks:
    """Which elements of a tensor share one scale.

    Without ``size``: each index of the dimensions ``slices`` has its own scale; no slices are one scale for the whole
    tensor. With ``size``: every run of that many consecutive elements along ``axis`` has one; a last run may be
    shorter.
    """

    slices: tuple[int, ...] = ()
    size: int | None = None
    axis: int = -1

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of ``shape``: as many dimensions, so per-slice scales broadcast.

        Raises:
            ValueError: the tensor lacks a dimension that this names. A 0-d tensor is always one block.
        """
        rank = len(shape)
        if rank == 0:
            return ()
        wanted = self.slices if self.size is None else (self.axis,)
        if missing := [d for d in wanted if not -rank <= d < rank]:
            raise ValueError(
                f"blocks along dimension {missing[0]} need a tensor with more than "
                f"{missing[0] if missing[0] >= 0 else -missing[0] - 1} dimensions, got shape {tuple(shape)}"
            )
        if self.size is None:
            kept = {d % rank for d in self.slices}
            return tuple(n if d in kept else 1 for d, n in enumerate(shape))
        axis = self.axis % rank
        return tuple(-(-n // self.size) if d == axis else n for d, n in enumerate(shape))


WHOLE_TENSOR = Blocks()


class Format:
    """A number format: elements of ``element`` times a scale that the elements of a block share.

    A format without a scale is its own element. The class satisfies ``energy_models.NumberFormat``.
    """

    kind: ClassVar[str]
    blocks: Blocks | None = None  # which elements share a scale; None without scales
    _text: str  # made once: formats cross the operators' schema as text, on every call

    def __post_init__(self) -> None:
        self.check()
        for name, value in self.canonical().items():
            object.__setattr__(self, name, value)
        for name, value in (*self.derived().items(), ("_text", _constructor_call(self))):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """The constructor call, without the fields that have their default."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def check(self) -> None:
        """Raise a ValueError that names the field and its valid range."""

    def canonical(self) -> dict[str, object]:
        """Fields of which several values mean the same, each with the one that is kept."""
        return {}

    def derived(self) -> dict[str, object]:
        """Attributes that are read at every call, and therefore made once."""
        return {}

    if TYPE_CHECKING:  # a field of some subclasses, derived in others; a property here would become a field's default

        @property
        def element(self) -> FixedPoint | Float:
            """The grid of one element before its scale."""

        @property
        def bits(self) -> int:
            """Stored bits of one element, sign included; scales come on top."""

    @property
    def scale_bits(self) -> int:
        """Stored bits of one shared scale, its zero point included; 0 without scales."""
        return 0

    @property
    def tensor_scale_bits(self) -> int:
        """Stored bits of a second scale that the whole tensor shares; mostly 0."""
        return 0

    @property
    def has_zero_point(self) -> bool:
        """Whether each scale has a zero point beside it."""
        return False

    @property
    def scale_limits(self) -> tuple[float, float]:
        """Smallest and largest scale; 1 and 1 without scales."""
        return 1.0, 1.0

    @property
    def exponent_bits(self) -> int:
        return self.element.exponent_bits

    @property
    def mantissa_bits(self) -> int:
        return self.element.mantissa_bits

    @property
    def block_dim(self) -> int | tuple[int, ...] | None:
        """The dimension (or dimensions) each index of which has its own scale; None if the whole tensor has one."""
        if self.blocks is None or not self.blocks.slices:
            return None
        return self.blocks.slices if len(self.blocks.slices) > 1 else self.blocks.slices[0]

    @property
    def block_size(self) -> int | None:
        """Elements of a fixed-size block; None if blocks are slices or the whole tensor."""
        return None if self.blocks is None else self.blocks.size

    @property
    def max(self) -> float:
        """Largest finite magnitude, at the largest scale."""
        return self.element.max * self.scale_limits[1]

    @property
    def smallest(self) -> float:
        """Smallest positive number, at the smallest scale."""
        return self.element.smallest * self.scale_limits[0]

    @property
    def block_range_db(self) -> float:
        """20 log10 of the largest over the smallest positive number under one scale."""
        return 20 * (math.log10(self.element.max) - math.log10(self.element.smallest))

    @property
    def dynamic_range_db(self) -> float:
        """20 log10 of the largest over the smallest positive number, over all scales."""
        low, high = self.scale_limits
        return self.block_range_db + 20 * (math.log10(high) - math.log10(low))

    def scale_count(self, shape: Sequence[int]) -> int:
        """How many block scales a tensor of ``shape`` stores."""
        return 0 if self.blocks is None else math.prod(self.blocks.scale_shape(shape))

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits that a tensor of ``shape`` takes in this format, every scale included."""
        elements = math.prod(shape) * self.bits
        return elements + self.scale_count(shape) * self.scale_bits + self.tensor_scale_bits


def _constructor_call(fmt: Any) -> str:
    values = {field.name: getattr(fmt, field.name) for field in fields(fmt)}
    given = {name: value for name, value in values.items() if value != getattr(type(fmt), name, None)}
    return f"{type(fmt).__name__}({', '.join([f'{name}={value!r}' for name, value in given.items()])})"
