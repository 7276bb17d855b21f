"""``lowprec_eb::quantize`` and its companions as torch operators.

One operator, whatever happens inside: tracers, fake tensors, exporters and the operation counter see a quantizer and
never the arithmetic that simulates it. Formats cross the schema as their ``repr``; everything that may change from call
to call is a tensor, so a changing value compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.formats import Format, at_bits, parse_format
from lowprec_eb.quantize import codes, qtorch_backend, reference
from lowprec_eb.quantize.scales import find_scales

Backend = Callable[[Tensor, Format, str, Tensor | None, int, list[Tensor], Tensor], None]
BACKENDS: dict[str, Backend] = {"reference": reference.quantize, "qtorch": qtorch_backend.quantize}

_SOURCE = "Tensor x, str format"
_HOW = "str rounding, Tensor? seed, Tensor? offset, Tensor[] scales, Tensor? bits"
_library = torch.library.Library("lowprec_eb", "DEF")
_library.define(f"quantize({_SOURCE}, {_HOW}, str backend) -> Tensor")
_library.define(f"quantize.out({_SOURCE}, {_HOW}, str backend, *, Tensor(a!) out) -> Tensor(a!)")
_library.define(f"encode({_SOURCE}, {_HOW}) -> Tensor[]")
_library.define(f"in_range({_SOURCE}, Tensor[] scales, Tensor? bits) -> Tensor")
_library.define(f"find_scales({_SOURCE}, Tensor? bits) -> Tensor[]")


def _format(text: str, bits: Tensor | None) -> Format:
    fmt = parse_format(text)
    return fmt if bits is None else at_bits(fmt, round(float(bits)))


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
) -> Tensor:
    first = 0 if offset is None else int(offset)
    BACKENDS[backend](x, _format(format, bits), rounding, seed, first, scales, out)
    return out


def _quantize(x: Tensor, *arguments: Any) -> Tensor:
    return _quantize_out(x, *arguments, out=torch.empty_like(x))


def _encode(
    x: Tensor,
    format: str,
    rounding: str,
    seed: Tensor | None,
    offset: Tensor | None,
    scales: list[Tensor],
    bits: Tensor | None,
) -> list[Tensor]:
    first = 0 if offset is None else int(offset)
    encoded, found = codes.encode(x, _format(format, bits), rounding, seed, first, scales)
    return [encoded, *found]


def _in_range(x: Tensor, format: str, scales: list[Tensor], bits: Tensor | None) -> Tensor:
    return reference.in_range(x, _format(format, bits), scales)


def _find_scales(x: Tensor, format: str, bits: Tensor | None) -> list[Tensor]:
    return [
        scale.to(torch.float32) for scale in find_scales(x.to(reference.working_dtype(x.dtype)), _format(format, bits))
    ]


def _scale_shells(x: Tensor, fmt: Format) -> list[Tensor]:
    """Scales of the right shapes without values."""
    if fmt.blocks is None:
        return []
    shells = [x.new_empty(fmt.blocks.scale_shape(x.shape), dtype=torch.float32)]
    if fmt.tensor_scale_bits:
        return [*shells, x.new_empty((), dtype=torch.float32)]
    return shells * 2 if fmt.has_zero_point else shells


def _shape_of_codes(x: Tensor, format: str, *arguments: Any) -> list[Tensor]:
    fmt = parse_format(format)
    return [torch.empty_like(x, dtype=codes.code_dtype(fmt)), *map(torch.empty_like, _scale_shells(x, fmt))]


_SHAPES: dict[str, Callable[..., Any]] = {
    "quantize": lambda x, *_: torch.empty_like(x),
    "quantize.out": lambda x, *_, out: out,
    "encode": _shape_of_codes,
    "in_range": lambda x, *_: torch.empty_like(x, dtype=torch.bool),
    "find_scales": lambda x, format, _: list(map(torch.empty_like, _scale_shells(x, parse_format(format)))),
}
_KERNELS: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "quantize.out": _quantize_out,
    "encode": _encode,
    "in_range": _in_range,
    "find_scales": _find_scales,
}
for _name, _kernel in _KERNELS.items():
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, _kernel, "CUDA")
    _library.impl(_name, _SHAPES[_name], "Meta")

quantize = torch.ops.lowprec_eb.quantize.default
quantize_out = torch.ops.lowprec_eb.quantize.out
encode = torch.ops.lowprec_eb.encode.default
in_range = torch.ops.lowprec_eb.in_range.default
scales_of = torch.ops.lowprec_eb.find_scales.default


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule: each sample by itself, with its own blocks and random bits."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [operator(*_sample(arguments, in_dims, index)) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


def _sample(arguments: Any, in_dims: Any, index: int) -> list[Any]:
    """Sample ``index`` of every argument that has a batch dimension; lists are walked."""
    chosen: list[Any] = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        if isinstance(argument, list):
            chosen.append(_sample(argument, dim if dim is not None else [None] * len(argument), index))
        else:
            chosen.append(argument if dim is None else argument.select(dim, index))
    return chosen


for _operator in (quantize, encode, in_range, scales_of):
    torch.library.register_vmap(_operator, _one_by_one(_operator), lib=_library)
