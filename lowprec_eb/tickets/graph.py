"""The channel graph of a model: sites and atoms.

A *site* is one side of a module that channels pass through, an *atom* what cannot be told apart: positions of several
sites that hold the same channel. A batch normalisation has two sites, so that a model can be cut in front of it and
behind it (pre-activation nets).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

Side = Literal["out", "in"]
Unit = Literal["channel", "head"]
Tensors = tuple[tuple[str, int], ...]  # a module's tensors and the dimension along which each is cut
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM_TENSORS = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))


@dataclass(frozen=True, eq=False)
class Site:
    """One side of a module; ``atoms[i]`` is the atom at position i of ``tensors`` (name, dimension); shape (width,).

    attention: of head units, the module that attends.
    """

    module: str
    side: Side
    tensors: Tensors
    atoms: NDArray[np.int64]
    unit: Unit = "channel"
    attention: str | None = None


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """All sites of a model; atoms are numbered from 0.

    fixed: why an atom cannot be cut, for those that cannot. head_counts: by module that attends, attributes (module,
    name) that count its heads.
    """

    sites: tuple[Site, ...]
    atoms: int
    fixed: Mapping[int, str]
    head_counts: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """The nodes of one site."""

    start: int
    width: int
    tensors: tuple[tuple[str, int], ...]
    unit: Unit = "channel"
    attention: str | None = None

    @property
    def nodes(self) -> range:
        return range(self.start, self.start + self.width)


@dataclass(eq=False)
class Builder:
    """Sites as ranges of nodes, and the pairs of nodes that are the same channel."""

    modules: dict[str, nn.Module]
    ranges: dict[tuple[str, Side], Range] = field(default_factory=dict)
    nodes: int = 0
    pairs: list[NDArray[np.int64]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  # node -> why it cannot be cut

    def add(self, module: str, side: Side, width: int, tensors: Tensors, attention: str | None = None) -> range:
        """The nodes of a site, which is made if it is not there yet; ``attention``: of heads, who attends."""
        key = (module, side)
        if key not in self.ranges:
            unit: Unit = "channel" if attention is None else "head"
            self.ranges[key] = Range(self.nodes, width, tensors, unit, attention)
            self.nodes += width
        return self.ranges[key].nodes

    def layer(self, name: str, side: Side) -> range | None:
        """The nodes of a side of a torch layer; None if that cannot be cut."""
        found = layer_tensors(self.modules[name], side)
        return None if found is None else self.add(name, side, *found)

    def known(self, name: str, side: Side) -> range | None:
        """The nodes of a side that the dependency graph has met."""
        found = self.ranges.get((name, side))
        return None if found is None else found.nodes

    def join(self, first: Iterable[int], second: Iterable[int]) -> None:
        self.pairs.append(np.stack([np.fromiter(first, np.int64), np.fromiter(second, np.int64)]))

    def fix(self, nodes: Iterable[int], reason: str) -> None:
        for node in nodes:
            self.reasons.setdefault(node, reason)

    def graph(self) -> ChannelGraph:
        rows, columns = np.concatenate([np.empty((2, 0), np.int64), *self.pairs], axis=1)
        links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.nodes, self.nodes))
        atoms, labels = connected_components(links, directed=False)
        sites = [
            Site(
                module, side, of.tensors, labels[of.start : of.start + of.width].astype(np.int64), of.unit, of.attention
            )
            for (module, side), of in self.ranges.items()
        ]
        order = {name: place for place, name in enumerate(self.modules)}
        sites.sort(key=lambda site: (order[site.module], site.side == "out"))
        fixed = {int(labels[node]): reason for node, reason in reversed(self.reasons.items())}
        return ChannelGraph(tuple(sites), int(atoms), fixed)


def layer_tensors(module: nn.Module, side: Side) -> tuple[int, Tensors] | None:
    """Width of a side of a layer, and which of its tensors are cut along which dimension; None: it cannot be cut.

    A grouped convolution loses whole groups, which lie along the first dimension of its weight alone.
    """
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return _convolution_tensors(module, side)
    match module:
        case nn.Linear() if side == "out":
            return module.out_features, _present(module, (("weight", 0), ("bias", 0)))
        case nn.Linear():
            return module.in_features, (("weight", 1),)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if side == "out":
            return module.num_features, _present(module, _NORM_TENSORS)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return int(getattr(module, "in_channels", module.num_features)), ()
        case nn.Embedding() if side == "out":
            return module.embedding_dim, (("weight", 1),)
        case _ if side == "out" and (counts := norm_counts(module)):
            return int(getattr(module, counts[0])), _present(module, _NORM_TENSORS)
        case nn.PReLU() if module.num_parameters > 1:
            return module.num_parameters, (("weight", 0),)
    return None


def _convolution_tensors(module: Any, side: Side) -> tuple[int, Tensors]:
    out, into = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
    dim, width = (out, module.out_channels) if side == "out" else (into, module.in_channels)
    dim = 0 if is_depthwise(module) else dim
    weight = (("weight", dim),) if module.groups == 1 or dim == 0 else ()
    return width, (*weight, *_present(module, (("bias", 0),) if side == "out" else ()))


def norm_counts(module: nn.Module) -> tuple[str, ...]:
    """Of a normalisation that takes each channel of an example by itself: the attributes that count its channels."""
    if isinstance(module, INSTANCE_NORMS):
        return ("num_features",)
    alone = isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
    return ("num_channels", "num_groups") if alone else ()


def _present(module: nn.Module, tensors: Tensors) -> Tensors:
    return tuple((name, dim) for name, dim in tensors if getattr(module, name, None) is not None)


def is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return False
    return module.groups == module.in_channels == module.out_channels > 1
