"""Operators without arithmetic and without a row: views, copies, fills, random fills and questions about a tensor."""

from __future__ import annotations


def _named(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


_VIEWS = _named(
    """
    alias as_strided detach diagonal expand permute select slice split split_with_sizes squeeze t transpose unbind
    unfold unsqueeze view lift_fresh _unsafe_view _reshape_alias unsafe_split unsafe_split_with_sizes
    view_as_real view_as_complex _conj _neg_view
    values _values indices _indices crow_indices col_indices ccol_indices row_indices
    """
)
# Results that come from nothing: what they were given is there for shape and type. Random fills too, but for the mask
# of dropout, whose drawing is counted.
FILLS = _named(
    """
    arange empty empty_like empty_strided empty_permuted eye fill full full_like linspace logspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices zero zeros
    zeros_like
    cauchy exponential geometric log_normal normal rand rand_like randint randint_like randn randn_like random randperm
    uniform
    """
)
# With the backward of views, a copy into zeros, and with layouts of sparse tensors, whose work is on indices.
_COPIES = _named(
    """
    cat clone copy _copy_from stack _to_copy repeat roll flip rot90 tril triu diag_embed resize set im2col index_fill
    as_strided_scatter diagonal_scatter select_scatter slice_scatter diagonal_backward select_backward slice_backward
    expand_copy permute_copy view_copy _pack_padded_sequence pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d
    _coalesce _coalesced _to_dense _to_sparse sparse_mask sparse_coo_tensor _sparse_coo_tensor_with_dims_and_tensors
    sparse_compressed_tensor _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo _efficientzerotensor
    """
)
# Of truth values and integers, how often each occurs, and what Python asks about a tensor.
_QUESTIONS = _named(
    """
    all any allclose equal nonzero bincount histc is_coalesced isin _local_scalar_dense
    bitwise_and bitwise_or bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__
    __lshift__ __rshift__
    _assert_async _assert_scalar _assert_tensor_metadata _linalg_check_errors
    """
)
FREE = _VIEWS | FILLS | _COPIES | _QUESTIONS
