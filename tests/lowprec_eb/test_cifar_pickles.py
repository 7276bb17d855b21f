"""CIFAR's Python layout, read without running its pickles."""

import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec_eb.tasks.cifar import read_cifar_pickle
from lowprec_eb.tasks.datasets import read_dataset
from lowprec_eb.tasks.plain_pickle import read_plain_pickle


def pixels(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def python2_text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def python2_batch(data: NDArray[np.uint8], labels: list[int], fortran: bool = False) -> bytes:
    """What cPickle of Python 2 with numpy 1 wrote: texts are byte strings, the array's bytes among them."""
    dtype = b"cnumpy\ndtype\n(" + python2_text(b"u1") + b"K\x00K\x01tR(K\x03" + python2_text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + python2_text(b"b") + b"tR("
    array += b"K\x01(" + b"".join(b"M" + struct.pack("<H", side) for side in data.shape) + b"t" + dtype
    array += (b"\x88" if fortran else b"\x89") + python2_text(data.tobytes("F" if fortran else "C")) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    named = python2_text(b"batch_label") + python2_text(b"testing batch 1 of 1")
    return b"\x80\x02}(" + named + python2_text(b"labels") + numbers + python2_text(b"data") + array + b"u."


@pytest.mark.parametrize("fortran", [False, True])
def test_a_file_as_python_2_wrote_it(tmp_path: Path, fortran: bool) -> None:
    path, data = tmp_path / "test_batch", pixels(3)
    path.write_bytes(python2_batch(data, [3, 0, 9], fortran))
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="bytes")[b"data"], data)  # the test's own writer
    part = read_cifar_pickle(path, ("labels",), (10,))
    assert np.array_equal(part.images, data.reshape(3, 3, 32, 32))
    assert part.labels.tolist() == [3, 0, 9]
    assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", ["text", "bytes"])
def test_any_protocol(tmp_path: Path, protocol: int, keys: str) -> None:
    data, labels = pixels(2), np.array([7, 1], ">i4")
    content = {"data": data, "labels": labels, "filenames": [b"a.png", "b.png"]}
    if keys == "bytes":
        content = {key.encode(): value for key, value in content.items()}  # type: ignore[misc]
    part = read_cifar_pickle(write(tmp_path / "data_batch_1", content, protocol), ("labels",), (10,))
    assert np.array_equal(part.images, data.reshape(2, 3, 32, 32))
    assert part.labels.tolist() == [7, 1]


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_both_module_names_of_numpy(tmp_path: Path, module: bytes) -> None:
    written = pickle.dumps({"data": pixels(2), "labels": [0, 1]}, 2)
    mine = b"numpy._core" if b"numpy._core" in written else b"numpy.core"
    path = tmp_path / "test_batch"
    path.write_bytes(written.replace(mine, module))
    assert np.array_equal(read_plain_pickle(path)["data"], pixels(2))


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
def test_cifar10(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    write(folder / "data_batch_1", {"data": pixels(2, 1), "labels": [3, 9]})
    write(folder / "data_batch_2", {"data": pixels(1, 2), "labels": [0]})
    write(folder / "test_batch", {"data": pixels(1, 3), "labels": [5]})
    write(folder / "batches.meta", {"label_names": ["airplane"]})
    dataset = read_dataset("cifar10", tmp_path)
    assert dataset.classes == 10
    assert np.array_equal(dataset.train.images.reshape(3, -1), np.concatenate([pixels(2, 1), pixels(1, 2)]))
    assert dataset.train.labels.tolist() == [3, 9, 0]
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [5]


@pytest.mark.parametrize("subfolder", ["", "cifar-100-python"])
def test_cifar100_uses_the_fine_label(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    write(folder / "train", {"data": pixels(2), "fine_labels": [99, 42], "coarse_labels": [19, 1]})
    write(folder / "test", {"data": pixels(1), "fine_labels": [7], "coarse_labels": [0]})
    dataset = read_dataset("cifar100", tmp_path)
    assert dataset.classes == 100
    assert dataset.train.labels.tolist() == [99, 42]
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [7]


def test_the_binary_layout_has_the_same_rows(tmp_path: Path) -> None:
    binary, data, labels = tmp_path / "cifar-10-batches-bin", pixels(4), [1, 2, 3, 4]
    binary.mkdir()
    rows = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True))
    for name in ("data_batch_1", "test_batch"):
        (binary / f"{name}.bin").write_bytes(rows)
        write(tmp_path / "cifar-10-batches-py" / name, {"data": data, "labels": labels})
    first, second = read_dataset("cifar10", binary), read_dataset("cifar10", tmp_path / "cifar-10-batches-py")
    assert np.array_equal(first.train.images, second.train.images)
    assert first.train.labels.tolist() == second.train.labels.tolist()


class Calls:
    """Pickled, it is a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), "system"),
        (subprocess.Popen, (["touch", "ran"],), "Popen"),
        (eval, ("open('ran', 'w')",), "eval"),
        (getattr, ([], "append"), "getattr"),
        (OrderedDict, (), "OrderedDict"),
        (np.load, ("ran",), "load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: Any, arguments: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "test_batch", {"data": pixels(1), "labels": Calls(function, *arguments)}, protocol)
    with pytest.raises(ValueError, match=rf"test_batch.*asks for [\w.]+\.{name},.* not run"):
        read_plain_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_no_array_of_pointers_and_no_attribute_can_be_made(tmp_path: Path) -> None:
    from lowprec_eb.tasks import plain_pickle

    objects = write(tmp_path / "objects", {"data": np.array([b"a", None], object)})
    with pytest.raises(ValueError, match=r"objects.*dtype O8?; only whole numbers"):
        read_plain_pickle(objects)
    buffer = tmp_path / "buffer"  # ndarray((1,), dtype, bytes): numpy's own constructor
    buffer.write_bytes(b"\x80\x02}(U\x04datacnumpy\nndarray\n(K\x01tRu.")
    with pytest.raises(ValueError, match="buffer: is not a pickle of plain data"):
        read_plain_pickle(buffer)
    pointers = tmp_path / "pointers"  # a byte order that would make it a record with a pointer
    pointers.write_bytes(python2_batch(pixels(1), [0]).replace(python2_text(b"|"), python2_text(b"O,")))
    with pytest.raises(ValueError, match=r"pointers.*byte order"):
        read_plain_pickle(pointers)
    for stand_in in ("numpy\ndtype", "numpy.core.multiarray\n_reconstruct", "_codecs\nencode"):
        changed = tmp_path / "changed"  # BUILD on what find_class returned, with attributes to set
        changed.write_bytes(b"\x80\x02c" + stand_in.encode() + b"\nN}U\x05wrongK\x01s\x86b.")
        with pytest.raises(ValueError, match="changed: is not a pickle of plain data"):
            read_plain_pickle(changed)
    assert not any(hasattr(made, "wrong") for made in plain_pickle._STAND_INS.values())


def test_an_array_larger_than_its_bytes(tmp_path: Path) -> None:
    data = python2_batch(pixels(1), [0]).replace(b"M\x01\x00M\x00\x0c", b"M\xff\xffM\x00\x0c")
    path = tmp_path / "test_batch"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot reshape array of size 3072"):
        read_plain_pickle(path)


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_batch(pixels(2), [0, 1])[:-cut])
    with pytest.raises(ValueError, match="data_batch_1: is not a pickle"):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list, expected a dict"),
        ({"labels": [0]}, "has no 'data', only labels"),
        ({"data": pixels(1), "fine_labels": [0]}, "has no 'labels', only data, fine_labels"),
        ({"data": pixels(1)[:, :-1], "labels": [0]}, r"shape \(N, 3072\).*found uint8 \(1, 3071\)"),
        ({"data": pixels(1).astype(np.int16), "labels": [0]}, "found int16"),
        ({"data": pixels(0), "labels": []}, r"found uint8 \(0, 3072\)"),
        ({"data": [1, 2], "labels": [0]}, "found list"),
        ({"data": pixels(2), "labels": [0]}, "2 images, but 1 labels"),
        ({"data": pixels(2), "labels": [0, 10]}, r"label 10 in row 1 is not in 0 \.\. 9"),
        ({"data": pixels(2), "labels": [-1, 1]}, "label -1 in row 0"),
        ({"data": pixels(1), "labels": [True]}, "must be a list of whole numbers"),
        ({"data": pixels(1), "labels": [2**70]}, "is no label"),
        ({"data": pixels(1), "labels": 3}, "must be a list of whole numbers"),
        ({"data": np.zeros((1, 3072), np.float32), "labels": [0]}, "dtype f4; only whole numbers"),
    ],
)
def test_content_that_is_not_cifar(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "test_batch", content, protocol=4)
    with pytest.raises(ValueError, match=rf"test_batch.*{message}"):
        read_cifar_pickle(path, ("labels",), (10,))


def test_a_missing_test_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data_batch_1", {"data": pixels(1), "labels": [0]})
    with pytest.raises(FileNotFoundError, match=r"no test_batch in .*CIFAR Python"):
        read_dataset("cifar10", tmp_path)
