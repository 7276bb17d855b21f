"""Precision: which number format each operand has, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lowprec_eb.formats import BF16, BlockFloat, Format, as_format
from lowprec_eb.quantize import BACKEND_NAMES, ROUNDINGS

OPERANDS: tuple[str, ...] = ("weight", "activation", "output", "error", "gradient", "momentum", "master")
LAST = "@last"


@dataclass(frozen=True)
class Precision:
    """A format for each operand, and the rounding. None leaves an operand in float32.

    In the layers: ``activation`` and ``weight`` are rounded when the GEMMs read them, ``error`` (the gradient w.r.t.
    the layer's output) before ``grad_input`` and ``grad_weight`` read it, ``output`` (the layer's output) as it is
    written. In the optimizer: ``gradient`` before the step; ``momentum`` and ``master`` (the copy of the weights that
    training keeps) after it.

    Args:
        rounding: of every operand in training. Evaluation always rounds to nearest, as inference hardware would.
        vectors: whether gradient, momentum and master formats hold for vectors too (biases, normalisation parameters).
        overrides: of what the layers do (the optimizer rounds every parameter alike): pairs of a layer-name pattern
        (shell style; ``"@last"`` is the last layer with a GEMM) and the
            precision it gets instead; the first match counts.
        backend: of :func:`lowprec_eb.quantize`.
    """

    name: str = "custom"
    weight: Format | None = None
    activation: Format | None = None
    output: Format | None = None
    error: Format | None = None
    gradient: Format | None = None
    momentum: Format | None = None
    master: Format | None = None
    rounding: str = "nearest"
    vectors: bool = False
    overrides: tuple[tuple[str, Precision], ...] = ()
    backend: str = "auto"

    def __post_init__(self) -> None:
        for operand in OPERANDS:
            if (number := getattr(self, operand)) is not None:
                object.__setattr__(self, operand, as_format(number))
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"precision {self.name!r}: rounding must be one of {ROUNDINGS}, got {self.rounding!r}")
        if self.backend not in BACKEND_NAMES:
            raise ValueError(f"precision {self.name!r}: backend must be one of {BACKEND_NAMES}, got {self.backend!r}")

    def of_layer(self, layer: str, *, last: bool = False) -> Precision:
        """The precision of one layer, overrides applied."""
        for pattern, precision in self.overrides:
            if (last and pattern == LAST) or fnmatchcase(layer, pattern):
                return replace(precision, backend=self.backend)
        return self

    def operand_format(self, layer: str, gemm: str, operand: str) -> Format | None:
        """The format in which ``gemm`` of ``layer`` reads ``operand`` (``energy_models.PrecisionLike``).

        Overrides by name apply; ``"@last"`` needs a model and is applied by :func:`lowprec_eb.lower`.
        """
        return self.of_layer(layer).gemm_operand(operand)

    def gemm_operand(self, operand: str) -> Format | None:
        """The format of weight, activation or error as a GEMM of this layer reads it."""
        if operand not in ("weight", "activation", "error"):
            raise ValueError(f"a GEMM reads weight, activation or error, not {operand!r}")
        fmt: Format | None = getattr(self, operand)
        return fmt

    def parameter_format(self, operand: str, dims: int) -> Format | None:
        """The format of gradient, momentum or master for a parameter with ``dims`` dimensions."""
        fmt: Format | None = getattr(self, operand)
        return fmt if dims >= 2 or self.vectors else None

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Precision({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


_BFP8 = BlockFloat(wl=8, dim=0)

RECIPES: dict[str, Precision] = {
    "fp32": Precision(name="fp32"),
    # Mixed precision (Micikevicius et al. 2018; Kalamkar et al. 2019): bf16 into the GEMMs, float32 for all that is
    # kept.
    "bf16": Precision(name="bf16", weight=BF16, activation=BF16, error=BF16),
    # Every operand of every GEMM on the 8-bit grid, the first layer's image and the last layer included; weights,
    # gradients and momentum are kept in 8 bits too. Normalisation parameters and biases stay in float32.
    "bfp8": Precision(
        name="bfp8",
        weight=_BFP8,
        activation=_BFP8,
        error=_BFP8,
        gradient=_BFP8,
        momentum=_BFP8,
        master=_BFP8,
        rounding="stochastic",
    ),
    # The early-bird paper's placement (You et al. 2020, section 4; SWALP, Yang et al. 2019): quantizers behind the
    # outputs of convolutions and linear layers, forward and backward, but for the last; BN and ReLU follow, so the
    # next GEMM reads float32 activations. The optimizer rounds every parameter, normalisation included.
    "swalp8": Precision(
        name="swalp8",
        weight=_BFP8,
        output=_BFP8,
        error=_BFP8,
        gradient=_BFP8,
        momentum=_BFP8,
        master=_BFP8,
        rounding="stochastic",
        vectors=True,
        overrides=((LAST, Precision(name="swalp8-last", weight=_BFP8, rounding="stochastic")),),
    ),
}


def precision(name: str | Precision, **changes: Any) -> Precision:
    """A named recipe, with ``changes`` to its fields; a :class:`Precision` is passed through.

    Raises:
        ValueError: no recipe has that name.
    """
    if isinstance(name, Precision):
        return replace(name, **changes)
    if name not in RECIPES:
        near = get_close_matches(str(name), RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown precision {name!r}{hint} One of {', '.join(RECIPES)}")
    return replace(RECIPES[name], **changes)
