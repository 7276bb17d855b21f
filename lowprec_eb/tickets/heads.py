"""Attention heads as units that can be cut: which rows and columns of which layers belong to a head.

``nn.MultiheadAttention`` is known. Attention of somebody's own is asked: gradients of a head's queries, keys and values
say which rows make them, and numbers sent through the attention's result say where each head is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lowprec_eb.tickets.calls import FUSED_ATTENTION, Inputs, call, first_tensor

_WIDTHS = ("attn_dim", "all_head_size", "inner_dim", "split_size")  # of all heads of a module together


@dataclass(frozen=True)
class HeadSite:
    """Rows or columns of a module that attention heads own: position i belongs to head ``heads[i]``.

    Query heads that share keys and values count as one head. ``attention`` is the module that attends; it may be
    ``module`` itself. ``counts``: attributes (module, name) that count heads, and scale with what is left.
    """

    attention: str
    module: str
    side: Literal["out", "in"]
    tensors: tuple[tuple[str, int], ...]
    heads: tuple[int, ...]
    counts: tuple[tuple[str, str], ...] = ()


def head_sites(model: nn.Module, example_inputs: Inputs) -> list[HeadSite]:
    """The head sites of every attention module whose heads can be cut; ``model`` is run, and not changed."""
    sites = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and _is_ordinary(module):
            sites += _of_torch(name, module)
    calls = _calls(model, example_inputs)
    often = Counter(frame.name for enclosing in calls for frame in enclosing.frames)
    for asked in calls:
        alone = [frame for frame in reversed(asked.frames) if often[frame.name] == 1]
        found = (_asked(model, frame, asked) for frame in alone)
        sites += next((of_frame for of_frame in found if of_frame), [])
    return sites


def _is_ordinary(module: nn.MultiheadAttention) -> bool:
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


def _of_torch(name: str, module: nn.MultiheadAttention) -> list[HeadSite]:
    rows = tuple(head for _ in range(3) for head in range(module.num_heads) for _ in range(module.head_dim))
    bias = (("in_proj_bias", 0),) if module.in_proj_bias is not None else ()
    columns = rows[: len(rows) // 3]
    return [
        HeadSite(name, name, "out", (("in_proj_weight", 0), *bias), rows),
        HeadSite(name, name, "in", (("out_proj.weight", 1),), columns),
    ]


# ---- attention of somebody's own ----------------------------------------------------------------------------------


class Fused(TorchFunctionMode):
    """Hands calls of torch's fused attention to ``answer``."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.answer if func is FUSED_ATTENTION else func)(*args, **(kwargs or {}))


def apart() -> Fused:
    """While it is entered, attention results depend on nothing: a dependency graph ends there."""
    return Fused(lambda *args, **kwargs: FUSED_ATTENTION(*args, **kwargs).detach().requires_grad_(True))


class _Frame(NamedTuple):
    """A module that is running, and what it was called with."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Call(NamedTuple):
    """One call of torch's fused attention: who is running, the innermost last, and how many heads there are."""

    frames: tuple[_Frame, ...]
    query_heads: int
    key_heads: int


@dataclass(eq=False)
class _Callers:
    """Follows which modules are running, while its hooks are in place."""

    running: list[_Frame] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)

    def answer(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.dim() > 3 and query.shape[-3] % key.shape[-3] == 0:
            self.calls.append(_Call(tuple(self.running), query.shape[-3], key.shape[-3]))
        return FUSED_ATTENTION(query, key, *args, **kwargs)

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():

            def enter(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                self.running.append(_Frame(name, args, kwargs))

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda *_: self.running.pop() and None, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def _calls(model: nn.Module, example_inputs: Inputs) -> list[_Call]:
    callers = _Callers()
    with callers.following(model), Fused(callers.answer):
        call(model, example_inputs)
    return callers.calls


def _asked(model: nn.Module, frame: _Frame, asked: _Call) -> list[HeadSite]:
    """The sites of attention inside one module; none if its rows or columns are not of one head each."""
    module, prefix = model.get_submodule(frame.name), f"{frame.name}." if frame.name else ""
    layers = {child: layer for child, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    rows = _rows(module, layers, frame, asked) if layers else {}
    columns = _columns(module, layers, frame, asked) if rows else {}
    units = _shared(asked.query_heads, list(rows.values()))
    owned = {child: _owners(flags, units) for child, flags in rows.items()}
    if len(columns) != 1 or any(of is None for of in owned.values()) or set(columns) & set(owned):
        return []
    heads, width = {asked.query_heads, max(units) + 1}, max(map(len, columns.values()))
    inside = [name for name, *_ in asked.frames if name.startswith(prefix) or name == frame.name]
    counts = tuple((name, key) for name in inside for key in _counts(model.get_submodule(name), heads, width))
    sites = []
    for child, of_rows in owned.items():
        tensors = (("weight", 0), *((("bias", 0),) if layers[child].bias is not None else ()))
        sites.append(HeadSite(frame.name, prefix + child, "out", tensors, tuple(of_rows or ()), counts))
    for child, of_columns in columns.items():
        into = tuple(units[head] for head in of_columns)
        sites.append(HeadSite(frame.name, prefix + child, "in", (("weight", 1),), into, counts))
    return sites


def _rows(module: nn.Module, layers: dict[str, nn.Linear], frame: _Frame, asked: _Call) -> dict[str, Tensor]:
    """By layer, which of its rows make a head's query, key and value; bool (heads, rows)."""
    seen: list[tuple[Tensor, ...]] = []

    def keep(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query, key, value))
        return FUSED_ATTENTION(query, key, value, *args, **kwargs)

    # Of layers in a row the last one makes the heads: gradients end at every layer's input.
    handles = [layer.register_forward_pre_hook(_detached, with_kwargs=True) for layer in layers.values()]
    with torch.enable_grad(), Fused(keep):
        module(*frame.args, **frame.kwargs)
    for handle in handles:
        handle.remove()
    weights = [layer.weight for layer in layers.values()]
    used: list[list[Tensor]] = [[] for _ in weights]
    generator = torch.Generator().manual_seed(0)
    for head in range(asked.query_heads):
        shared = head * asked.key_heads // asked.query_heads
        parts = [x[..., head if x is seen[0][0] else shared, :, :] for x in seen[0]]
        drawn = sum((part * torch.rand(part.shape, generator=generator).to(part)).sum() for part in parts)
        assert isinstance(drawn, Tensor)
        if not drawn.requires_grad:  # no layer of this module makes them
            return {}
        for place, gradient in enumerate(torch.autograd.grad(drawn, weights, retain_graph=True, allow_unused=True)):
            rows = len(weights[place])
            used[place].append(torch.zeros(rows) if gradient is None else (gradient != 0).any(1).cpu())
    flags = {child: torch.stack(of).bool() for child, of in zip(layers, used, strict=True)}
    return {child: of for child, of in flags.items() if of.any()}


def _detached(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tree_map_only(Tensor, Tensor.detach, (args, kwargs))  # type: ignore[no-any-return]


def _shared(heads: int, rows: Sequence[Tensor]) -> list[int]:
    """A number for each query head; heads that share a row have the same."""
    linked = sum((of.float() @ of.float().T for of in rows), torch.eye(heads))
    _, units = connected_components(linked.numpy() > 0, directed=False)
    return [int(unit) for unit in units]


def _owners(flags: Tensor, units: Sequence[int]) -> list[int] | None:
    """The unit of each row; None if a row is of none."""
    if not bool(flags.any(0).all()):
        return None
    return [units[int(head)] for head in flags.int().argmax(0)]


def _columns(module: nn.Module, layers: dict[str, nn.Linear], frame: _Frame, asked: _Call) -> dict[str, list[int]]:
    """By layer that reads the attention's result, the head that each of its columns reads."""
    found: dict[str, list[int]] = {}

    def label(*args: Any, **kwargs: Any) -> Tensor:
        result = FUSED_ATTENTION(*args, **kwargs)
        heads = torch.arange(1, asked.query_heads + 1, dtype=result.dtype, device=result.device)
        return heads[:, None, None].expand_as(result)

    def look(child: str, x: Tensor) -> None:
        read = x.flatten(0, -2)
        labels = read[0].round()
        if bool((read == labels).all()) and int(labels.min()) >= 1 and len(set(labels.tolist())) == asked.query_heads:
            found[child] = [int(number) - 1 for number in labels]

    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, child=child: look(child, first_tensor(args, kwargs)), with_kwargs=True
        )
        for child, layer in layers.items()
    ]
    with torch.no_grad(), Fused(label):
        module(*frame.args, **frame.kwargs)
    for handle in handles:
        handle.remove()
    return found


def _counts(module: nn.Module, heads: set[int], width: int) -> tuple[str, ...]:
    """Attributes that say how many heads there are, or how wide they are together.

    Whole numbers of that value, named after heads, or with a name that timm, transformers or diffusers give the width.
    """
    numbers = {key: value for key, value in vars(module).items() if type(value) is int}
    counting = (key for key, value in numbers.items() if value in heads and "head" in key and "dim" not in key)
    return (*counting, *(key for key in _WIDTHS if numbers.get(key) == width))
