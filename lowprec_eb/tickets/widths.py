"""Widths of a model's layers before and after a ticket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerWidths:
    """One layer that owns parameters, before and after. ``read`` and ``written`` are numbers of channels, None where
    the layer's tensors do not say; ``macs`` those of a forward pass, None where they were not counted.
    """

    name: str
    layer: str
    read: tuple[int | None, int | None]
    written: tuple[int | None, int | None]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None = None

    @property
    def multiplies(self) -> bool:
        """Whether it has a weight matrix, which a normalisation has not."""
        return self.macs is not None and any(self.macs)

    def row(self) -> dict[str, Any]:
        """Plain data, for tables and files."""
        row: dict[str, Any] = {"layer": self.name, "type": self.layer}
        pairs = {"in": self.read, "out": self.written, "parameters": self.parameters, "macs": self.macs or (None, None)}
        return row | {f"{key}_{time}": n for key, pair in pairs.items() for time, n in zip(_TIMES, pair, strict=True)}


_TIMES = ("before", "after")


def layer_widths(
    dense: nn.Module, small: nn.Module, macs: tuple[Mapping[str, int], Mapping[str, int]] | None = None
) -> list[LayerWidths]:
    """The layers of ``dense`` that own parameters, beside those of the same names in ``small``, in model order.

    ``macs``: by layer, of the two models. A layer that is used twice is listed once; parameters that several layers
    share are counted with the first of them.
    """
    seen: tuple[set[int], set[int]] = (set(), set())
    found = []
    for name, module in dense.named_modules():
        cut = small.get_submodule(name)
        parameters = (_own(module, seen[0]), _own(cut, seen[1]))
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        (read, written), (read_after, written_after) = _sides(module), _sides(cut)
        of_layer = None if macs is None else (macs[0].get(name, 0), macs[1].get(name, 0))
        kind = type(module).__name__
        found.append(
            LayerWidths(name, kind, (read, read_after), (written, written_after), parameters, of_layer),
        )
    return found


def _own(module: nn.Module, seen: set[int]) -> int:
    """Parameters of the module itself that have not been counted before."""
    new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
    seen.update(map(id, new))
    return sum(parameter.numel() for parameter in new)


def _sides(module: nn.Module) -> tuple[int | None, int | None]:
    """Channels that a layer reads and writes, by the shape of its weight."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.out_proj.in_features
    if not isinstance(weight, Tensor):
        return None, None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None, weight.shape[1]
    if weight.dim() < 2:
        return weight.numel(), weight.numel()
    groups = getattr(module, "groups", 1)
    if isinstance(module, _TRANSPOSED):
        return weight.shape[0], weight.shape[1] * groups
    if hasattr(module, "nf"):  # the Conv1D of transformers keeps its weight the other way round
        return weight.shape[0], weight.shape[1]
    return weight.shape[1] * groups, weight.shape[0]
