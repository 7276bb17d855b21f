"""Counts as plain data: arithmetic, formats, alignments, other formats."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_models.counts import ElementOps, Gemm, OpCounts, Operand, element_ops
from energy_models.number_formats import FP32, FormatSpec, NumberFormat

BFP8 = FormatSpec("block_float", bits=8, exponent_bits=0, mantissa_bits=7, scale_bits=8, block_dim=0)
BFP8_WHOLE = replace(BFP8, block_dim=None)
FIXED8 = FormatSpec("fixed_point", bits=8, exponent_bits=0, mantissa_bits=7)


@dataclass(frozen=True)
class Everywhere:
    fmt: NumberFormat | None

    def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        return self.fmt


@dataclass(frozen=True)
class WeightsOnly:
    fmt: NumberFormat

    def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        return self.fmt if operand == "weight" else None


def linear(fmt: NumberFormat = FP32, times: int = 1) -> tuple[Gemm, Gemm, Gemm]:
    """A linear layer of 6 inputs and 5 outputs on 4 rows."""

    def activation(run: int) -> Operand:
        return Operand("activation", (4, 6), run, fmt)

    def error(run: int) -> Operand:
        return Operand("error", (4, 5), run, fmt)

    def weight(run: int) -> Operand:
        return Operand("weight", (5, 6), run, fmt)

    return (
        Gemm("fc", "output", 1, 4, 5, 6, activation(6), weight(6), 20, times),
        Gemm("fc", "grad_input", 1, 4, 6, 5, error(5), weight(1), 24, times),
        Gemm("fc", "grad_weight", 1, 5, 6, 4, error(1), activation(1), 30, times),
    )


def test_totals() -> None:
    counts = OpCounts(linear(), (ElementOps("relu", "r", 20, int_add=20),))
    assert counts.macs == {"output": 120, "grad_input": 120, "grad_weight": 120}
    assert counts.total_macs == 360
    assert counts.bit_ops == 360 * 32 * 32
    assert counts.macs_by_bits == {(name, 32, 32): 120 for name in ("output", "grad_input", "grad_weight")}
    assert counts.element_ops_by_kind == {"relu": 20}


def test_all_three_gemms_are_always_named() -> None:
    assert OpCounts().macs == {"output": 0, "grad_input": 0, "grad_weight": 0}


@given(st.integers(0, 50), st.integers(0, 50))
def test_steps_and_sums_multiply_out(first: int, second: int) -> None:
    counts = OpCounts(linear(), (ElementOps("relu", "r", 20, int_add=20),), ("r: aten.x",))
    total = counts * first + second * counts
    assert total.total_macs == (first + second) * 360
    assert total.bit_ops == (first + second) * counts.bit_ops
    assert total.element_ops_by_kind == {"relu": (first + second) * 20}
    assert total.uncounted == ("r: aten.x",)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        OpCounts() * -1


def test_uncounted_is_a_sorted_union() -> None:
    total = OpCounts(uncounted=("b: x", "c: x")) + OpCounts(uncounted=("a: x", "c: x"))
    assert total.uncounted == ("a: x", "b: x", "c: x")


def test_at_reads_the_formats_of_the_precision() -> None:
    counts = OpCounts(linear()).at(WeightsOnly(FIXED8))
    assert counts.macs_by_bits == {("output", 8, 32): 120, ("grad_input", 8, 32): 120, ("grad_weight", 32, 32): 120}
    assert counts.bit_ops == 120 * (8 * 32 + 8 * 32 + 32 * 32)
    assert counts.macs == OpCounts(linear()).macs


def test_at_fp32_is_the_inverse() -> None:
    counts = OpCounts(linear(), (ElementOps("relu", "r", 20, int_add=20),))
    assert counts.at(Everywhere(BFP8)).at(Everywhere(None)) == counts


def test_at_quantizes_each_operand_once() -> None:
    quantizers = OpCounts(linear()).at(Everywhere(BFP8)).element_ops
    # activation, weight and error, though each is read by two GEMMs; slices x 8 bits of scales
    assert sorted((op.elements, op.write_bits) for op in quantizers) == [
        (20, 20 * 8 + 4 * 8),
        (24, 24 * 8 + 4 * 8),
        (30, 30 * 8 + 5 * 8),
    ]
    assert all(op.kind == "quantizer" and op.layer == "fc" for op in quantizers)
    assert all(op.int_add == 4 * op.elements and op.read_bits == 32 * op.elements for op in quantizers)


def test_at_quantizes_as_often_as_there_are_steps() -> None:
    one = OpCounts(linear())
    for total in (one * 3, one + one + one, one * 2 + one):
        assert total.at(Everywhere(BFP8)).element_ops_by_kind == {"quantizer": 3 * (20 + 24 + 30)}


def test_at_of_the_same_counts_again_and_again() -> None:
    """What was made once is handed out again: the answer may not depend on what was asked before."""
    schedule = [Everywhere(replace(BFP8, bits=bits)) for bits in (3, 8, 3)] + [WeightsOnly(FIXED8), Everywhere(None)]
    counts = OpCounts(linear(), (ElementOps("relu", "r", 20, int_add=20),)) * 3
    for precision in (*schedule, *reversed(schedule)):
        fresh = OpCounts(linear(), (ElementOps("relu", "r", 20, int_add=20),)) * 3
        assert counts.at(precision) == fresh.at(precision)
    assert counts.at(schedule[0]).gemms[0] is counts.at(schedule[2]).gemms[0]


def test_a_tensor_that_is_read_in_two_formats_is_quantized_twice() -> None:
    class FewerBitsBackward:
        def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
            return BFP8 if gemm == "output" else FIXED8

    quantizers = OpCounts(linear()).at(FewerBitsBackward()).element_ops
    assert [(op.elements, op.part) for op in quantizers] == [
        (24, "forward"),
        (30, "forward"),
        (20, "backward"),
        (30, "backward"),
        (24, "backward"),
    ]


def test_stored_bits_include_the_scales() -> None:
    assert Operand("weight", (5, 6), 1, BFP8).stored_bits == 30 * 8 + 5 * 8
    assert Operand("weight", (5, 6), 1, BFP8_WHOLE).stored_bits == 30 * 8 + 8
    assert Operand("weight", (5, 6), 1, FIXED8).stored_bits == 30 * 8
    assert Operand("weight", (5, 6), 1).stored_bits == 30 * 32


def test_alignments_of_a_linear_layer() -> None:
    output, grad_input, grad_weight = linear(BFP8, times=2)
    assert output.alignments == 2 * 4 * 5  # one run per result
    assert grad_input.alignments == 2 * 4 * 6 * 5  # the weight's slice changes with every product
    assert grad_weight.alignments == 2 * 5 * 6 * 4  # and so does the sample
    assert [gemm.alignments for gemm in linear(BFP8_WHOLE)] == [4 * 5, 4 * 6, 5 * 6]
    assert [gemm.alignments for gemm in linear(FIXED8)] == [0, 0, 0]


def test_alignments_look_only_at_block_float_operands() -> None:
    grad_input = linear(BFP8)[1]
    error_only = replace(grad_input, b=replace(grad_input.b, format=FIXED8))
    assert error_only.alignments == 4 * 6


def test_a_last_short_run_is_one_more_alignment() -> None:
    operand = Operand("error", (1, 70), 3, BFP8)
    assert Gemm("l", "grad_weight", 2, 1, 1, 7, operand, operand, 2).alignments == 2 * 3


def test_a_format_needs_a_bit() -> None:
    with pytest.raises(ValueError, match=r"at least 1 bit.*bits=0"):
        replace(BFP8, bits=0)


def test_element_ops_are_given_per_element() -> None:
    (row,) = element_ops("mask_distance", 10, fp_add=1, fp_mul=2, int_add=3, read_bits=4, write_bits=5).element_ops
    assert row == ElementOps("mask_distance", "", 10, 10, 20, 30, 40, 50)
