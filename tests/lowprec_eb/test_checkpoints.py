"""Checkpoints come back exactly, and a crash while writing never costs the file that stood there."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from energy_models import files
from lowprec_eb.checkpoints import load, pack, save, unpack, write_text

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint8]


def assert_same(one: Any, other: Any) -> None:
    """Equal in value and in type, bit for bit, all the way down."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert [type(key) for key in one] == [type(key) for key in other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, float):
        assert one.hex() == other.hex()
    else:
        assert one == other


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_tensors_of_every_kind_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    meta = {"epoch": 3, "name": "é", "loss": math.inf, "best": None, "big": 2**80, "widths": [1, 2.5, True]}
    save(tmp_path / "folder" / "a.safetensors", {"t": tensor}, meta)
    tensors, loaded_meta = load(tmp_path / "folder" / "a.safetensors")
    assert_same(tensors, {"t": tensor})
    assert_same(loaded_meta, meta)


def test_views_and_shared_memory_are_stored_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    shared = {"whole": whole, "same": whole, "column": whole[:, 1], "turned": whole.T, "wide": torch.ones(1).expand(3)}
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    shared["parameter"] = nn.Parameter(image)
    save(tmp_path / "a", shared, {})
    tensors, _ = load(tmp_path / "a")
    assert set(tensors) == set(shared)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, shared[name]) and tensor.is_contiguous() and not tensor.requires_grad
    tensors["whole"].zero_()
    assert load(tmp_path / "a")[0]["whole"].sum() == 66


@pytest.mark.parametrize(
    ("tensors", "meta", "message"),
    [
        ({}, {"a": (1, 2)}, "meta.a is a tuple"),
        ({}, {"a": [{"b": torch.zeros(1)}]}, r"meta\.a\.0\.b is a Tensor"),
        ({}, {1: 2}, "key 1; JSON keys are text"),
        ({"__metadata__": torch.zeros(1)}, {}, "__metadata__"),
        ({"s": torch.zeros(2).to_sparse()}, {}, "'s' is sparse"),
        ({"m": torch.zeros(2, device="meta")}, {}, "'m' is sparse or without data"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensors: Any, meta: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "a", tensors, meta)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.safetensors"
    save(path, {"t": torch.arange(5)}, {"epoch": 3})
    whole = path.read_bytes()
    for damaged in (*(whole[:size] for size in range(len(whole))), whole + b"x", b"\xff" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"epoch_3\.safetensors: not a whole checkpoint .* delete it"):
            load(path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"t": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other: not a whole checkpoint"):
        load(tmp_path / "other")


def test_a_checkpoint_is_as_readable_as_any_other_file(tmp_path: Path) -> None:
    save(tmp_path / "a", {"t": torch.zeros(1)}, {})
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: there is no such checkpoint"):
        load(tmp_path / "absent")


# ---- crashes -----------------------------------------------------------------------------------------------------


def half_written(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise KeyboardInterrupt


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


CRASHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "while writing": lambda patch: patch.setattr(Path, "write_bytes", half_written),
    "full disk": lambda patch: patch.setattr(Path, "write_bytes", fail),
    "while syncing": lambda patch: patch.setattr(os, "fsync", fail),
    "before the rename": lambda patch: patch.setattr(Path, "replace", fail),
}


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("old_exists", [True, False])
def test_a_crash_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str, old_exists: bool
) -> None:
    path = tmp_path / "a"
    if old_exists:
        save(path, {"t": torch.ones(2)}, {"epoch": 1})
    CRASHES[crash](monkeypatch)
    with pytest.raises((KeyboardInterrupt, OSError)):
        save(path, {"t": torch.zeros(2)}, {"epoch": 2})
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["a"] if old_exists else [])
    if old_exists:
        assert load(path)[1] == {"epoch": 1}


def test_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "table.md"
    write_text(path, "old é\n")
    write_text(path, "new é\n")
    assert path.read_text(encoding="utf-8") == "new é\n"
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "newer")
    assert path.read_text(encoding="utf-8") == "new é\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["table.md"]


def test_file_is_on_the_disk_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(files, "sync", lambda path: steps.append("folder" if path.is_dir() else "file"))
    monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append("rename"), replace(self, target))[1])
    save(tmp_path / "a", {"t": torch.ones(1)}, {})
    assert steps == ["file", "rename", "folder"]


# ---- pack and unpack ---------------------------------------------------------------------------------------------

tensors = st.builds(
    lambda dtype, shape: torch.arange(math.prod(shape)).reshape(shape).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | tensors
dict_keys = st.sampled_from(["a", "a.b", "b", "", "0", "tensor", "__metadata__", "dict", "tuple", "a'"]) | st.integers(
    -1, 2
)
trees = st.recursive(
    leaves,
    lambda child: st.lists(child, max_size=3) | st.tuples(child, child) | st.dictionaries(dict_keys, child, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(trees)
def test_any_tree_comes_back_through_a_file(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("trees") / "a"
    flat, plain = pack(tree)
    save(path, flat, {"state": plain})
    loaded, meta = load(path)
    assert_same(unpack(loaded, meta["state"]), tree)


def test_tensors_have_readable_names_and_no_two_share_one() -> None:
    one, two, three = torch.zeros(1), torch.ones(1), torch.ones(2)
    flat, _ = pack({"state": {0: {"momentum_buffer": one}}, "a": {"b": two}, "a.b": three})
    assert list(flat) == ["state.0.momentum_buffer", "a.b", "a.b'"]
    assert pack(one)[0] == {"tensor": one}
    assert "__metadata__" not in pack({"__metadata__": one})[0]  # safetensors keeps that name for itself


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"state": {0: {1, 2}}}, "state.0 is a set"),
        ({"a": [{True: 1}]}, "a.0 has the key True"),
        (1j, "the tree is a complex"),
        ({"size": torch.Size([1])}, "size is a Size"),
    ],
)
def test_what_cannot_be_packed_is_named(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(tree)


def test_parts_that_do_not_belong_together() -> None:
    _, plain = pack({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="needs the tensor 'a'"):
        unpack({}, plain)
    with pytest.raises(ValueError, match="nothing that pack writes"):
        unpack({}, {"a": 1, "b": 2})


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def new_run() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 1 / 3}]
    return model, torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4, nesterov=True)


def test_training_that_was_saved_and_loaded_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = new_run()
    train_steps(model, optimizer, range(3))
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    flat, plain = pack(tree)
    save(tmp_path / "a", flat, {"state": plain})
    train_steps(model, optimizer, range(3, 6))

    resumed, resumed_optimizer = new_run()
    loaded, meta = load(tmp_path / "a")
    state = unpack(loaded, meta["state"])
    assert isinstance(tree["model"], OrderedDict)
    assert 0 in state["optimizer"]["state"]
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    train_steps(resumed, resumed_optimizer, range(3, 6))
    assert_same(dict(resumed.state_dict()), dict(model.state_dict()))
    assert_same(resumed_optimizer.state_dict(), optimizer.state_dict())
