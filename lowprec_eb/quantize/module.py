"""A quantizer as a layer, for a place of somebody's model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowprec_eb.formats import as_format
from lowprec_eb.quantize.arguments import CLAMPED_GRADIENTS, ROUNDINGS, check_choice
from lowprec_eb.quantize.functional import BACKEND_NAMES, ClampedGradient, Rounding, quantize


class Quantizer(nn.Module):
    """:func:`lowprec_eb.quantize` as a module without parameters: rounds its input, and its gradient where asked.

    Args:
        fmt: format of the values; None leaves them as they are.
        gradient_format: format of the gradient w.r.t. the input; None leaves it as it comes.
        clamped_gradient: ``"zero"`` stops the gradient of elements beyond the range of their block.
    """

    def __init__(
        self,
        fmt: Any = None,
        rounding: Rounding = "nearest",
        *,
        gradient_format: Any = None,
        gradient_rounding: Rounding = "nearest",
        clamped_gradient: ClampedGradient = "pass",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if fmt is None and gradient_format is None:
            raise ValueError("Quantizer: give fmt, gradient_format or both")
        self.fmt = None if fmt is None else as_format(fmt)
        self.gradient_format = None if gradient_format is None else as_format(gradient_format)
        if gradient_format is None and gradient_rounding != "nearest":
            raise ValueError(f"Quantizer: gradient_rounding={gradient_rounding!r} needs a gradient_format")
        if fmt is None and clamped_gradient != "pass":
            raise ValueError("Quantizer: clamped_gradient needs fmt, whose range clamps")
        check_choice("rounding", rounding, ROUNDINGS)
        check_choice("gradient_rounding", gradient_rounding, ROUNDINGS)
        check_choice("clamped_gradient", clamped_gradient, CLAMPED_GRADIENTS)
        check_choice("backend", backend, BACKEND_NAMES)
        self.rounding, self.gradient_rounding = rounding, gradient_rounding
        self.clamped_gradient, self.backend = clamped_gradient, backend

    def forward(self, x: Tensor) -> Tensor:
        return quantize(
            x,
            self.fmt,
            self.rounding,
            backend=self.backend,
            clamped_gradient=self.clamped_gradient,
            gradient_format=self.gradient_format,
            gradient_rounding=self.gradient_rounding,
        )

    def extra_repr(self) -> str:
        values = "" if self.fmt is None else f"{self.fmt}, {self.rounding}"
        gradient = "" if self.gradient_format is None else f"gradient {self.gradient_format}, {self.gradient_rounding}"
        clamped = "" if self.clamped_gradient == "pass" else f"clamped_gradient {self.clamped_gradient}"
        backend = "" if self.backend == "auto" else f"backend {self.backend}"
        return "; ".join(part for part in (values, gradient, clamped, backend) if part)
