"""Known zeros through views, concatenation and padding: see `zero_rules`."""

from __future__ import annotations

import torch

from energy_models.tracing.call import Call
from energy_models.tracing.patterns import Pattern, reshaped
from energy_models.tracing.zero_rule import Known, Reverse, Rule, Uses, nothing


def _view_zero(call: Call, known: Known) -> Pattern | None:
    x = call.args["self"]
    return reshaped(known(x), x.shape, call.results[0].shape)


def _view_needless(call: Call, known: Known) -> Uses:
    x = call.args["self"]
    old, new = tuple(x.shape), tuple(call.results[0].shape)
    return [(x, lambda dead: reshaped(dead, new, old))]


def _order(call: Call) -> list[int]:
    """The dimensions of the argument in the order that they have in the result."""
    rank = call.args["self"].dim()
    order = list(range(rank))
    if call.op == "aten::permute":
        return [dim % rank for dim in call.args["dims"]]
    if rank:
        one, two = (call.args["dim0"], call.args["dim1"]) if call.op == "aten::transpose" else (0, rank - 1)
        order[one], order[two] = order[two], order[one]
    return order


def _permute_zero(call: Call, known: Known) -> Pattern | None:
    pattern = known(call.args["self"])
    return None if pattern is None else pattern.permute(_order(call))


def _permute_needless(call: Call, known: Known) -> Uses:
    order = _order(call)
    back = sorted(range(len(order)), key=order.__getitem__)
    return [(call.args["self"], lambda dead: None if dead is None else dead.permute(back))]


def _slice_zero(call: Call, known: Known) -> Pattern | None:
    x, dim = call.args["self"], call.args["dim"]
    pattern = known(x)
    if pattern is None or pattern.shape[dim] == 1:
        return pattern
    start, end, step = (call.args[name] for name in ("start", "end", "step"))
    index = [slice(None)] * x.dim()
    index[dim] = slice(start, end, step)
    return pattern[tuple(index)]


def _slice_needless(call: Call, known: Known) -> Uses:
    """A slice does not read the rest."""
    x, dim = call.args["self"], call.args["dim"]
    rank, size, chosen = x.dim(), x.shape[dim], slice(call.args["start"], call.args["end"], call.args["step"])

    def reverse(dead: Pattern | None) -> Pattern | None:
        shape = [1] * rank if dead is None else list(dead.shape)
        shape[dim] = size
        full = torch.ones(shape, dtype=torch.bool, device="cpu")
        full.transpose(0, dim)[chosen] = False if dead is None else dead.transpose(0, dim)
        return full

    return [(x, reverse)]


def _select_zero(call: Call, known: Known) -> Pattern | None:
    pattern, dim = known(call.args["self"]), call.args["dim"]
    return None if pattern is None else pattern.select(dim, 0 if pattern.shape[dim] == 1 else call.args["index"])


def _cat_zero(call: Call, known: Known) -> Pattern | None:
    parts, dim, rank = call.args["tensors"], call.args["dim"], call.results[0].dim()
    patterns = [known(part) for part in parts]
    if not any(pattern is not None for pattern in patterns) or any(part.dim() != rank for part in parts):
        return None
    nothing = torch.zeros((1,) * rank, dtype=torch.bool, device="cpu")
    full = [nothing if pattern is None else pattern for pattern in patterns]
    shape = list(torch.broadcast_shapes(*(_without(pattern, dim).shape for pattern in full)))
    sized = []
    for part, pattern in zip(parts, full, strict=True):
        shape[dim] = part.shape[dim]
        sized.append(pattern.expand(shape))
    return torch.cat(sized, dim)


def _without(pattern: Pattern, dim: int) -> Pattern:
    return pattern.narrow(dim, 0, 1)


def _cat_needless(call: Call, known: Known) -> Uses:
    dim, start, uses, rank = call.args["dim"], 0, [], call.results[0].dim()
    for part in call.args["tensors"]:
        size = part.shape[dim] if part.dim() == rank else 0  # torch lets an empty vector stand among any tensors
        uses.append((part, _narrowed(dim, start, size)))
        start += size
    return uses


def _narrowed(dim: int, start: int, size: int) -> Reverse:
    def reverse(dead: Pattern | None) -> Pattern | None:
        return dead if dead is None or dead.shape[dim] == 1 else dead.narrow(dim, start, size)

    return reverse


def _pad_zero(call: Call, known: Known) -> Pattern | None:
    """What is padded is zero too; of a pattern that is alike along a dimension, padding with zeros is known there."""
    x, pad = call.args["self"], call.args["pad"]
    pattern = known(x)
    if call.args["value"] != 0 or pattern is None:
        return None
    shape = list(pattern.shape)
    for side in range(len(pad) // 2):
        before, after = pad[2 * side : 2 * side + 2]
        dim = x.dim() - 1 - side
        if shape[dim] > 1 and min(before, after) >= 0:
            edges = [[*shape[:dim], count, *shape[dim + 1 :]] for count in (before, after)]
            made = [torch.ones(edge, dtype=torch.bool, device="cpu") for edge in edges]
            pattern = torch.cat([made[0], pattern, made[1]], dim)
            shape = list(pattern.shape)
        elif shape[dim] > 1:
            return None
    return pattern


_RESHAPES = ("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "_reshape_alias")

VIEWS: dict[str, Rule] = {
    **{f"aten::{name}": Rule(_view_zero, _view_needless) for name in _RESHAPES},
    **{f"aten::{name}": Rule(_permute_zero, _permute_needless) for name in ("permute", "t", "transpose")},
    "aten::slice": Rule(_slice_zero, _slice_needless),
    "aten::select": Rule(_select_zero, nothing),
    "aten::cat": Rule(_cat_zero, _cat_needless),
    "aten::constant_pad_nd": Rule(_pad_zero, nothing),
}
