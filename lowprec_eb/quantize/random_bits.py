"""Random bits for stochastic rounding: a pure function of (seed, element index).

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) is a counter put
through a mixing function, so any output can be computed on its own: results do not depend on threads, device, memory
layout or on where a run was resumed. One 64-bit output serves two neighbouring elements with 32 bits each.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
UNIFORM_BITS = 24  # what a float32 significand holds exactly


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no unsigned 64-bit arithmetic."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def mix64(value: int) -> int:
    """SplitMix64's mixing function on one Python integer."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK64
    return value ^ (value >> 31)


def derive_seed(*parts: int, after: int = 0) -> int:
    """One int64 seed from several integers, such as (seed, step, parameter); ``after`` is that of the first ones."""
    state = after
    for part in parts:
        state = mix64(state + _GOLDEN_GAMMA + mix64(part))
    return _signed(state)


def draw_seeds(count: int, *operands: Tensor) -> Tensor:
    """``count`` int64 seeds from torch's default generator, so ``torch.manual_seed`` and checkpointing govern them.

    A compiler may draw seeds anew in the backward pass, and take two draws for one; not if it is told for which two
    ``operands`` they are.
    """
    if operands and torch.compiler.is_compiling():
        seeds: Tensor = torch.ops.lowprec_eb.draw_seeds(*operands, count)
        return seeds
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64)


_library = torch.library.Library("lowprec_eb", "FRAGMENT")
_library.define(
    "draw_seeds(Tensor first, Tensor second, int count) -> Tensor", tags=[torch.Tag.nondeterministic_seeded]
)
_library.impl("draw_seeds", lambda first, second, count: draw_seeds(count), "CompositeExplicitAutograd")
torch.library.register_fake(
    "lowprec_eb::draw_seeds", lambda first, second, count: torch.empty(count, dtype=torch.int64), lib=_library
)


def _xor_shift(z: Tensor, shift: int, scratch: Tensor) -> Tensor:
    torch.bitwise_right_shift(z, shift, out=scratch)
    scratch.bitwise_and_((1 << (64 - shift)) - 1)  # int64 shifts are arithmetic: drop the copied sign bits
    return z.bitwise_xor_(scratch)


def random_words(count: int, seed: Tensor, offset: int = 0) -> Tensor:
    """int32 words (count,): word i is half ``(offset + i) % 2`` of SplitMix64 output ``(offset + i) // 2``."""
    first, last = offset // 2, (offset + count + 1) // 2
    z = torch.arange(first + 1, last + 1, dtype=torch.int64, device=seed.device)
    z.mul_(_signed(_GOLDEN_GAMMA)).add_(seed)
    scratch = torch.empty_like(z)
    _xor_shift(z, 30, scratch).mul_(_signed(_MIX_1))
    _xor_shift(z, 27, scratch).mul_(_signed(_MIX_2))
    _xor_shift(z, 31, scratch)
    start = offset - 2 * first
    return z.view(torch.int32)[start : start + count]


def uniform(shape: torch.Size, seed: Tensor, offset: int, dtype: torch.dtype) -> Tensor:
    """Odd multiples of ``2 ** -24`` in (0, 1), by logical element index; shape ``shape``.

    Neither 0 nor 1 occurs and the mean is 1/2, so ``fraction > uniform`` has the probability ``fraction`` to within
    ``2 ** -24``, and a fraction of 0 never passes.
    """
    words = random_words(shape.numel(), seed, offset)
    odd = words.bitwise_right_shift(8).bitwise_and_((1 << UNIFORM_BITS) - 1).bitwise_or_(1)
    return odd.to(dtype).mul_(2.0**-UNIFORM_BITS).view(shape)
