"""``lowprec_eb::quantize`` and its companions as torch operators.

One operator, whatever happens inside: tracers, fake tensors, exporters and the operation counter see a quantizer and
never the arithmetic that simulates it. Formats cross the schema as their ``repr``; everything that may change from call
to call is a tensor, so a changing value compiles nothing anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb.formats import Format, at_bits, parse_format
from lowprec_eb.quantize import codes, fast, qtorch_backend, reference, triton_backend
from lowprec_eb.quantize.scales import bounds_of as find_bounds
from lowprec_eb.quantize.scales import find_scales

Backend = Callable[[Tensor, Format, str, Tensor | None, int, list[Tensor], Tensor], None]


def backend_for(x: Tensor, fmt: Format) -> tuple[str, str]:
    """The back end that ``"auto"`` takes, and why."""
    name, where, backend = ("triton", "on CUDA", triton_backend) if x.is_cuda else ("fast", "on the CPU", fast)
    made = backend.plan_for(x, fmt, "nearest")
    return ("reference", f"not {name}: {made}") if isinstance(made, str) else (name, f"the fastest {where}")


def _auto(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    arguments = (x, fmt, seed, offset, given, out)
    if x.is_cuda:
        launch = triton_backend.plan_for(x, fmt, rounding)
        if not isinstance(launch, str):
            triton_backend.follow(launch, *arguments)
            return
    else:
        made = fast.plan_for(x, fmt, rounding)
        if not isinstance(made, str):
            fast.follow(made, *arguments)
            return
    reference.quantize(x, fmt, rounding, seed, offset, given, out)


BACKENDS: dict[str, Backend] = {
    "auto": _auto,
    "reference": reference.quantize,
    "fast": fast.quantize,
    "triton": triton_backend.quantize,
    "qtorch": qtorch_backend.quantize,
}

_SOURCE = "Tensor x, str format"
_HOW = "str rounding, Tensor? seed, Tensor? offset, Tensor[] scales, Tensor? bits"
_library = torch.library.Library("lowprec_eb", "DEF")
_library.define(f"quantize({_SOURCE}, {_HOW}, str backend) -> Tensor")
_library.define(f"quantize.out({_SOURCE}, {_HOW}, str backend, *, Tensor(a!) out) -> ()")
_library.define(f"encode({_SOURCE}, {_HOW}) -> Tensor[]")
_library.define(f"in_range({_SOURCE}, Tensor[] scales, Tensor? bits) -> Tensor")
_library.define(f"find_scales({_SOURCE}, Tensor? bits) -> Tensor[]")
_library.define(f"find_bounds({_SOURCE}) -> Tensor[]")


def _with_bits(fmt: Format, bits: Tensor | None) -> Format:
    if bits is None:
        return fmt
    value = float(bits)
    if not math.isfinite(value):
        raise ValueError(f"bits: must be finite, got {value}")
    try:
        return at_bits(fmt, round(value))
    except ValueError as error:
        raise ValueError(f"bits: {error}") from error


def _index(offset: Tensor | None) -> int:
    first = 0 if offset is None else int(offset)
    if first < 0:
        raise ValueError(f"offset: must be 0 or more, got {first}")
    return first


def _quantize_out(
    x: Tensor,
    format: str,
    rounding: str,
    seed: Tensor | None,
    offset: Tensor | None,
    scales: list[Tensor],
    bits: Tensor | None,
    backend: str,
    *,
    out: Tensor,
) -> None:
    _round(out, x, parse_format(format), rounding, seed, offset, scales, bits, backend)


def _round(
    out: Tensor,
    x: Tensor,
    fmt: Format,
    rounding: str,
    seed: Tensor | None,
    offset: Tensor | None,
    scales: list[Tensor],
    bits: Tensor | None,
    backend: str,
) -> None:
    BACKENDS[backend](x, _with_bits(fmt, bits), rounding, seed, _index(offset), scales, out)


def _quantize(x: Tensor, *arguments: Any) -> Tensor:
    out = torch.empty_like(x)
    _quantize_out(x, *arguments, out=out)
    return out


def _encode(
    x: Tensor,
    format: str,
    rounding: str,
    seed: Tensor | None,
    offset: Tensor | None,
    scales: list[Tensor],
    bits: Tensor | None,
) -> list[Tensor]:
    encoded, found = codes.encode(x, _with_bits(parse_format(format), bits), rounding, seed, _index(offset), scales)
    if bits is not None:
        encoded = encoded.to(torch.int32)  # one dtype whatever the value, which tracers do not know
    return [encoded, *(part.contiguous() for part in found)]


def _in_range(x: Tensor, format: str, scales: list[Tensor], bits: Tensor | None) -> Tensor:
    return reference.in_range(x, _with_bits(parse_format(format), bits), scales)


def _find_scales(x: Tensor, format: str, bits: Tensor | None) -> list[Tensor]:
    return [
        scale.to(torch.float32).contiguous()
        for scale in find_scales(x.to(reference.working_dtype(x.dtype)), _with_bits(parse_format(format), bits))
    ]


def _find_bounds(x: Tensor, format: str) -> list[Tensor]:
    fmt = parse_format(format)
    assert fmt.blocks is not None
    found = None if x.is_cuda else fast.bounds_of(x, fmt)
    return list(found or find_bounds(x.to(reference.working_dtype(x.dtype)).float(), fmt.blocks))


def _scale_shells(x: Tensor, fmt: Format) -> list[Tensor]:
    """Scales of the right shapes without values."""
    return [x.new_empty(shape, dtype=torch.float32) for shape in codes.scale_shapes(x.shape, fmt)]


def _shape_of_values(x: Tensor, format: str, *arguments: Any) -> Tensor:
    _scale_shells(x, parse_format(format))  # raises if x lacks a dimension
    return torch.empty_like(x)


def _shape_of_codes(x: Tensor, format: str, *arguments: Any) -> list[Tensor]:
    fmt = parse_format(format)
    dtype = codes.code_dtype(fmt) if arguments[-1] is None else torch.int32
    return [torch.empty_like(x, dtype=dtype), *_scale_shells(x, fmt)]


_SHAPES: dict[str, Callable[..., Any]] = {
    "quantize": _shape_of_values,
    "quantize.out": lambda x, *_, out: None,
    "encode": _shape_of_codes,
    "in_range": lambda x, *_: torch.empty_like(x, dtype=torch.bool),
    "find_scales": lambda x, format, _: _scale_shells(x, parse_format(format)),
    "find_bounds": lambda x, format: _scale_shells(x, parse_format(format))[:1] * 2,
}
_KERNELS: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "quantize.out": _quantize_out,
    "encode": _encode,
    "in_range": _in_range,
    "find_scales": _find_scales,
    "find_bounds": _find_bounds,
}
for _name, _kernel in _KERNELS.items():
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, _kernel, "CUDA")
    _library.impl(_name, _SHAPES[_name], "Meta")


def _refuse_gradient(x: Tensor, *arguments: Any) -> Tensor:
    """Gradients belong to :class:`StraightThrough`; whoever gets here with one, a tracer say, would get zeros."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise NotImplementedError("lowprec_eb::quantize has no gradient of its own here; call lp.quantize uncompiled")
    with torch._C._AutoDispatchBelowAutograd():
        return quantize(x, *arguments)  # type: ignore[no-any-return]


_library.impl("quantize", _refuse_gradient, "Autograd")

quantize = torch.ops.lowprec_eb.quantize.default
_quantize_into = torch.ops.lowprec_eb.quantize.out
encode = torch.ops.lowprec_eb.encode.default
in_range = torch.ops.lowprec_eb.in_range.default
scales_of = torch.ops.lowprec_eb.find_scales.default
bounds_of = torch.ops.lowprec_eb.find_bounds.default


def runs_now(x: Tensor) -> bool:
    """Whether operators on ``x`` simply run: no compiler, tracer, transform, mode or subclass records them."""
    return not (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or x.is_neg()
        or not (x.is_cpu or x.is_cuda)
    )


def _watched(x: Tensor) -> bool:
    """Whether somebody, a profiler included, must see the operator's call.

    Going through torch's dispatcher takes as long as a back end takes for a thousand elements.
    """
    return not runs_now(x) or torch.autograd._profiler_enabled()


def rounded(x: Tensor, fmt: Format, *arguments: Any) -> Tensor:
    """The operator ``quantize`` without a gradient, past the dispatcher if nothing there waits for it."""
    if _watched(x):
        return quantize(x, repr(fmt), *arguments)  # type: ignore[no-any-return]
    out = torch.empty_like(x)
    _round(out, x, fmt, *arguments)
    return out


def round_into(out: Tensor, x: Tensor, fmt: Format, *arguments: Any) -> None:
    """:func:`rounded`, written to ``out``."""
    if _watched(x):
        _quantize_into(x, repr(fmt), *arguments, out=out)
    else:
        _round(out, x, fmt, *arguments)


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule: each sample by itself, with its own blocks and random bits."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        count = info.batch_size
        samples = [operator(*_sample(arguments, in_dims, index)) for index in range(max(count, 1))]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples)[:count], 0
        stacked = [torch.stack(parts)[:count] for parts in zip(*samples, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


def _sample(arguments: Any, in_dims: Any, index: int) -> list[Any]:
    """Sample ``index`` of every argument that has a batch dimension (of ones if it has none); lists are walked."""
    chosen: list[Any] = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        if isinstance(argument, list):
            chosen.append(_sample(argument, dim if dim is not None else [None] * len(argument), index))
        elif dim is None:
            chosen.append(argument)
        else:
            empty = argument.shape[dim] == 0
            chosen.append(argument.sum(dim, dtype=argument.dtype) + 1 if empty else argument.select(dim, index))
    return chosen


for _operator in (quantize, encode, in_range, scales_of, bounds_of):
    torch.library.register_vmap(_operator, _one_by_one(_operator), lib=_library)
