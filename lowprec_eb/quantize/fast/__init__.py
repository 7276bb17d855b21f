"""The fast CPU back end: compiled kernels, one pass over memory, several threads, no interpreter lock.

It rounds float32, bfloat16 and float16 tensors with the bits of :mod:`lowprec_eb.quantize.reference`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import platform
import struct
from functools import lru_cache

import torch
from torch import Tensor

from lowprec_eb.formats import Format, ScaledFloat
from lowprec_eb.quantize import reference
from lowprec_eb.quantize.fast import objects, slots, threads
from lowprec_eb.quantize.fast.plan import Plan, plan
from lowprec_eb.quantize.scales import find_scales, tensor_scale_of
from lowprec_eb.quantize.target import write

_PARALLEL_FROM = 1 << 20  # elements; below, waking a thread costs more than it saves
_CHANGING = struct.Struct("=6q")  # the slots that change from call to call


@lru_cache(maxsize=1)
def _missing_packages() -> str | None:
    return None if importlib.util.find_spec("llvmlite") else "llvmlite not installed"


@lru_cache(maxsize=1)
def _converts_halves() -> bool:
    """Whether the processor converts float16; x86 does so since AVX2, others always."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT" or platform.machine() not in ("x86_64", "AMD64")


def plan_for(x: Tensor, fmt: Format, rounding: str) -> Plan | str:
    """How this back end rounds ``x`` to ``fmt``; a text says why it cannot."""
    if x.device.type != "cpu":
        return f"it runs on the CPU, the tensor is on {x.device}"
    if x.dtype == torch.float16 and not _converts_halves():
        return "this processor has no instructions for float16"
    return _missing_packages() or plan(fmt, rounding, x.shape, x.dtype)


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded to ``fmt`` into ``out``, which may be ``x`` itself.

    Raises:
        ValueError: :func:`plan_for` has no plan; a NaN with ``nan="error"``.
    """
    made = plan_for(x, fmt, rounding)
    if isinstance(made, str):
        raise ValueError(f"backend='fast' cannot round this: {made}; use backend='reference' or 'auto'")
    follow(made, x, fmt, seed, offset, given, out)


def follow(
    made: Plan, x: Tensor, fmt: Format, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """:func:`quantize` with its plan."""
    key = 0 if seed is None else int(seed)

    def kernels(target: Tensor) -> None:
        _Call(made, x.contiguous(), fmt, key, offset, target).run(given)

    write(out, x, made.refuses_nan, kernels)


class _Call:
    """One call of the kernels, on contiguous tensors."""

    def __init__(self, made: Plan, x: Tensor, fmt: Format, seed: int, offset: int, target: Tensor) -> None:
        self.plan, self.fmt = made, fmt
        self.x, self.target = x, target  # held: the kernels know addresses only
        self.buffer = bytearray(made.buffer)
        self.layout = made.lanes.layout
        self.threads = torch.get_num_threads() if x.numel() >= _PARALLEL_FROM else 1
        address = 0
        if self.layout != slots.NO_BLOCKS:
            self.scales = torch.empty(made.lanes.scales, dtype=torch.float32)
            address = self.scales.data_ptr()
        _CHANGING.pack_into(self.buffer, 0, x.data_ptr(), target.data_ptr(), address, 0, seed, offset)

    def run(self, given: list[Tensor]) -> None:
        place = self.plan.lanes
        if given or self.fmt.has_zero_point:
            self._use_scales(given)
        elif self.plan.scales_first:
            self._find_tensor_scale()
        elif self.threads > 1 and place.scales == 1 and self.layout == slots.RUNS:
            self._find_one_scale()
        if self.layout in (slots.SLICES, slots.STRIPES) and not (given or self.fmt.has_zero_point):
            objects.kernel(f"find_scales-{self.plan.dtype}")(_address(self.buffer), 0, place.outer)
        count = place.outer if self.layout == slots.RUNS else self.x.numel()
        self._run(objects.kernel(self.plan.compiled), count)
        if self.plan.refuses_nan and self._integer(slots.NAN_SEEN):
            reference.refuse_nan(self.x, self.fmt)

    def _run(self, kernel: objects.Kernel, count: int) -> None:
        address = _address(self.buffer)
        if self.threads == 1:
            kernel(address, 0, count)
        else:
            threads.run(kernel, [(address, first, last) for first, last in threads.split(count, self.threads)])

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
        wide = self.x.to(torch.float32)
        scales = reference.given_scales(given, self.fmt, wide) or find_scales(wide, self.fmt)
        self._set_integer(slots.RULE, slots.GIVEN)
        self.scales.copy_(scales[0].reshape(-1))
        if self.fmt.tensor_scale_bits:
            self._set_real(slots.TENSOR_SCALE, float(scales[1]))
        if self.fmt.has_zero_point:
            self.zeros = scales[1].reshape(-1).contiguous()
            self._set_integer(slots.ZEROS, self.zeros.data_ptr())

    def _find_tensor_scale(self) -> None:
        assert isinstance(self.fmt, ScaledFloat)
        tensor_scale = tensor_scale_of(self._largest(), self.fmt)
        self._set_real(slots.TENSOR_SCALE, float(tensor_scale))
        self._set_real(slots.LEVELS, float(self.fmt.element.max * tensor_scale))

    def _find_one_scale(self) -> None:
        """The scale of a whole tensor by several threads; with it, every element can be rounded on its own."""
        self.scales.copy_(self._largest())
        objects.kernel("apply_rule")(_address(self.buffer), 0, 1)
        self._use_one_scale(float(self.scales))

    def _use_one_scale(self, scale: float) -> None:
        self._set_real(slots.CONSTANT_SCALE, scale)
        self.layout = slots.NO_BLOCKS
        self._set_integer(slots.LAYOUT, self.layout)

    def _largest(self) -> Tensor:
        """Largest finite magnitude of the tensor; 0-d."""
        maxima = torch.empty(self.threads, dtype=torch.float32)
        buffers, tasks = [], []
        for part, (first, last) in enumerate(threads.split(self.x.numel(), self.threads)):
            buffers.append(bytearray(self.buffer))
            struct.pack_into("=q", buffers[-1], 8 * slots.SCALES, maxima[part].data_ptr())
            tasks.append((_address(buffers[-1]), first, last))
        threads.run(objects.kernel(f"measure-{self.plan.dtype}"), tasks)
        return maxima[: len(tasks)].amax()

    def _integer(self, slot: int) -> int:
        return int(struct.unpack_from("=q", self.buffer, 8 * slot)[0])

    def _set_integer(self, slot: int, value: int) -> None:
        struct.pack_into("=q", self.buffer, 8 * slot, value)

    def _set_real(self, slot: int, value: float) -> None:
        struct.pack_into("=f", self.buffer, slots.REALS_AT + 4 * slot, value)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
