"""What a simulation does in many operators and hardware in one, said in one operator while a model is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call

_library = torch.library.Library("energy_models", "DEF")
_library.define("work(Tensor x, str kind, int fp_add, int fp_mul, int int_add) -> Tensor")
_library.impl("work", lambda x, kind, fp_add, fp_mul, int_add: x.clone(), "CompositeExplicitAutograd")


def stand_in(x: Tensor, kind: str, *, fp_add: int = 0, fp_mul: int = 0, int_add: int = 0) -> Tensor:
    """A copy of `x` that is counted as an element operation `kind`; the numbers are per element.

    To be called only while :func:`energy_models.tracing.is_counting`.
    """
    result: Tensor = torch.ops.energy_models.work(x, kind, fp_add, fp_mul, int_add)
    return result


def work_ops(call: Call) -> ElementOps:
    """What a call of the operator says of itself."""
    elements, args = call.results[0].numel(), call.args
    per_element = (args["fp_add"], args["fp_mul"], args["int_add"])
    return ElementOps(args["kind"], "", elements, *(number * elements for number in per_element))
