"""What is known to be zero while a model is traced, and which results nobody needs.

A small abstract interpretation: the zeros of weights are read before their values are dropped, and `zero_rules` follows
them through the operators, forward to what else is zero and back to the results that only feed zeros. A model without
zeros in its weights is not followed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from energy_models.counts import Gemm
from energy_models.tracing.call import Call, Product
from energy_models.tracing.ghosts import has_ghost
from energy_models.tracing.origins import storage_id
from energy_models.tracing.patterns import Pattern, both, compact, known_nonzeros, of_channels, ranked, zeros_in
from energy_models.tracing.zero_macs import CONVOLUTIONS, Matrices, count_zeros, matrices
from energy_models.tracing.zero_rule import Reverse
from energy_models.tracing.zero_rules import RULES

# Zero at first in most models; by themselves they make no zeros.
_UNTOLD = ("bias", "running_mean", "running_var")

# A uniform random weight of 24 bits is zero once in 2**24 draws: so few zeros were put there by nobody.
_BY_CHANCE = 2.0**-12

_Geometry = tuple[int, tuple[int, ...], tuple[int, ...]]


class Nodes:
    """Numbers the tensors that were seen: one for each view of a storage, and a new one when it is written to."""

    def __init__(self) -> None:
        self._of_storage: dict[int, dict[_Geometry, int]] = {}
        self._kept: list[Any] = []  # keeps ids unique
        self._count = 0

    def find(self, x: Tensor) -> int | None:
        """The number of a tensor; None: not seen."""
        return self._of_storage.get(storage_id(x), {}).get(_geometry(x))

    def siblings(self, x: Tensor) -> Iterable[int]:
        """Other views of its storage."""
        return self._of_storage.get(storage_id(x), {}).values()

    def add(self, x: Tensor) -> int:
        """A number for a view that has none."""
        key = storage_id(x)
        if key not in self._of_storage:
            self._of_storage[key] = {}
            self._kept.append(x.untyped_storage() if x.layout == torch.strided else x)
        self._count += 1
        self._of_storage[key][_geometry(x)] = self._count
        return self._count

    def written(self, x: Tensor) -> None:
        """All views of its storage hold other values now."""
        self._of_storage.get(storage_id(x), {}).clear()


def _geometry(x: Tensor) -> _Geometry:
    if x.layout != torch.strided:
        return 0, tuple(x.shape), ()
    return int(x.storage_offset()), tuple(x.shape), x.stride()


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """A result (None: of the model itself) and what it is made of, each with what follows from needless elements."""

    output: int | None
    of: list[tuple[int, Reverse | None]]
    is_view: bool = False


class KnownZeros:
    """Follows known zeros from operator to operator."""

    def __init__(self) -> None:
        self._nodes = Nodes()
        self._patterns: dict[int, Pattern] = {}
        self._stale: set[int] = set()  # real tensors into which a ghost was written: their values are not theirs
        self._is_followed = False
        self._uses: list[_Use] = []
        self._products: list[tuple[int, Product, Matrices, int]] = []

    def read(self, name: str, x: Tensor, stand_in: Tensor) -> None:
        """Look for zeros among the values of a parameter or buffer; `stand_in` is what the trace will see of it."""
        if not _has_values(x) or self._nodes.find(stand_in) is not None:
            return
        pattern = zeros_in(x, at_least=_BY_CHANCE)
        if pattern is not None:
            self._patterns[self._nodes.add(stand_in)] = pattern
            self._is_followed |= not any(word in name for word in _UNTOLD)

    def of(self, x: Any) -> Pattern | None:
        """The pattern of a tensor; None for a number, or when nothing is known."""
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            return None
        node = self._nodes.find(x)
        if node in self._patterns or node in self._stale:
            return self._patterns.get(node)
        return zeros_in(x) if x.dtype == torch.bool and _has_values(x) else None  # a mask keeps its values in a count

    def nonzeros(self, x: Tensor) -> int | None:
        """Elements of a tensor that are not known to be zero; None: all."""
        pattern = self.of(x) if self._is_followed else None
        return None if pattern is None else known_nonzeros(pattern, x.shape)

    def see(self, call: Call, products: Sequence[tuple[int, Product]]) -> None:
        """Follow one call, whose `products` are GEMMs with these numbers."""
        if not self._is_followed or not call.results:
            return
        inputs = [self._node(x) for x in call.tensors]
        known = matrices(call, self.of) if products else []
        uses: list[tuple[int, Reverse | None]] = []
        if call.op in RULES:
            rule = RULES[call.op]
            uses = [(self._node(x), reverse) for x, reverse in rule.needless(call, self.of)]
            found = [compact(rule.zero(call, self.of))]
        else:
            found = [_result_zeros(call, one, self.of) for one in known]
        used = {node for node, _ in uses}
        uses += [(node, None) for node in inputs if node not in used]
        outputs = self._outputs(call)
        if any(node in self._stale for node in inputs) or (call.written and has_ghost(call.tensors)):
            self._stale.update(outputs)
        if outputs:
            self._uses.append(_Use(outputs[0], uses, is_view=_is_view(call)))
            self._patterns.update({node: p for node, p in zip(outputs, found, strict=False) if p is not None})
        if len(known) == len(products):
            self._products += [(*of, one, node) for of, one, node in zip(products, known, outputs, strict=False)]

    def need(self, values: Iterable[Any]) -> None:
        """What a model returns is needed."""
        if self._is_followed:
            tensors = (x for x in values if isinstance(x, Tensor))
            self._uses.append(_Use(None, [(self._node(x), None) for x in tensors]))

    def counted(self, gemms: Iterable[Gemm]) -> tuple[Gemm, ...]:
        """The GEMMs with what is known of their zeros. At the end, when it is known which results nobody needed."""
        result, needless = list(gemms), self._needless() if self._products else {}
        for index, product, known, node in self._products:
            result[index] = replace(result[index], zeros=count_zeros(product, known, needless.get(node)))
        return tuple(result)

    def _node(self, x: Tensor) -> int:
        node = self._nodes.find(x)
        if node is None:
            # A view that no operator was seen to make: whatever else is in that storage may be read through it.
            self._uses.append(_Use(None, [(other, None) for other in self._nodes.siblings(x)]))
            pattern = self.of(x)
            node = self._nodes.add(x)
            if pattern is not None:
                self._patterns[node] = pattern
        return node

    def _outputs(self, call: Call) -> list[int]:
        """Numbers of the results; none if they are what was there before."""
        written = [call.args[name] for name in call.written if isinstance(call.args[name], Tensor)]
        for x in written:
            self._nodes.written(x)
        if not written and self._nodes.find(call.results[0]) is not None:
            return []
        return [self._nodes.add(x) for x in call.results]

    def _needless(self) -> dict[int, Pattern | None]:
        """By tensor: the elements that nobody needs. What nobody was seen to use is a result of the model."""
        needless: dict[int, Pattern | None] = {}
        for use in reversed(self._uses):
            if use.is_view and use.output not in needless:
                continue  # a view that nobody read
            of_output = None if use.output is None else needless.get(use.output)
            for node, reverse in use.of:
                pattern = None if reverse is None else compact(reverse(of_output))
                needless[node] = both(needless[node], pattern) if node in needless else pattern
        return needless


def _is_view(call: Call) -> bool:
    storage = storage_id(call.results[0])
    return not call.written and any(storage_id(x) == storage for x in call.tensors)


def _has_values(x: Tensor) -> bool:
    is_plain = type(x).__torch_dispatch__ is Tensor.__torch_dispatch__  # no ghost, no fake tensor of torch's
    if x.is_meta or x.layout != torch.strided or not is_plain:
        return False
    return x.is_floating_point() or x.dtype == torch.bool


def _result_zeros(call: Call, known: Matrices, of: Callable[[Any], Pattern | None]) -> Pattern | None:
    """Results of a product whose every term is zero, what is added to it included."""
    zeros = known.result_zeros()
    if zeros is None or known.back is None:
        return None
    pattern, added = known.back(zeros), None if known.added is None else call.args[known.added]
    if added is None:
        return compact(pattern)
    bias = of(added)
    if bias is not None:
        is_channel = call.op in CONVOLUTIONS
        bias = of_channels(bias, pattern.dim()) if is_channel else ranked(bias, pattern.dim())
    return compact(both(pattern, bias))
