"""``lowprec_eb::quantize`` as one torch operator.

One operator, whatever happens inside: tracers, fake tensors and the operation counter see a quantizer and never the
arithmetic that simulates it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowprec_eb.formats import Format, parse_format
from lowprec_eb.quantize import qtorch_backend, reference

Backend = Callable[[Tensor, Format, str, Tensor | None, int], Tensor]
BACKENDS: dict[str, Backend] = {"reference": reference.quantize, "qtorch": qtorch_backend.quantize}

_library = torch.library.Library("lowprec_eb", "DEF")
_library.define("quantize(Tensor x, str format, str rounding, Tensor? seed, int offset, str backend) -> Tensor")


def _run(x: Tensor, format: str, rounding: str, seed: Tensor | None, offset: int, backend: str) -> Tensor:
    return BACKENDS[backend](x, parse_format(format), rounding, seed, offset)


def _shape_only(x: Tensor, format: str, rounding: str, seed: Tensor | None, offset: int, backend: str) -> Tensor:
    return torch.empty_like(x)


_library.impl("quantize", _run, "CPU")
_library.impl("quantize", _run, "CUDA")
_library.impl("quantize", _shape_only, "Meta")

call: Callable[[Tensor, str, str, Tensor | None, int, str], Tensor] = torch.ops.lowprec_eb.quantize.default
