"""Which channels of a model go together, read off Torch-Pruning's dependency graph (Fang et al., DepGraph, CVPR 2023).

A *site* is one side of a module that channels pass through, an *atom* what cannot be told apart: positions of several
sites that hold the same channel. A batch normalisation has two sites, so that a model can be cut in front of it and
behind it (pre-activation nets); ``coupled`` joins them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from lowprec_eb.tickets.calls import Inputs, call, plain_copy
from lowprec_eb.tickets.heads import HeadSite, head_sites
from lowprec_eb.tickets.narrow import SELECTED

Side = Literal["out", "in"]
Unit = Literal["channel", "head"]
Tensors = tuple[tuple[str, int], ...]  # a module's tensors and the dimension along which each is cut
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WRITERS = (*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, nn.Linear, nn.Embedding)
_NORM_TENSORS = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
_MIXES = "computes over all of its channels together"


@dataclass(frozen=True, eq=False)
class Site:
    """One side of a module; ``atoms[i]`` is the atom at position i of ``tensors`` (name, dimension); shape (width,)."""

    module: str
    side: Side
    tensors: Tensors
    atoms: NDArray[np.int64]
    unit: Unit = "channel"


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """All sites of a model; atoms are numbered from 0. ``fixed``: why an atom cannot be cut, for those that cannot."""

    sites: tuple[Site, ...]
    atoms: int
    fixed: dict[int, str]


@dataclass(frozen=True)
class _Range:
    """The nodes of one site."""

    start: int
    width: int
    tensors: tuple[tuple[str, int], ...]
    unit: Unit = "channel"

    @property
    def nodes(self) -> range:
        return range(self.start, self.start + self.width)


@dataclass(eq=False)
class _Builder:
    """Sites as ranges of nodes, and the pairs of nodes that are the same channel."""

    modules: dict[str, nn.Module]
    ranges: dict[tuple[str, Side, str], _Range] = field(default_factory=dict)  # (module, side, tensor of heads)
    nodes: int = 0
    pairs: list[NDArray[np.int64]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  # node -> why it cannot be cut

    def add(self, module: str, side: Side, width: int, tensors: Tensors, unit: Unit = "channel") -> range:
        """The nodes of a site, which is made if it is not there yet."""
        key = (module, side, tensors[0][0] if unit == "head" else "")
        if key not in self.ranges:
            self.ranges[key] = _Range(self.nodes, width, tensors, unit)
            self.nodes += width
        return self.ranges[key].nodes

    def layer(self, name: str, side: Side) -> range | None:
        """The nodes of a side of a torch layer; None if that cannot be cut."""
        found = layer_tensors(self.modules[name], side)
        return None if found is None else self.add(name, side, *found)

    def known(self, name: str, side: Side) -> range | None:
        """The nodes of a side that the dependency graph has met."""
        found = self.ranges.get((name, side, ""))
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
            Site(module, side, of.tensors, labels[of.start : of.start + of.width].astype(np.int64), of.unit)
            for (module, side, _), of in self.ranges.items()
        ]
        order = {name: place for place, name in enumerate(self.modules)}
        sites.sort(key=lambda site: (order[site.module], site.side == "out"))
        fixed = {int(labels[node]): reason for node, reason in reversed(self.reasons.items())}
        return ChannelGraph(tuple(sites), int(atoms), fixed)


def channel_graph(model: nn.Module, example_inputs: Inputs, *, coupled: bool) -> ChannelGraph:
    """Sites and atoms of ``model``, which is run once on ``example_inputs`` and not changed.

    coupled: whether a channel in front of a batch normalisation and the one behind it are the same.
    """
    plain = plain_copy(model).requires_grad_(True)  # the graph is read off autograd, which must reach frozen layers too
    modules = dict(plain.named_modules())
    heads = head_sites(plain, example_inputs)
    build = _Builder(modules)
    _read_dependencies(build, plain, example_inputs, {site.module for site in heads})
    if coupled:
        _join_normalisations(build)
    _join_convolution_groups(build)
    _join_tied(build)
    _add_heads(build, heads)
    return build.graph()


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
        case nn.PReLU() if module.num_parameters > 1:
            return module.num_parameters, (("weight", 0),)
    return None


def _convolution_tensors(module: Any, side: Side) -> tuple[int, Tensors]:
    out, into = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
    dim, width = (out, module.out_channels) if side == "out" else (into, module.in_channels)
    weight = (("weight", dim),) if module.groups == 1 or dim == 0 else ()
    return width, (*weight, *_present(module, (("bias", 0),) if side == "out" else ()))


def _present(module: nn.Module, tensors: Tensors) -> Tensors:
    return tuple((name, dim) for name, dim in tensors if getattr(module, name, None) is not None)


# ---- Torch-Pruning ------------------------------------------------------------------------------------------------


class _TwoSided(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Tells the dependency graph of a layer whose output channels are not its input channels."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return _width(layer, "out")

    def get_in_channels(self, layer: nn.Module) -> int:
        return _width(layer, "in")


def _width(layer: nn.Module, side: Side) -> int:
    if isinstance(layer, nn.MultiheadAttention):
        return int(layer.embed_dim)
    found = layer_tensors(layer, side)
    assert found is not None
    return found[0]


def _read_dependencies(build: _Builder, plain: nn.Module, example_inputs: Inputs, attention: set[str]) -> None:
    graph, often = _dependency_graph(plain, example_inputs)
    names = {module: name for name, module in build.modules.items()}
    for name, module in build.modules.items():
        if module not in graph.module2node or not isinstance(module, _WRITERS) or name in attention:
            continue
        roots = build.layer(name, "out")
        assert roots is not None
        prune = graph.get_pruner_of_module(module).prune_out_channels
        for item in graph.get_pruning_group(module, prune, list(range(len(roots)))):
            _join_item(build, item, names, roots, attention)
    for name, module in build.modules.items():
        for nodes in (build.known(name, "out"), build.known(name, "in")):
            if nodes is not None and name in often:
                build.fix(nodes, f"passes through {name}, which is applied more than once in a forward pass")
            if nodes is not None and is_parametrized(module):
                build.fix(nodes, f"passes through {name}, whose tensors are parametrised")


def _dependency_graph(plain: nn.Module, example_inputs: Inputs) -> tuple[Any, set[str]]:
    """Torch-Pruning's graph, and the modules that were called more than once."""
    types = [*BATCH_NORMS, *SELECTED, nn.MultiheadAttention]
    calls: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
        for name, module in plain.named_modules()
    ]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that no layer owns: they are looked after here
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                plain,
                example_inputs,
                forward_fn=call,
                output_transform=_marked,
                customized_pruners={cls: _TwoSided() for cls in types},
                verbose=False,
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"Torch-Pruning cannot read how {type(plain).__name__} couples its channels ({error!r}): a view that "
                "reorders channels, say; without groups, and with a model in parts, tickets may still be drawn"
            ) from error
    for handle in handles:
        handle.remove()
    return graph, {name for name, times in calls.items() if times > 1}


def _marked(outputs: Any) -> list[Tensor]:
    """The model's outputs behind an operation of their own, which the graph knows as an output."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    return [leaf * 1 for leaf in leaves]


def _join_item(build: _Builder, item: Any, names: dict[Any, str], all_roots: range, attention: set[str]) -> None:
    """One entry of a pruning group: positions ``idxs`` of a module hold the root's channels ``root_idxs``."""
    target, roots = item.dep.target.module, [all_roots[channel] for channel in item.root_idxs]
    side: Side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
    if isinstance(target, nn.Parameter):
        return build.fix(roots, "is combined with a parameter of its own, which is not a layer's")
    if target not in names:
        if type(target).__name__ == "_OutputOp":
            build.fix(roots, "is an output of the model")
        return None
    name = names[target]
    if name in attention:
        return build.fix(roots, f"is read or written by attention ({name})")
    if is_depthwise(target):
        side = "out"
    nodes = build.layer(name, side)
    if nodes is None:
        return build.fix(roots, f"passes through {name} ({type(target).__name__}), which {_MIXES}")
    if any(position >= len(nodes) for position in item.idxs):
        return build.fix(roots, f"reaches {name} in a way that the dependency graph does not know")
    return build.join(roots, (nodes[position] for position in item.idxs))


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels > 1


# ---- what the dependency graph leaves open ------------------------------------------------------------------------


def _join_normalisations(build: _Builder) -> None:
    for name, module in build.modules.items():
        if not isinstance(module, BATCH_NORMS):
            continue
        before, behind = build.known(name, "in"), build.known(name, "out")
        if before is not None and behind is not None:
            selected = getattr(module, "selected", None)
            order = range(len(behind)) if selected is None else selected.tolist()
            build.join((before[position] for position in order), behind)


def _join_convolution_groups(build: _Builder) -> None:
    """A grouped convolution can lose whole groups alone: inputs and outputs of one group go together."""
    for name, module in build.modules.items():
        if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) or module.groups == 1 or is_depthwise(module):
            continue
        before, behind = build.known(name, "in"), build.known(name, "out")
        if before is None or behind is None:
            build.fix([*(before or ()), *(behind or ())], f"{name} is a grouped convolution of the model's input")
            continue
        for group in range(module.groups):
            together = [*_part(before, group, module.groups), *_part(behind, group, module.groups)]
            build.join(together[:-1], together[1:])


def _part(nodes: range, group: int, groups: int) -> range:
    size = len(nodes) // groups
    return nodes[group * size : (group + 1) * size]


def _join_tied(build: _Builder) -> None:
    """A parameter of two layers is cut for both."""
    owners: dict[tuple[int, int], range] = {}
    for (module, _, _), of in build.ranges.items():
        for name, dim in of.tensors:
            tensor = build.modules[module].get_parameter(name) if "." in name else getattr(build.modules[module], name)
            other = owners.setdefault((id(tensor), dim), of.nodes)
            if other != of.nodes:
                build.join(other, of.nodes)


def _add_heads(build: _Builder, heads: Sequence[HeadSite]) -> None:
    first: dict[str, range] = {}
    for site in heads:
        nodes = build.add(site.module, site.side, len(site.heads), site.tensors, "head")
        if site.attention not in first:
            first[site.attention] = range(build.nodes, build.nodes + max(site.heads) + 1)
            build.nodes += max(site.heads) + 1
        build.join((first[site.attention][head] for head in site.heads), nodes)
