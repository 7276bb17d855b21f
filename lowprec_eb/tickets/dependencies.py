"""A model's channel graph, read off Torch-Pruning's dependency graph (Fang et al., DepGraph, CVPR 2023).

Torch-Pruning's objects stay in here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from lowprec_eb.tickets.calls import Inputs, Undropped, call, check_example, traced_copy
from lowprec_eb.tickets.graph import (
    BATCH_NORMS,
    CONVOLUTIONS,
    TRANSPOSED,
    Builder,
    ChannelGraph,
    Side,
    is_depthwise,
    layer_tensors,
)
from lowprec_eb.tickets.heads import HeadSite, apart, head_sites
from lowprec_eb.tickets.narrow import SELECTED

_WRITERS = (*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, nn.Linear, nn.Embedding)
_MIXES = "computes over all of its channels together"


def channel_graph(
    model: nn.Module, example_inputs: Inputs, *, coupled: bool, whole_groups: bool = True
) -> ChannelGraph:
    """Sites and atoms of ``model``, which is run on ``example_inputs`` and not changed.

    coupled: whether a channel in front of a batch normalisation and the one behind it are the same. whole_groups:
    whether the channels of one group of a grouped convolution are, which can lose nothing less.

    Raises:
        TypeError, ValueError: see :func:`check_example`.
        ValueError: the dependency graph cannot be built.
    """
    check_example(model, example_inputs)
    # The graph is read off autograd, which must reach frozen layers too.
    plain = traced_copy(model, example_inputs).requires_grad_(True)
    modules = dict(plain.named_modules())
    heads = head_sites(plain, example_inputs)
    build = Builder(modules)
    _read_dependencies(build, plain, example_inputs, {(site.module, site.side) for site in heads})
    if coupled:
        _join_normalisations(build)
    if whole_groups:
        _join_convolution_groups(build)
    _join_tied(build)
    _add_heads(build, heads)
    return replace(build.graph(), head_counts={site.attention: site.counts for site in heads if site.counts})


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


def _read_dependencies(build: Builder, plain: nn.Module, example_inputs: Inputs, heads: set[tuple[str, Side]]) -> None:
    graph, often = _dependency_graph(plain, example_inputs)
    names = {module: name for name, module in build.modules.items()}
    for name, module in build.modules.items():
        if module not in graph.module2node or not isinstance(module, _WRITERS) or (name, "out") in heads:
            continue
        roots = build.layer(name, "out")
        assert roots is not None
        prune = graph.get_pruner_of_module(module).prune_out_channels
        for item in graph.get_pruning_group(module, prune, list(range(len(roots)))):
            _join_item(build, item, names, roots, heads)
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
    with torch.enable_grad(), Undropped(), apart(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that no layer owns: they are looked after here
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                plain,
                example_inputs,
                forward_fn=_in_modes_of(plain),
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


def _in_modes_of(plain: nn.Module) -> Callable[[nn.Module, Inputs], Any]:
    """A call in the modes that ``plain`` is in now; Torch-Pruning puts all of it into eval mode."""
    modes = [(module, module.training) for module in plain.modules()]

    def run(model: nn.Module, inputs: Inputs) -> Any:
        for module, training in modes:
            module.training = training
        return call(model, inputs)

    return run


def _marked(outputs: Any) -> list[Tensor]:
    """The model's outputs behind an operation of their own, which the graph knows as an output."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    if not leaves:
        raise ValueError(
            f"the model returns {type(outputs).__name__}, in which no tensor that depends on its weights is found: "
            "return tensors, or register that class with torch.utils._pytree"
        )
    return [leaf * 1 for leaf in leaves]


def _join_item(
    build: Builder, item: Any, names: dict[Any, str], all_roots: range, heads: set[tuple[str, Side]]
) -> None:
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
    if is_depthwise(target):
        side = "out"
    if (name, side) in heads:
        return build.fix(roots, f"reaches {name}, which attention heads own")
    nodes = build.layer(name, side)
    if nodes is None:
        return build.fix(roots, f"passes through {name} ({type(target).__name__}), which {_MIXES}")
    if any(position >= len(nodes) for position in item.idxs):
        return build.fix(roots, f"reaches {name} in a way that the dependency graph does not know")
    return build.join(roots, (nodes[position] for position in item.idxs))


# ---- what the dependency graph leaves open ------------------------------------------------------------------------


def _join_normalisations(build: Builder) -> None:
    for name, module in build.modules.items():
        if not isinstance(module, BATCH_NORMS):
            continue
        before, behind = build.known(name, "in"), build.known(name, "out")
        if before is not None and behind is not None:
            selected = getattr(module, "selected", None)
            order = range(len(behind)) if selected is None else selected.tolist()
            build.join((before[position] for position in order), behind)


def _join_convolution_groups(build: Builder) -> None:
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


def _join_tied(build: Builder) -> None:
    """A parameter of two layers is cut for both."""
    owners: dict[tuple[int, int], range] = {}
    for (module, _), of in build.ranges.items():
        for name, dim in of.tensors:
            tensor = build.modules[module].get_parameter(name) if "." in name else getattr(build.modules[module], name)
            other = owners.setdefault((id(tensor), dim), of.nodes)
            if other != of.nodes:
                build.join(other, of.nodes)


def _add_heads(build: Builder, heads: Sequence[HeadSite]) -> None:
    first: dict[str, range] = {}
    for site in heads:
        nodes = build.add(site.module, site.side, len(site.heads), site.tensors, site.attention)
        if site.attention not in first:
            first[site.attention] = range(build.nodes, build.nodes + max(site.heads) + 1)
            build.nodes += max(site.heads) + 1
        build.join((first[site.attention][head] for head in site.heads), nodes)
