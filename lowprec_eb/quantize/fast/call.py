"""One call of the compiled kernels: its buffer, its scales, and its threads."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from lowprec_eb.formats import Format, ScaledFloat
from lowprec_eb.quantize import reference
from lowprec_eb.quantize.fast import objects, slots, threads
from lowprec_eb.quantize.fast.plan import Plan
from lowprec_eb.quantize.scales import find_scales, tensor_scale_of

_CHANGING = struct.Struct("=6q")  # the slots that change from call to call


class Call:
    """One call of the kernels, on two tensors that lie in the plan's order."""

    def __init__(self, made: Plan, x: Tensor, fmt: Format, seed: int, offset: int, target: Tensor) -> None:
        self.plan, self.fmt = made, fmt
        self.x, self.target = x, target  # held: the kernels know addresses only
        self._elements = x.numel()
        self.buffer, self._copies = bytearray(made.buffer), list[bytearray]()
        self.layout = made.lanes.layout
        self.known_bounds: tuple[Tensor, Tensor] | None = None  # what :meth:`bounds` would find, from elsewhere
        self.parts = threads.parts_of(x.numel())
        address = 0
        if self.layout != slots.NO_BLOCKS:
            self.scales = torch.empty(made.lanes.scales, dtype=torch.float32)
            address = self.scales.data_ptr()
        _CHANGING.pack_into(self.buffer, 0, x.data_ptr(), target.data_ptr(), address, 0, seed, offset)

    @property
    def _count(self) -> int:
        return self.plan.lanes.outer if self.layout == slots.RUNS else self._elements

    def run(self, given: list[Tensor], codes: Tensor | None = None) -> None:
        """Round; ``codes`` (8-bit, as ``x`` lies) is where codes go."""
        place = self.plan.lanes
        if codes is not None:
            self._set_integer(slots.CODES, codes.data_ptr())
        if given or self.fmt.has_zero_point:
            self._use_scales(given)
        elif self.plan.scales_first:
            self._find_tensor_scale()
        elif self.parts > 1 and place.scales == 1 and self.layout == slots.RUNS:
            self._find_one_scale()
        if self.layout in (slots.SLICES, slots.STRIPES) and not (given or self.fmt.has_zero_point):
            objects.kernel(f"find_scales-{self.plan.dtype}")(_address(self.buffer), 0, place.outer)
        self._run(objects.kernel(self.plan.compiled if codes is None else self.plan.coding), self._count)
        if self.plan.refuses_nan and self._integer(slots.NAN_SEEN):
            reference.refuse_nan(self.x, self.fmt)

    @property
    def met_infinity(self) -> bool:
        """Whether a kernel that stores codes met an infinity or a NaN, which have none."""
        return bool(self._integer(slots.NAN_SEEN))

    def forget_tensors(self) -> None:
        """Let go of all but what :meth:`decode` needs."""
        self.x = self.target = torch.empty(0)

    def decode(self, codes: Tensor, target: Tensor) -> None:
        """The values that were rounded, from the codes that were stored then; both lie as ``x`` did."""
        self._set_integer(slots.CODES, codes.data_ptr())
        self._set_integer(slots.TARGET, target.data_ptr())
        self._set_integer(slots.RULE, slots.GIVEN)
        self._run(objects.kernel(self.plan.decoding), self._count)

    def _run(self, kernel: objects.Kernel, count: int) -> None:
        if self.parts == 1:
            kernel(_address(self.buffer), 0, count)
        else:
            threads.run(kernel, self._tasks(count, lambda part: self.buffer))

    def _use_scales(self, given: list[Tensor]) -> None:
        """Scales that are known before the kernel: the user's, or an affine format's."""
        if given:  # a given scale saturates infinities
            self._set_real(slots.PASSES, math.nan)
            self._set_integer(slots.ELEMENT + slots.INFINITE, self._integer(slots.ELEMENT + slots.LARGEST))
        if self.plan.takes_one_scale and len(given) == 1 and given[0].numel() == 1:
            scale = float(given[0].to(torch.float32))
            if 0 < scale < math.inf:  # else the checks below say what is wrong
                self._use_one_scale(scale)
                return
        if given or self.layout != slots.RUNS:
            self._take_scales(given)
        else:
            self._find_affine_scales()
        self._set_integer(slots.RULE, slots.GIVEN)
        if self.fmt.has_zero_point and self.zeros.numel() == 1:
            self._use_one_scale(float(self.scales))

    def _take_scales(self, given: list[Tensor]) -> None:
        """One number a block, as the blocks lie in memory; of a two-level format the tensor's scale too."""
        wide, order = self.x.to(torch.float32), self.plan.order
        found = reference.given_scales(given, self.fmt, wide) or find_scales(wide, self.fmt)
        scales = [(part.permute(order) if order and part.dim() else part).reshape(-1) for part in found]
        self.scales.copy_(scales[0])
        if self.fmt.tensor_scale_bits:
            self._set_real(slots.TENSOR_SCALE, float(scales[1]))
        if self.fmt.has_zero_point:
            self._set_zeros(scales[1].contiguous())

    def _find_affine_scales(self) -> None:
        low, high = self.bounds() if self.known_bounds is None else self.known_bounds
        self.scales.copy_(low.view(-1))
        self._set_zeros(torch.empty_like(self.scales).copy_(high.view(-1)))
        objects.kernel("apply_affine_rule")(_address(self.buffer), 0, self.scales.numel())

    def _set_zeros(self, zeros: Tensor) -> None:
        self.zeros = zeros
        self._set_integer(slots.ZEROS, zeros.data_ptr())

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest finite number of each run; infinite if it has none."""
        kernel, place = objects.kernel(f"find_bounds-{self.plan.dtype}"), self.plan.lanes
        if place.scales > 1:
            bounds = torch.empty(2, place.scales)
            buffer = self._buffer_for(bounds[0], bounds[1])
            threads.run(kernel, self._tasks(place.outer, lambda part: buffer))
            return bounds[0], bounds[1]
        parts = torch.empty(self.parts, 2)
        tasks = self._tasks(
            self._elements, lambda part: self._buffer_for(parts[part, 0], parts[part, 1], slots.NO_BLOCKS)
        )
        threads.run(kernel, tasks)
        return parts[: len(tasks), 0].amin(0, keepdim=True), parts[: len(tasks), 1].amax(0, keepdim=True)

    def _find_tensor_scale(self) -> None:
        assert isinstance(self.fmt, ScaledFloat)
        tensor_scale = tensor_scale_of(self._largest(), self.fmt)
        self._set_real(slots.TENSOR_SCALE, float(tensor_scale))
        self._set_real(slots.LEVELS, float(self.fmt.element.max * tensor_scale))

    def _find_one_scale(self) -> None:
        """The scale of a whole tensor part by part; with it, every element can be rounded on its own."""
        self.scales.copy_(self._largest())
        objects.kernel("apply_rule")(_address(self.buffer), 0, 1)
        self._use_one_scale(float(self.scales))

    def _use_one_scale(self, scale: float) -> None:
        self._set_real(slots.CONSTANT_SCALE, scale)
        self.layout = slots.NO_BLOCKS
        self._set_integer(slots.LAYOUT, self.layout)

    def _largest(self) -> Tensor:
        """Largest finite magnitude of the tensor; 0-d."""
        maxima = torch.empty(self.parts, dtype=torch.float32)
        tasks = self._tasks(self._elements, lambda part: self._buffer_for(maxima[part]))
        threads.run(objects.kernel(f"measure-{self.plan.dtype}"), tasks)
        return maxima[: len(tasks)].amax()

    def _tasks(self, count: int, buffer_of: Callable[[int], bytearray]) -> list[threads.Task]:
        """A kernel's arguments for each part."""
        parts = enumerate(threads.split(count, self.parts))
        return [(_address(buffer_of(part)), first, last) for part, (first, last) in parts]

    def _buffer_for(self, scales: Tensor, zeros: Tensor | None = None, layout: int | None = None) -> bytearray:
        """A copy of the buffer for a kernel that writes elsewhere. Kept, since kernels know its address only."""
        buffer = bytearray(self.buffer)
        self._copies.append(buffer)
        for slot, value in ((slots.SCALES, scales), (slots.ZEROS, zeros)):
            if value is not None:
                struct.pack_into("=q", buffer, 8 * slot, value.data_ptr())
        if layout is not None:
            struct.pack_into("=q", buffer, 8 * slots.LAYOUT, layout)
        return buffer

    def _integer(self, slot: int) -> int:
        return int(struct.unpack_from("=q", self.buffer, 8 * slot)[0])

    def _set_integer(self, slot: int, value: int) -> None:
        struct.pack_into("=q", self.buffer, 8 * slot, value)

    def _set_real(self, slot: int, value: float) -> None:
        struct.pack_into("=f", self.buffer, slots.REALS_AT + 4 * slot, value)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
