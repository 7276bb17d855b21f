"""Sums of products as plain loops, and the products of each GEMM of a layer in the order in which they are summed."""

import itertools

import torch
from torch import nn

import lowprec_eb as lp


def accumulated(products, fmt, chunk, number=lambda x, turn, fmt: lp.quantize(x, fmt)):
    """The plain loop: products (..., k) in float64 -> (...)."""
    running = None
    for turn, start in enumerate(range(0, products.shape[-1], chunk)):
        partial = number(products[..., start : start + chunk].sum(-1), 2 * turn, fmt)
        running = partial if running is None else number(running + partial, 2 * turn + 1, fmt)
    return running


# ---- the products of each layer, in the order in which they are summed ---------------------------------------------


def of_linear(x, w, e):
    x, e = x.reshape(-1, x.shape[-1]), e.reshape(-1, e.shape[-1])
    return x[:, None] * w, e[:, None] * w.t(), torch.einsum("ro,ri->oir", e, x)


def of_matmul(a, b, e):
    """Broadcast dimensions of a factor come first in the sums of its gradient, as its rows do."""

    def gradient(products, shape):  # (batch..., rows, columns, k) -> (*shape, k)
        batch, lead = products.dim() - 3, products.dim() - 1 - len(shape)
        wide = (1,) * lead + tuple(shape)
        summed = [axis for axis in range(batch) if wide[axis] == 1 and products.shape[axis] > 1]
        kept = [axis for axis in range(products.dim() - 1) if axis not in summed]
        return products.permute(*kept, *summed, -1).reshape(*shape, -1)

    of_a = e[..., :, None, :] * b[..., None, :, :]
    of_b = a.mT[..., :, None, :] * e.mT[..., None, :, :]
    return a[..., :, None, :] * b.mT[..., None, :, :], gradient(of_a, a.shape), gradient(of_b, b.shape)


def of_convolution(layer):
    """By hand, one multiplication after the other."""
    dims, transposed = len(layer.stride), isinstance(layer, nn.modules.conv._ConvTransposeNd)
    groups = layer.groups

    def products(x, w, e):
        small, large = (x, e) if transposed else (e, x)
        small_sums, large_sums, weight_sums = {}, {}, {}
        b, a, places = w.shape[0] // groups, w.shape[1], list(itertools.product(*map(range, w.shape[2:])))
        positions = list(itertools.product(*map(range, small.shape[2:])))
        for n, g, i, j in itertools.product(range(x.shape[0]), range(groups), range(b), range(a)):
            for (p, position), (t, place) in itertools.product(enumerate(positions), enumerate(places)):
                at = [
                    position[d] * layer.stride[d] + place[d] * layer.dilation[d] - layer.padding[d] for d in range(dims)
                ]
                if all(0 <= at[d] < large.shape[2 + d] for d in range(dims)):
                    s, l, k = (n, g * b + i, *position), (n, g * a + j, *at), (g * b + i, j, *place)  # noqa: E741
                    small_sums[(*s, j * len(places) + t)] = large[l] * w[k]
                    large_sums[(*l, i * len(places) + t)] = small[s] * w[k]
                    weight_sums[(*k, n * len(positions) + p)] = small[s] * large[l]
        taps = len(places)
        to_small, to_large = dense(small_sums, small, a * taps), dense(large_sums, large, b * taps)
        to_weight = dense(weight_sums, w, x.shape[0] * len(positions))
        return (to_large, to_small, to_weight) if transposed else (to_small, to_large, to_weight)

    return products


def dense(found, like, length):
    values = torch.zeros(*like.shape, length, dtype=torch.float64)
    for place, value in found.items():
        values[place] = value
    return values


def of_einsum(x, w, e):
    return (
        torch.einsum("nhd,hdo->nhod", x, w),
        torch.einsum("nho,hdo->nhdo", e, w),
        torch.einsum("nho,nhd->hdon", e, x),
    )
