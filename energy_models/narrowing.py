"""Counts of a uniformly narrower convolutional network, from the counts of the wide one alone.

For planning, where there is no ticket yet: every convolution keeps the same share of its channels, the network's inputs
and outputs stay. What the counts do not say is taken from the order of the layers: a layer reads the channels of the
layer before it. GEMMs are then those of the really narrowed network wherever that holds, as in a VGG; where a branch
reads something else (the shortcut of a residual block reads the block's input) they differ by rounding alone, since all
inner channels are kept in the same share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from energy_models.counts import ElementOps, Gemm, OpCounts, Operand, Zeros

_CONVOLUTION_DIMS = 3  # of a weight, at least: (out, in, kernel)
_NUMBERS = ("elements", "fp_add", "fp_mul", "int_add", "read_bits", "write_bits")
_LOSS = "loss"  # the layer that `counter.count` names so


@dataclass(frozen=True)
class _Layer:
    """What stays of a layer: shares of its input and output channels; of both alike where it has groups."""

    inputs: float
    outputs: float
    weight: Operand
    activation: Operand
    out_dim: int  # of the weight; the other one of its first two has the input channels
    grouped: bool = False

    @property
    def channel_dim(self) -> int:
        """Of activation and error: dimension 1 of images, the last one of what a linear layer reads."""
        return 1 if len(self.weight.shape) >= _CONVOLUTION_DIMS else -1

    def narrowed(self, operand: Operand) -> Operand:
        """The operand with fewer channels."""
        dims = {
            "weight": {0: self.outputs}
            if self.grouped
            else {self.out_dim: self.outputs, 1 - self.out_dim: self.inputs},
            "activation": {self.channel_dim: self.inputs},
            "error": {self.channel_dim: self.outputs},
        }[operand.name]
        shape = list(operand.shape)
        for dim, share in dims.items():
            shape[dim] = _scaled(shape[dim], share)
        small = replace(operand, shape=tuple(shape))
        left = small.elements / operand.elements if operand.elements else 1.0
        nonzeros = None if operand.nonzeros is None else _scaled(operand.nonzeros, left)
        return replace(small, nonzeros=nonzeros)

    @property
    def weights(self) -> float:
        """Share of the weight's elements that stays."""
        return self.narrowed(self.weight).elements / self.weight.elements

    def share_of(self, op: ElementOps) -> float:
        """Of one of the layer's own element operations, a bias or a quantizer."""
        if op.kind == "quantizer" and op.elements == self.weight.elements:
            return self.weights
        return self.inputs if op.kind == "quantizer" and op.elements == self.activation.elements else self.outputs


def narrowed(counts: OpCounts, share: float) -> OpCounts:
    """The counts of the network whose convolutions keep ``share`` of their channels, of each at least one.

    Linear layers keep their outputs, and lose the inputs that came from a dropped channel. Element operations shrink
    with the channels that they work on: all but those of the last layer, of losses, and of parameters that stay.

    Args:
        share: of the channels, above 0 and at most 1.

    Raises:
        ValueError: a share out of range; no convolution; a product of two activations (attention), of an optimizer, or
            of a grouped convolution whose groups have several channels: none of them has single channels to drop.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    layers = _layers(counts, share)
    return replace(
        counts,
        gemms=tuple(_gemm(gemm, layers[gemm.layer]) for gemm in counts.gemms),
        element_ops=tuple(_element_op(op, layers, share) for op in counts.element_ops),
    )


def _layers(counts: OpCounts, share: float) -> dict[str, _Layer]:
    forward = {gemm.layer: (gemm, *_sides(gemm)) for gemm in counts.gemms if gemm.gemm == "output"}
    if beside := [gemm.layer for gemm in counts.gemms if gemm.layer not in forward]:
        raise ValueError(f"{beside[0]!r} multiplies outside of a layer's forward pass, so its channels are not known")
    found: dict[str, _Layer] = {}
    inputs, last = 1.0, next(reversed(forward), "")
    for name, (gemm, weight, activation) in forward.items():
        out_dim = 0 if gemm.n * gemm.batch == weight.shape[0] else 1
        is_convolution = len(weight.shape) >= _CONVOLUTION_DIMS
        if gemm.batch > 1 and is_convolution:
            _check_depthwise(gemm, weight)
            outputs = inputs
        else:
            outputs = _kept(weight.shape[out_dim], share) if is_convolution and name != last else 1.0
        found[name] = _Layer(inputs, outputs, weight, activation, out_dim, grouped=gemm.batch > 1 and is_convolution)
        inputs = outputs
    if share < 1 and all(layer.outputs == 1 for layer in found.values()):
        raise ValueError("no convolution has channels to drop")
    return found


def _sides(gemm: Gemm) -> tuple[Operand, Operand]:
    weight = next((side for side in (gemm.a, gemm.b) if side.name == "weight"), None)
    if weight is None:
        raise ValueError(
            f"layer {gemm.layer!r} multiplies two activations (attention): dropping channels of convolutions says "
            "nothing about it"
        )
    return weight, gemm.a if weight is gemm.b else gemm.b


def _check_depthwise(gemm: Gemm, weight: Operand) -> None:
    if weight.shape[1] != 1 or weight.shape[0] != gemm.batch:
        raise ValueError(
            f"layer {gemm.layer!r} is a convolution in {gemm.batch} groups of several channels; only plain and "
            "depthwise ones can be narrowed"
        )


def _kept(channels: int, share: float) -> float:
    return max(1, round(share * channels)) / channels


def _gemm(gemm: Gemm, layer: _Layer) -> Gemm:
    inputs, outputs = layer.inputs, layer.outputs
    shares = {
        "output": ({"n": outputs, "k": inputs}, outputs),
        "grad_input": ({"n": inputs, "k": outputs}, inputs),
        "grad_weight": ({"m": outputs, "n": inputs}, layer.weights),
    }
    sizes, result = shares[gemm.gemm]
    sizes = {"batch": outputs} if layer.grouped else sizes
    resized: dict[str, Any] = {name: _scaled(getattr(gemm, name), share) for name, share in sizes.items()}
    k = resized.get("k", gemm.k)
    small = replace(
        gemm,
        **resized,
        a=_side(gemm, gemm.a, layer, k),
        b=_side(gemm, gemm.b, layer, k),
        result_elements=_scaled(gemm.result_elements, result),
    )
    left = small.macs / gemm.macs if gemm.macs else 1.0
    return replace(small, zeros=Zeros(*(_scaled(getattr(gemm.zeros, name), left) for name in Zeros.__slots__)))


def _side(gemm: Gemm, operand: Operand, layer: _Layer, k: int) -> Operand:
    """Narrowed; a run over all of k stays one, any other is over places of a kernel or over positions."""
    small = layer.narrowed(operand)
    return replace(small, k_run=k) if operand.k_run == gemm.k else small


def _element_op(op: ElementOps, layers: Mapping[str, _Layer], share: float) -> ElementOps:
    left = _element_share(op, layers, share)
    numbers: dict[str, Any] = {name: _scaled(getattr(op, name), left) for name in _NUMBERS}
    return replace(op, **numbers)


def _element_share(op: ElementOps, layers: Mapping[str, _Layer], share: float) -> float:
    owner, _, parameter = op.layer.rpartition(".")
    if op.part == "optimizer" and owner in layers:
        return layers[owner].weights if parameter == "weight" else layers[owner].outputs
    if op.layer in layers:
        return layers[op.layer].share_of(op)
    return 1.0 if op.layer == _LOSS else share


def _scaled(number: int, share: float) -> int:
    return number if share == 1 else round(number * share)
