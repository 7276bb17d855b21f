"""Operators without arithmetic and without a row: views, copies, fills, random fills and questions about a tensor."""

from __future__ import annotations

_VIEWS = (
    *("alias", "as_strided", "chunk", "detach", "diagonal", "expand", "narrow", "permute", "reshape", "select"),
    *("slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view"),
    *("_unsafe_view", "_reshape_alias", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "lift_fresh"),
    *("view_as_real", "view_as_complex", "_conj", "_neg_view", "resolve_conj", "resolve_neg", "real", "imag", "lift"),
    *("values", "_values", "_indices", "indices", "crow_indices", "col_indices", "ccol_indices", "row_indices"),
)
# Results that come from nothing: whatever they were given is for shape and type. Random fills too, but for a mask of
# dropout, whose drawing is counted.
_FILLS = (
    *("arange", "empty", "empty_like", "empty_strided", "empty_permuted", "eye", "fill", "full", "full_like"),
    *("linspace", "logspace", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones"),
    *("ones_like", "scalar_tensor", "zero", "zeros", "zeros_like", "tril_indices", "triu_indices", "hann_window"),
    *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random", "randperm", "exponential"),
    *("normal", "uniform", "log_normal", "geometric", "cauchy"),
)
# With a view's backward, a copy into zeros, and layouts of sparse tensors, which are indices.
_COPIES = (
    *("cat", "clone", "constant_pad_nd", "contiguous", "copy", "_copy_from", "stack", "_to_copy", "roll", "flip"),
    *("repeat", "rot90", "tril", "triu", "diag_embed", "diagonal_scatter", "select_scatter", "slice_scatter"),
    *("as_strided_scatter", "diagonal_backward", "select_backward", "slice_backward", "resize", "set", "im2col"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "block_diag", "index_fill"),
    *(
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "expand_copy",
        "view_copy",
        "permute_copy",
        "fft_fftshift",
    ),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "value_selecting_reduction_backward"),
    *("_pack_padded_sequence", "_pack_padded_sequence_backward", "_pad_packed_sequence", "to_dense", "_to_dense"),
    *("_coalesce", "coalesce", "_coalesced", "sparse_coo_tensor", "_sparse_coo_tensor_with_dims_and_tensors"),
    *("sparse_compressed_tensor", "_sparse_compressed_tensor_unsafe", "to_sparse", "to_sparse_csr", "_to_sparse"),
    *(
        "_convert_indices_from_coo_to_csr",
        "_convert_indices_from_csr_to_coo",
        "sparse_mask",
        "_nested_tensor_from_mask",
    ),
    *("embedding_sparse_backward", "_foreach_copy", "_efficientzerotensor"),
)
_QUESTIONS = (
    *("_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "all", "any", "is_coalesced", "isfinite"),
    *("_linalg_check_errors", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_size", "one_hot"),
    *("bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "__and__", "__or__", "__xor__", "bincount", "histc"),
    *("__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift", "isin", "_sparse_mm_reduce_lengths"),
)
FILLS = frozenset(f"aten::{name}" for name in _FILLS)
FREE = frozenset(f"aten::{name}" for name in (*_VIEWS, *_FILLS, *_COPIES, *_QUESTIONS))
