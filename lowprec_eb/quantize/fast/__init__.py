"""The fast CPU back end: compiled kernels, one pass over memory, several threads, no interpreter lock.

It rounds float32, bfloat16 and float16 tensors with the bits of :mod:`lowprec_eb.quantize.reference`.
"""

from __future__ import annotations

import importlib.util
import platform
from functools import lru_cache

import torch
from torch import Tensor

from lowprec_eb.formats import Format
from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.call import Call
from lowprec_eb.quantize.fast.order import order_of
from lowprec_eb.quantize.fast.plan import Plan, plan
from lowprec_eb.quantize.target import write


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
    if missing := _missing_packages():
        return missing
    order = order_of(x)
    made = plan(fmt, rounding, x.shape, x.dtype, order)
    return plan(fmt, rounding, x.shape, x.dtype) if order is not None and isinstance(made, str) else made


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
    source = x if made.order is not None else x.contiguous()
    write(out, x, source, made.refuses_nan, lambda target: Call(made, source, fmt, key, offset, target).run(given))


def bounds_of(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor] | None:
    """The smallest and the largest finite number of each of the format's blocks; None where no kernel finds them."""
    made = plan_for(x, fmt, "nearest")
    if isinstance(made, str) or made.lanes.layout != slots.RUNS or not x.numel():
        return None
    if made.order is not None and made.lanes.scales > 1:
        return None
    source = x if made.order is not None else x.contiguous()
    low, high = Call(made, source, fmt, 0, 0, source).bounds()
    assert fmt.blocks is not None
    shape = fmt.blocks.scale_shape(x.shape)
    return low.view(shape), high.view(shape)
