"""The arguments of a quantizer, checked and as tensors; every error names the argument and says what it may be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.formats import Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.random_bits import derive_seed, draw_seeds

ROUNDINGS: tuple[str, ...] = ("nearest", "nearest_away", "stochastic", "toward_zero")
CLAMPED_GRADIENTS = ("pass", "zero")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INT64 = range(-(2**63), 2**63)


def check_tensor(x: Any, name: str = "x") -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: must be a floating-point tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: must be a floating-point tensor of 16, 32 or 64 bits, got {x.dtype}")
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested one" if x.is_nested else f"layout {x.layout}"
        raise ValueError(f"{name}: must be a dense tensor, got {kind}; use x.to_dense() or its values")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; one of {', '.join(choices)}")


def check_out(x: Tensor, out: Any, inputs: tuple[Tensor, ...]) -> None:
    check_tensor(out, "out")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, out)):
        raise ValueError("out: does not support gradients; call it under torch.no_grad()")
    if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        like = f"{x.dtype} {tuple(x.shape)} on {x.device}"
        raise ValueError(f"out: must be like x, {like}, got {out.dtype} {tuple(out.shape)} on {out.device}")
    if not torch.compiler.is_compiling() and out.is_neg():
        raise ValueError("out: is a negated view; resolve it first (out.resolve_neg())")
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise ValueError("out: several of its elements share one place; it cannot be an expanded tensor")


def stochastic_key(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as a 0-d int64 tensor; None draws one from torch's default generator."""
    if seed is None:
        return draw_seeds(1)[0].to(device)
    return _whole("seed", seed, _INT64).to(device)


def gradient_key(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The key of the gradient's rounding: a stream of its own, of the generator or derived from the seed."""
    key = stochastic_key(seed, device)
    return key if seed is None else key.bitwise_xor(derive_seed(1))


def offset_tensor(offset: int | Tensor) -> Tensor | None:
    """None for 0, the common case."""
    if isinstance(offset, int) and offset == 0 and not isinstance(offset, bool):
        return None
    return _whole("offset", offset, range(2**63))


def _whole(name: str, value: Any, allowed: range) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{name}: must be one whole number, got a {value.dtype} tensor of {tuple(value.shape)}")
        return value.reshape(()).to(torch.int64)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}: must be a whole number or a 0-d int64 tensor, got {value!r}")
    if not allowed.start <= value < allowed.stop:  # a traced number is not in a range
        raise ValueError(f"{name}: must be from {allowed.start} to 2**63 - 1, got {value}")
    return torch.as_tensor(value, dtype=torch.int64)


def bits_tensor(bits: float | Tensor | None) -> Tensor | None:
    if bits is None:
        return None
    if isinstance(bits, Tensor):
        if bits.numel() != 1 or bits.is_complex() or bits.dtype == torch.bool:
            raise ValueError(f"bits: must be one number, got a {bits.dtype} tensor of {tuple(bits.shape)}")
        return bits
    if not isinstance(bits, int | float) or isinstance(bits, bool):
        raise ValueError(f"bits: must be a number or a tensor of one, got {bits!r}")
    return torch.as_tensor(float(bits))


def scale_tensors(scale: Any, fmt: Format, device: torch.device) -> list[Tensor]:
    """The user's scale, or pair of scales; their values and shapes are checked where they are used."""
    if scale is None:
        return []
    if not isinstance(fmt, Int | ScaledFloat):
        raise ValueError(f"scale: {fmt!r} takes none; lp.Int and lp.ScaledFloat do")
    parts = list(scale) if isinstance(scale, tuple | list) else [scale]
    wanted = 2 if is_affine(fmt) or fmt.tensor_scale_bits else 1
    if len(parts) != wanted:
        pair = "a pair (scale, zero point)" if is_affine(fmt) else "a pair (block scales, tensor scale)"
        raise ValueError(f"scale: {fmt!r} takes {pair if wanted == 2 else 'one scale'}, got {len(parts)}")
    tensors = [_real(part, device) for part in parts]
    if wanted == 2 and tensors[1].requires_grad:
        raise ValueError("scale: only its first part can be learned; detach the second")
    return tensors


def _real(part: Any, device: torch.device) -> Tensor:
    if isinstance(part, Tensor):
        if part.is_complex() or part.dtype == torch.bool:
            raise ValueError(f"scale: must be real, got a {part.dtype} tensor")
        return part.to(device)
    if isinstance(part, bool) or not isinstance(part, int | float):
        raise ValueError(f"scale: must be a number, a tensor or a pair of them, got {part!r}")
    if not -math.inf < part < math.inf:
        raise ValueError(f"scale: must be finite, got {part}")
    return torch.as_tensor(part, dtype=torch.float32, device=device)
