"""Counts on the disk: nothing is lost, damage is noticed, and rows are priced again to the last bit."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_models import (
    CountStore,
    ElementOps,
    FormatSpec,
    Gemm,
    LedgerKey,
    LedgerRow,
    OpCounts,
    Operand,
    Zeros,
    estimate,
    load_profile,
    reprice,
)
from energy_models.number_formats import FP32
from energy_models.serialize import from_plain, to_plain

PROFILE = load_profile("45nm")
whole = st.integers(0, 2**70)
small = st.integers(1, 50)
specs = st.builds(
    FormatSpec,
    kind=st.sampled_from(["float", "block_float", "mx"]),
    bits=small,
    exponent_bits=st.integers(0, 8),
    mantissa_bits=st.integers(0, 23),
    scale_bits=st.sampled_from([0, 8]),
    block_dim=st.none() | st.integers(0, 1) | st.just((0, 1)),
    block_size=st.none() | st.just(32),
)
formats = st.just(FP32) | specs
operands = st.builds(
    Operand,
    name=st.sampled_from(["weight", "activation", "error", "state"]),
    shape=st.tuples(small, small, small),
    k_run=small,
    format=formats,
    nonzeros=st.none() | whole,
    is_sparse=st.booleans(),
    index_bits=whole,
    on_chip=st.booleans(),
)
gemms = st.builds(
    Gemm,
    layer=st.text(max_size=4),
    gemm=st.sampled_from(["output", "grad_input", "grad_weight", "optimizer"]),
    batch=small,
    m=small,
    n=small,
    k=small,
    a=operands,
    b=operands,
    result_elements=whole,
    times=whole,
    result_bits=small,
    accumulator=formats,
    zeros=st.builds(Zeros, whole, whole, whole, whole),
)
element_ops = st.builds(
    ElementOps,
    kind=st.text(max_size=4),
    layer=st.text(max_size=4),
    elements=whole,
    fp_add=whole,
    fp_mul=whole,
    int_add=whole,
    read_bits=whole,
    write_bits=whole,
    times=whole,
    part=st.sampled_from(["forward", "backward", "optimizer", "other"]),
)
counts = st.builds(
    OpCounts,
    gemms=st.lists(gemms, max_size=4).map(tuple),
    element_ops=st.lists(element_ops, max_size=3).map(tuple),
    uncounted=st.lists(st.text(max_size=3), max_size=2).map(tuple),
)


@dataclasses.dataclass(frozen=True)
class PaddedFormat:
    """A format of somebody else's, which stores whole words."""

    kind: str = "float"
    bits: int = 7
    exponent_bits: int = 4
    mantissa_bits: int = 2
    scale_bits: int = 0
    block_dim: int | None = None
    block_size: int | None = None

    def storage_bits(self, shape: Sequence[int]) -> int:
        elements = 1
        for size in shape:
            elements *= size
        return -(-elements // 4) * 32


def gemm(fmt: Any = FP32, **changes: Any) -> Gemm:
    a = Operand("activation", (4, 8), 1, fmt)
    b = Operand("weight", (3, 8), 1, fmt)
    return dataclasses.replace(Gemm("layer", "output", 1, 4, 3, 8, a, b, 12), **changes)


def through_json(plain: Any) -> Any:
    return json.loads(json.dumps(plain))


# ---- plain data --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(counts)
def test_counts_come_back_equal(one: OpCounts) -> None:
    again = from_plain(through_json(to_plain(one)))
    assert again == one
    assert to_plain(again) == to_plain(one)


def test_no_field_is_forgotten() -> None:
    """Each field of a record by itself with a value other than its default, new fields included."""
    values = {"int": 7, "int | None": 7, "bool": True, "str": "x", "NumberFormat": FormatSpec("mx", 6, 3, 2)}
    for field in dataclasses.fields(Operand):
        if (value := values.get(str(field.type))) is not None:
            operand = dataclasses.replace(gemm().a, **{field.name: value})
            one = OpCounts(gemms=(gemm(a=operand),))
            assert from_plain(through_json(to_plain(one))) == one, field.name
    for kind, record in (("gemms", gemm()), ("element_ops", ElementOps("relu", "layer", 3))):
        for field in dataclasses.fields(record):
            if (value := values.get(str(field.type))) is not None:
                one = OpCounts(**{kind: (dataclasses.replace(record, **{field.name: value}),)})
                assert from_plain(through_json(to_plain(one))) == one, field.name


def test_a_format_of_somebody_elses_keeps_its_bits() -> None:
    one = OpCounts(gemms=(gemm(PaddedFormat()), gemm(FormatSpec("float", 7, 4, 2))))
    again = from_plain(through_json(to_plain(one)))
    assert [g.traffic_bits for g in again.gemms] == [g.traffic_bits for g in one.gemms]
    assert again.gemms[0].traffic_bits != again.gemms[1].traffic_bits
    assert estimate(again, PROFILE) == estimate(one, PROFILE)
    with pytest.raises(ValueError, match=r"do not know how many bits a tensor of shape \(5, 5\) takes"):
        again.gemms[0].a.format.storage_bits((5, 5))
    assert through_json(to_plain(again)) == through_json(to_plain(one))


def test_an_operand_that_many_gemms_read_stands_once() -> None:
    plain = to_plain(OpCounts(gemms=tuple(gemm(layer=str(place)) for place in range(100))))
    assert len(plain["operands"]["name"]) == 2 and len(plain["formats"]) == 1
    assert "zeros" not in plain["gemms"] and "times" not in plain["gemms"]  # columns of defaults


def test_newer_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="stored counts have schema 2, and this version reads up to 1: update"):
        from_plain(to_plain(OpCounts()) | {"schema": 2})


# ---- the store ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(counts, st.integers(0, 2**40)), max_size=3))
def test_what_was_stored_is_found_by_its_key(
    tmp_path_factory: pytest.TempPathFactory, work: list[tuple[OpCounts, int]]
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    kept = CountStore(folder).put_all(work)
    distinct: list[OpCounts] = []
    for one, _ in work:
        if one not in distinct:
            distinct.append(one)
    assert [CountStore(folder).get(key) for key in kept] == distinct
    assert sum(kept.values()) == sum(times for _, times in work)


def test_each_content_stands_once_and_is_written_once(tmp_path: Path) -> None:
    store = CountStore(tmp_path / "counts")
    one = OpCounts(gemms=(gemm(),))
    key = store.put(one)
    (path,) = (tmp_path / "counts").iterdir()
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert CountStore(store.folder).put(OpCounts(gemms=(gemm(),))) == store.put(one) == key
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert [other.name for other in store.folder.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "changed", "flipped", "gone"])
def test_damaged_counts_are_noticed(tmp_path: Path, damage: str) -> None:
    key = CountStore(tmp_path).put(OpCounts(gemms=(gemm(),)))
    path = tmp_path / f"{key}.json.gz"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "changed":
        path.write_bytes(gzip.compress(gzip.decompress(content).replace(b"12", b"13")))
    elif damage == "flipped":  # zlib notices it, before the hash
        path.write_bytes(content[:10] + b"\xff" * 20 + content[30:])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=rf"{key}\.json\.gz: .*restore the file from a copy, or run the stage again"):
        CountStore(tmp_path).get(key)


# ---- other profiles ----------------------------------------------------------------------------------------------


def row(kept: dict[str, int] | None, store: CountStore) -> LedgerRow:
    done = store.total(kept or {})
    key = LedgerKey("run", "stage", "train", 0)
    return LedgerRow.from_counts(
        key, done, estimate(done, PROFILE), 8, 2.0, 0.5, {"loss": 1.0}, profile="45nm", kept=kept
    )


def test_the_same_profile_gives_every_row_again_and_another_one_its_own(tmp_path: Path) -> None:
    store = CountStore(tmp_path)
    work = [(OpCounts(gemms=(gemm(times=times),)), times) for times in (3, 7, 11)]
    written = row(store.put_all(work), store)
    assert reprice([written], CountStore(tmp_path), PROFILE) == [written]
    of_memory = dataclasses.replace(PROFILE.memory[0], energy=PROFILE.memory[-1].energy)
    dearer = dataclasses.replace(PROFILE, name="dearer", memory=(of_memory, *PROFILE.memory[1:]))
    (priced,) = reprice([written], CountStore(tmp_path), dearer)
    assert priced.modelled == estimate(store.total(written.counts or {}), dearer) != written.modelled
    assert priced.profile == "dearer"
    assert dataclasses.replace(priced, modelled=written.modelled, profile="45nm") == written


def test_a_row_without_counts_says_so(tmp_path: Path) -> None:
    store = CountStore(tmp_path)
    with pytest.raises(ValueError, match=r"stage 'stage', phase 'train', epoch 0 holds no counts .* run it again"):
        reprice([row(None, store)], store, PROFILE)
