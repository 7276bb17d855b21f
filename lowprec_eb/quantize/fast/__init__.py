"""The fast CPU back end: numba-compiled kernels, one pass over memory, several threads, no interpreter lock.

It rounds float32, bfloat16 and float16 tensors with the bits of :mod:`lowprec_eb.quantize.reference`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from functools import lru_cache

import torch
from torch import Tensor

from lowprec_eb.formats import Float, Format, ScaledFloat, is_affine
from lowprec_eb.quantize import reference
from lowprec_eb.quantize.fast import objects, slots, threads
from lowprec_eb.quantize.fast.plan import DTYPES, Geometry, geometry, obstacle, pack, plan
from lowprec_eb.quantize.scales import find_scales, tensor_scale_of

_PARALLEL_FROM = 1 << 20  # elements; below, waking a thread costs more than it saves


@lru_cache(maxsize=1)
def missing_packages() -> str | None:
    """What has to be installed, or None."""
    missing = [name for name in ("numba", "llvmlite") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def unsupported(x: Tensor, fmt: Format) -> str | None:
    """Why this back end cannot round ``x`` to ``fmt``; None if it can."""
    if x.device.type != "cpu":
        return f"it runs on the CPU, the tensor is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it rounds float32, bfloat16 and float16, not {x.dtype}"
    if geometry(fmt.blocks, tuple(x.shape)) is None:
        return "blocks over dimensions that do not lie side by side"
    return obstacle(fmt) or missing_packages()


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded to ``fmt`` into ``out``, which may be ``x`` itself.

    Raises:
        ValueError: see :func:`unsupported`; a NaN with ``nan="error"``.
    """
    if reason := unsupported(x, fmt):
        raise ValueError(f"backend='fast' cannot round this: {reason}; use backend='reference' or 'auto'")
    refuses_nan = isinstance(fmt.element, Float) and fmt.element.nan == "error"
    target = out
    shifted = out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and out.data_ptr() != x.data_ptr()
    if shifted or not out.is_contiguous() or (refuses_nan and out.data_ptr() == x.data_ptr()):
        target = torch.empty(x.shape, dtype=x.dtype)  # the caller's tensor stays whole if there is an error
    if x.numel():
        _Call(x.contiguous(), fmt, rounding, seed, offset, target).run(given)
    if target is not out:
        out.copy_(target)
    elif not out.is_inference():
        torch.autograd.graph.increment_version(out)  # the kernels write behind torch's back


class _Call:
    """One call of the kernels."""

    def __init__(self, x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, target: Tensor) -> None:
        made = plan(fmt, rounding)
        self.x, self.fmt, self.kernel = x, fmt, objects.kernel(made.kernel)
        self.integers, self.reals = list(made.integers), list(made.reals)
        found = geometry(fmt.blocks, tuple(x.shape))
        assert found is not None
        self.place: Geometry = found
        self.parts = torch.get_num_threads() if x.numel() >= _PARALLEL_FROM else 1
        integers = self.integers
        integers[slots.SOURCE], integers[slots.TARGET] = x.data_ptr(), target.data_ptr()
        integers[slots.DTYPE], integers[slots.OFFSET] = DTYPES[x.dtype], offset
        integers[slots.SEED] = 0 if seed is None else int(seed)
        self.reals[slots.LARGEST_RESULT] = torch.finfo(x.dtype).max

    def run(self, given: list[Tensor]) -> None:
        self._lay_out()
        if given or is_affine(self.fmt):
            self._use_scales(given)
        elif isinstance(self.fmt, ScaledFloat) and self.fmt.tensor_scale:
            self._find_tensor_scale()
        elif self.place.scales == 1 and self.place.layout == slots.RUNS and self.parts > 1:
            self._find_one_scale()
        self._round()

    def _lay_out(self) -> None:
        place, integers = self.place, self.integers
        integers[slots.LAYOUT], integers[slots.LENGTH], integers[slots.SIZE] = place.layout, place.length, place.size
        integers[slots.BLOCKS], integers[slots.INNER] = place.blocks, place.inner
        if place.layout != slots.NO_BLOCKS:
            self.scales = torch.empty(place.scales, dtype=torch.float32)
            integers[slots.SCALES] = self.scales.data_ptr()

    def _use_scales(self, given: list[Tensor]) -> None:
        """Scales that are known before the kernel: the user's, or an affine format's."""
        wide = self.x.to(torch.float32) if self.x.dtype != torch.float32 else self.x
        scales = reference.given_scales(given, self.fmt, wide) or find_scales(wide, self.fmt)
        self.integers[slots.RULE] = slots.GIVEN
        self.scales.copy_(scales[0].reshape(-1))
        if self.fmt.tensor_scale_bits:
            self.reals[slots.TENSOR_SCALE] = float(scales[1])
        if given:  # a given scale saturates infinities
            self.reals[slots.PASSES] = math.nan
            self.integers[slots.ELEMENT + slots.INFINITE] = self.integers[slots.ELEMENT + slots.LARGEST]
        if is_affine(self.fmt):
            self.zeros = scales[1].reshape(-1).contiguous()
            self.integers[slots.ZEROS] = self.zeros.data_ptr()

    def _find_tensor_scale(self) -> None:
        assert isinstance(self.fmt, ScaledFloat) and self.fmt.scale is not None
        tensor_scale = tensor_scale_of(self._largest(), self.fmt)
        self.reals[slots.TENSOR_SCALE] = float(tensor_scale)
        self.reals[slots.LEVELS] = float(self.fmt.element.max * tensor_scale)

    def _find_one_scale(self) -> None:
        """The scale of a whole tensor by several threads; with it, every element can be rounded on its own."""
        self.scales.copy_(self._largest())
        objects.kernel("apply_rule")(_address(pack(self.integers, self.reals)), 0, 1)
        self.reals[slots.CONSTANT_SCALE] = float(self.scales)
        self.integers[slots.LAYOUT] = slots.NO_BLOCKS

    def _largest(self) -> Tensor:
        """Largest finite magnitude of the tensor; 0-d."""
        maxima = torch.empty(self.parts, dtype=torch.float32)
        buffers, tasks = [], []
        for part, (first, last) in enumerate(threads.split(self.x.numel(), self.parts)):
            self.integers[slots.SCALES] = maxima[part].data_ptr()
            buffers.append(pack(self.integers, self.reals))
            tasks.append((_address(buffers[-1]), first, last))
        self.integers[slots.SCALES] = self.scales.data_ptr()
        threads.run(objects.kernel("measure"), tasks)
        return maxima.amax()

    def _round(self) -> None:
        place, rule, layout = self.place, self.integers[slots.RULE], self.integers[slots.LAYOUT]
        buffer = pack(self.integers, self.reals)
        address = _address(buffer)
        if layout in (slots.SLICES, slots.STRIPES) and rule != slots.GIVEN:
            objects.kernel("find_scales")(address, 0, place.outer)
        count = place.outer if layout == slots.RUNS else self.x.numel()
        threads.run(self.kernel, [(address, first, last) for first, last in threads.split(count, self.parts)])
        if isinstance(self.fmt.element, Float) and self.fmt.element.nan == "error":
            self._refuse_nan(buffer)

    def _refuse_nan(self, buffer: bytearray) -> None:
        if int.from_bytes(buffer[8 * slots.NAN_SEEN : 8 * slots.NAN_SEEN + 8], "little"):
            reference.refuse_nan(self.x, self.fmt)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
