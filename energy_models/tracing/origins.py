"""Where tensors come from: from a parameter, from the inputs, or from the backward pass.

Views share a storage, and operators hand an origin on, so a transposed, cast, rounded, masked or merged weight is still
the weight that a GEMM reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from energy_models.counts import OperandName


@dataclass(frozen=True, slots=True)
class Origin:
    """What a storage holds: of a weight the layer that owns it and the shape it has there."""

    name: OperandName
    layer: str = ""
    shape: tuple[int, ...] = ()


ACTIVATION, ERROR = Origin("activation"), Origin("error")


class Origins:
    """The origin of each storage that was seen."""

    def __init__(self) -> None:
        self._known: dict[int, Origin] = {}
        self._kept: list[torch.UntypedStorage | Tensor] = []  # keeps ids unique: a freed storage's id may come again

    def of(self, tensor: Tensor) -> Origin | None:
        """None: nothing is known, as of a constant."""
        return self._known.get(storage_id(tensor))

    def set(self, tensor: Tensor, origin: Origin) -> None:
        """`tensor`, and all that share its storage, come from `origin`."""
        key = storage_id(tensor)
        if key not in self._known:
            self.keep(tensor)
        self._known[key] = origin

    def keep(self, tensor: Tensor) -> None:
        """Let nobody else have the id of its storage."""
        self._kept.append(tensor.untyped_storage() if tensor.layout == torch.strided else tensor)

    def hand_on(self, sources: Iterable[Tensor], results: Iterable[Tensor], backward: bool) -> None:
        """`results` were computed from `sources`: an error outweighs an activation, and that a weight.

        In the backward pass what comes from nothing known is an error: it started as the gradient of the loss. In the
        forward pass a single number that scales a tensor does not change what that is (spectral norm).
        """
        values = [source for source in sources if source.is_floating_point()]
        if not backward and any(source.dim() for source in values):
            values = [source for source in values if source.dim()]
        origins = [self.of(source) for source in values]
        known = [origin for origin in origins if origin is not None]
        if backward and (not known or len(known) < len(origins)):
            strongest: Origin | None = ERROR
        else:
            strongest = max(known, key=_strength, default=None)
        if strongest is None:
            return
        for result in results:
            self._set_derived(result, strongest)

    def _set_derived(self, result: Tensor, origin: Origin) -> None:
        if origin.name == "weight" and result.numel() != math.prod(origin.shape):
            if self.of(result) is None:  # else a view, which says so itself
                self.set(result, Origin("weight", origin.layer, tuple(result.shape)))
        else:
            self.set(result, origin)


def _strength(origin: Origin) -> int:
    return ("weight", "activation", "error").index(origin.name)


def storage_id(tensor: Tensor) -> int:
    """One number for a tensor and all its views, as long as the storage lives."""
    if tensor.layout != torch.strided:
        return -id(tensor)  # has no storage of its own; negative, since storages' ids are addresses
    return cast(int, tensor.untyped_storage()._cdata)
