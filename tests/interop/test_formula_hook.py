"""The worked example of a formula: torchvision's deformable convolution.

Dai et al. 2017 ("Deformable convolutional networks"); with a mask Zhu et al. 2019 ("Deformable ConvNets v2").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_cases import torchvision
from torch import Tensor, nn

import energy_models as em

pytestmark = pytest.mark.interop

_NAMES = ["stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups", "offset_groups"]
_NUMBERS = ", ".join(f"SymInt {name}" for name in _NAMES)
_TENSORS = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"


def forward(call: em.Call) -> Iterator[em.Product | em.ElementOps]:
    """A convolution whose inputs are sampled between the pixels."""
    x, weight, out, groups = call.args["input"], call.args["weight"], call.results[0], call.args["groups"]
    positions, k = out.numel() // out.shape[1], math.prod(weight.shape[1:])
    yield em.Product(x, weight, out, groups, positions, weight.shape[0] // groups, k, runs=(k, k))
    yield _sampled(call, positions, passes=1)
    yield em.ElementOps("bias", "", out.numel(), fp_add=out.numel())


def backward(call: em.Call) -> Iterator[em.Product | em.ElementOps]:
    """One operator makes all gradients: of the samples, of the weight, and from those of pixels and offsets."""
    error, x, weight, groups = call.args["grad"], call.args["input"], call.args["weight"], call.args["groups"]
    positions, k = error.numel() // error.shape[1], math.prod(weight.shape[1:])
    rows = weight.shape[0] // groups
    yield em.Product(error, weight, x, groups, positions, k, rows, "grad_input", ("error", "weight"))
    yield em.Product(error, x, weight, groups, rows, k, positions, "grad_weight", ("error", "activation"))
    yield _sampled(call, positions, passes=3)  # to the pixels, and by the two coordinates
    yield em.ElementOps("bias", "", error.numel(), fp_add=error.numel())


def _sampled(call: em.Call, positions: int, passes: int) -> em.ElementOps:
    """Between four pixels: 4 mul, 3 add for each sample, and 1 mul by its mask."""
    x, weight = call.args["input"], call.args["weight"]
    samples = positions * x.shape[1] * math.prod(weight.shape[2:]) * passes
    return em.ElementOps("sampling", "", samples, 3 * samples, (4 + call.args["use_mask"]) * samples)


FORMULAS = {"torchvision::deform_conv2d": forward, "torchvision::_deform_conv2d_backward": backward}


@pytest.fixture(scope="module")
def deformable() -> Iterator[Any]:
    """torchvision.ops; its usual wheel beside a CPU torch has no operators, so their schemas are repeated here."""
    torchvision()
    from torchvision import extension, ops

    if extension._has_ops():
        yield ops
        return
    _kept.append(_declared())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.deform_conv, "_assert_has_ops", lambda: None)
        yield ops


_kept: list[Any] = []


def _declared() -> Any:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"deform_conv2d({_TENSORS}, {_NUMBERS}, bool use_mask) -> Tensor")
    results = ", ".join(["Tensor"] * 5)
    library.define(f"_deform_conv2d_backward(Tensor grad, {_TENSORS}, {_NUMBERS}, bool use_mask) -> ({results})")

    def fake(x: Tensor, weight: Tensor, offset: Tensor, *_: Any) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[-2:])

    def keep(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.numbers = inputs[5:]

    def gradients(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        grads = torch.ops.torchvision._deform_conv2d_backward(error, *ctx.saved_tensors, *ctx.numbers)
        return *grads, *[None] * 9

    def fake_gradients(error: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in args[:5])

    torch.library.register_fake("torchvision::deform_conv2d", fake, lib=library)
    torch.library.register_fake("torchvision::_deform_conv2d_backward", fake_gradients, lib=library)
    torch.library.register_autograd("torchvision::deform_conv2d", gradients, setup_context=keep, lib=library)
    return library


class Deformable(nn.Module):
    """A layer that finds its own offsets and masks, as in the papers."""

    def __init__(self, ops: Any, groups: int, masked: bool) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 1)
        self.offsets = nn.Conv2d(8, 2 * 9 * 2, 3, padding=1)  # two groups of offsets
        self.masks = nn.Conv2d(8, 9 * 2, 3, padding=1) if masked else None
        self.layer = ops.DeformConv2d(8, 12, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        mask = None if self.masks is None else self.masks(x).sigmoid()
        result: Tensor = self.layer(x, self.offsets(x), mask)
        return result


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_deformable_convolution_multiplies_as_a_plain_one(deformable: Any, groups: int, masked: bool) -> None:
    model, x = Deformable(deformable, groups, masked), torch.zeros(2, 3, 7, 6)
    counts = em.count(model, x, formulas=FORMULAS)
    positions, macs = 2 * 42, 2 * 42 * 12 * 8 // groups * 9
    own = {one.gemm: one for one in counts.gemms if one.layer == "layer"}
    assert {name: one.macs for name, one in own.items()} == dict.fromkeys(("output", "grad_input", "grad_weight"), macs)
    assert (own["output"].b.name, own["output"].b.shape) == ("weight", (12, 8 // groups, 3, 3))
    samples = [op for op in counts.element_ops if op.kind == "sampling"]
    assert [(op.elements, op.fp_mul) for op in samples] == [
        (positions * 8 * 9, (4 + masked) * positions * 8 * 9),
        (positions * 8 * 9 * 3, (4 + masked) * positions * 8 * 9 * 3),
    ]
    assert not any("deform" in name for name in counts.uncounted)


def test_without_formulas_the_operators_are_listed(deformable: Any) -> None:
    counts = em.count(Deformable(deformable, 1, False), torch.zeros(2, 3, 7, 6))
    assert set(counts.uncounted) == {"layer: torchvision.deform_conv2d", "layer: torchvision._deform_conv2d_backward"}
