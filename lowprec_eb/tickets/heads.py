"""Attention heads as units that can be cut: which rows and columns of which layers belong to a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lowprec_eb.tickets.calls import Inputs


@dataclass(frozen=True)
class HeadSite:
    """Rows or columns of a module that attention heads own: position i belongs to head ``heads[i]``.

    ``attention`` is the module that attends; it may be ``module`` itself.
    """

    attention: str
    module: str
    side: Literal["out", "in"]
    tensors: tuple[tuple[str, int], ...]
    heads: tuple[int, ...]


def head_sites(model: nn.Module, example_inputs: Inputs) -> list[HeadSite]:
    """The head sites of every attention module whose heads can be cut."""
    sites = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and _is_ordinary(module):
            sites += _of_torch(name, module)
    return sites


def _is_ordinary(module: nn.MultiheadAttention) -> bool:
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


def _of_torch(name: str, module: nn.MultiheadAttention) -> list[HeadSite]:
    rows = tuple(head for _ in range(3) for head in range(module.num_heads) for _ in range(module.head_dim))
    projections = (("in_proj_weight", 0), *((("in_proj_bias", 0),) if module.in_proj_bias is not None else ()))
    columns = rows[: len(rows) // 3]
    return [
        HeadSite(name, name, "out", projections, rows),
        HeadSite(name, name, "in", (("out_proj.weight", 1),), columns),
    ]
