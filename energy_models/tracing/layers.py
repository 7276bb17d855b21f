"""Which layer is running, forward and backward.

A layer is found by the autograd sequence numbers that its forward used: a backward node carries the number of the
forward operator it belongs to, and that holds for custom autograd functions too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def current_number() -> int:
    """The sequence number of the autograd node that was made last."""
    return int(torch._C._autograd._get_sequence_nr()) - 1


class Layers:
    """Follows the modules of a model as they are entered and left."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = {plain_name(name): module for name, module in model.named_modules()}
        self._stack: list[tuple[str, int]] = []
        self._owner: dict[int, str] = {}  # of each sequence number: the innermost layer
        self._multiplied: dict[int, set[str]] = {}  # names of operands of the products in a node's forward
        self._data: dict[int, set[int]] = {}  # storages of those that were activations

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While entered, forward calls of the model's modules are seen."""
        handles = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_, layer=name: self._enter(layer), prepend=True))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def inside(self, layer: str) -> Iterator[None]:
        """What runs while entered belongs to `layer`, which is no module."""
        self._enter(layer)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, layer: str) -> None:
        self._stack.append((layer, current_number()))

    def _leave(self) -> None:
        layer, before = self._stack.pop()
        for number in range(before + 1, current_number() + 1):  # inner layers leave first, so theirs are taken
            self._owner.setdefault(number, layer)

    @property
    def in_backward(self) -> bool:
        """Whether gradients are computed; a forward inside the backward is a recomputation (checkpointing)."""
        return torch._C._current_graph_task_id() != -1 and not self._stack and not torch.is_grad_enabled()

    def current(self, fallback: str = "") -> str:
        """Name of the layer that is running."""
        if self._stack:
            return self._stack[-1][0]
        return self._owner.get(self._node_number(), fallback)

    def multiplied(self, names: set[str], data: set[int]) -> None:
        """Remember of the running forward operator which operands its product has, and the activations' storages."""
        self._multiplied.setdefault(current_number(), set()).update(names)
        self._data.setdefault(current_number(), set()).update(data)

    def was_product_with_weight(self) -> bool:
        """Of the backward node that is running: whether its forward multiplied by a weight."""
        return "weight" in self._multiplied.get(self._node_number(), ())

    def was_data(self, storage: int) -> bool:
        """Of the backward node that is running: whether its forward multiplied what lies there as an activation."""
        return storage in self._data.get(self._node_number(), ())

    def _node_number(self) -> int:
        node: Any = torch._C._current_autograd_node()
        return -1 if node is None else int(node._sequence_nr())


def plain_name(name: str) -> str:
    """A module's name without what torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
