"""Counts by module: a tree of plain data, each node the sum of a module and of all below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from energy_models.units import aligned, share_text, si_text

if TYPE_CHECKING:
    from energy_models.counts import OpCounts

OPTIMIZER = "(optimizer)"
MODEL = "(model)"
ITSELF = "(itself)"
_HEADINGS = ("layer", "MACs", "share", "output", "grad_input", "grad_weight", "bit-ops", "other ops", "traffic")


@dataclass(frozen=True)
class CountNode:
    """What one module does, everything below it included.

    Args:
        name: the last part of `path`, which is the module's name in the model; the root is "(model)" and has all.
        macs: by GEMM.
        operations: adds and multiplications outside the GEMMs.
        traffic_bytes: operands read once, results written once, each operation by itself.
        children: in the model's order, as far as the counts know it. The optimizer's work is the child "(optimizer)"
            of the root.
    """

    name: str
    path: str
    macs: Mapping[str, int]
    bit_ops: int
    operations: int
    traffic_bytes: float
    children: tuple[CountNode, ...] = ()

    @property
    def total_macs(self) -> int:
        """MACs of all GEMMs."""
        return sum(self.macs.values())

    @property
    def own(self) -> CountNode:
        """What the module does itself, in none of its children."""
        macs = {gemm: n - sum(child.macs.get(gemm, 0) for child in self.children) for gemm, n in self.macs.items()}
        return CountNode(
            ITSELF,
            self.path,
            macs,
            self.bit_ops - sum(child.bit_ops for child in self.children),
            self.operations - sum(child.operations for child in self.children),
            self.traffic_bytes - sum(child.traffic_bytes for child in self.children),
        )

    def __getitem__(self, path: str) -> CountNode:
        """The node below with this name or dotted path.

        Raises:
            KeyError: there is none; the message has the names that are there.
        """
        name, _, rest = path.partition(".")
        for child in self.children:
            if child.name == name:
                return child[rest] if rest else child
        names = ", ".join(child.name for child in self.children) or "nothing"
        raise KeyError(f"{self.path or MODEL} has no {name!r}; below it: {names}")

    def walk(self) -> Iterator[CountNode]:
        """This node and all below, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def cut(self, depth: int) -> CountNode:
        """The same node with `depth` levels below it (0: none).

        Raises:
            ValueError: `depth` is negative.
        """
        if depth < 0:
            raise ValueError(f"depth must be 0 or more, got {depth}")
        return replace(self, children=tuple(child.cut(depth - 1) for child in self.children) if depth else ())

    def text(self, depth: int | None = None) -> str:
        """An indented table, `depth` levels deep (None: all), with shares of this node's MACs."""
        node = self if depth is None else self.cut(depth)
        return aligned([list(_HEADINGS), *_lines(node, 0, node.total_macs)])

    def __str__(self) -> str:
        return self.text()


def _lines(node: CountNode, level: int, whole: int) -> Iterator[list[str]]:
    gemms = (si_text(node.macs.get(gemm, 0)) for gemm in ("output", "grad_input", "grad_weight"))
    work = (si_text(node.bit_ops), si_text(node.operations), si_text(node.traffic_bytes, "B"))
    yield ["  " * level + node.name, si_text(node.total_macs), share_text(node.total_macs, whole), *gemms, *work]
    if node.children and node.own.total_macs:
        yield from _lines(node.own, level + 1, whole)
    for child in node.children:
        yield from _lines(child, level + 1, whole)


@dataclass
class _Sum:
    macs: dict[str, int]
    bit_ops: int = 0
    operations: int = 0
    traffic_bits: int = 0
    children: dict[str, _Sum] = field(default_factory=dict)
    order: tuple[dict[str, None], dict[str, None]] = field(default_factory=lambda: ({}, {}))  # see `in_order`

    def node(self, name: str, path: str) -> CountNode:
        inside = f"{path}." if path else ""
        names = in_order(*map(list, self.order))
        children = tuple(self.children[child].node(child, inside + child) for child in names)
        return CountNode(name, path, self.macs, self.bit_ops, self.operations, self.traffic_bits / 8, children)


def in_order(by_gemms: list[str], by_others: list[str]) -> list[str]:
    """Names of children as two lists see them, each in the model's order, as one: names that are in both hold the
    others in their place."""
    merged, place = list(by_gemms), 0
    for number, name in enumerate(by_others):
        if name not in merged:
            later = set(by_others[number + 1 :])
            merged.insert(next((at for at in range(place, len(merged)) if merged[at] in later), len(merged)), name)
        place = max(place, merged.index(name) + 1)
    # Layers of a Sequential or a ModuleList are named by their place.
    return sorted(merged, key=int) if all(name.isdecimal() for name in merged) else merged


def count_tree(counts: OpCounts) -> CountNode:
    """The tree of `counts` by module path."""
    gemms = dict.fromkeys(counts.macs, 0)
    root = _Sum(dict(gemms))
    for gemm in counts.gemms:
        for place in _way(root, gemm.layer, gemm.part, gemms, 0):
            place.macs[gemm.gemm] += gemm.macs
            place.bit_ops += gemm.bit_ops
            place.traffic_bits += gemm.traffic_bits
    for op in counts.element_ops:
        for place in _way(root, op.layer, op.part, gemms, 1):
            place.operations += op.operations
            place.traffic_bits += op.traffic_bits
    return root.node(MODEL, "")


def _way(root: _Sum, layer: str, part: str, gemms: Mapping[str, int], seen_by: int) -> Iterator[_Sum]:
    """The sums of a layer and of all modules around it."""
    yield root
    place = root
    # Rows of an optimizer are named by parameters, which are no modules.
    for name in [OPTIMIZER] if part == "optimizer" else layer.split(".") if layer else []:
        place.order[seen_by][name] = None
        place = place.children.setdefault(name, _Sum(dict(gemms)))
        yield place
