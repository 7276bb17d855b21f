"""Products over groups of unequal size: experts of a mixture, rows of a sparse matrix that are averaged."""

from __future__ import annotations

from collections.abc import Iterator

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call, Formula, Product


def _grouped(call: Call) -> Iterator[Product | ElementOps]:
    """Each row, column or summed slice belongs to one group, so how they are shared out changes no MAC."""
    a, b, result = call.args["self"], call.args["mat2"], call.results[0]
    batch = a.shape[0] if a.dim() == 3 and b.dim() == 3 else 1
    yield Product(a, b, result, batch, a.shape[-2], b.shape[-1], a.shape[-1])


def _sparse_reduce(call: Call) -> Iterator[Product | ElementOps]:
    """A sum, mean or maximum over the non-zeros of a row, each times a row of the dense matrix."""
    sparse, dense = call.args["self"], call.args["other"]
    yield Product(sparse, dense, call.results[0], 1, sparse.shape[0], dense.shape[1], sparse.shape[1])


def _sparse_reduce_backward(call: Call) -> Iterator[Product | ElementOps]:
    """To the dense matrix by the transposed sparse one; to each non-zero the dot product of two rows."""
    sparse, error, dense = call.args["self"], call.args["grad_out"], call.args["weight"]
    to_sparse, to_dense = call.args["output_mask"]
    if to_dense:
        yield Product(sparse, error, dense, 1, sparse.shape[1], error.shape[1], sparse.shape[0])
    if to_sparse:
        nonzeros = sparse.values()
        yield Product(error, dense, nonzeros, nonzeros.numel(), 1, 1, dense.shape[1])


UNEVEN: dict[str, Formula] = {
    "aten::_grouped_mm": _grouped,
    "aten::_sparse_mm_reduce_impl": _sparse_reduce,
    "aten::_sparse_mm_reduce_impl_backward": _sparse_reduce_backward,
}
