"""Readers of image classification files, into uint8 arrays. Nothing is downloaded.

CIFAR: the binary layout (https://www.cs.toronto.edu/~kriz/cifar.html). MNIST and Fashion-MNIST: IDX files
(LeCun, Cortes & Burges, "The MNIST database"; Xiao et al. 2017, arXiv 1708.07747). Files may hold any number of rows.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DataName = Literal["digits", "cifar10", "cifar100", "fashion-mnist", "mnist"]

_CIFAR_SHAPE = (3, 32, 32)
_IDX_UBYTE = 0x08
_EXPECTED = {
    "cifar10": "data_batch_*.bin and test_batch.bin, or a folder cifar-10-batches-bin with them",
    "cifar100": "train.bin and test.bin, or a folder cifar-100-binary with them",
    "mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, "
    "each plain or gzipped (.gz), or a folder mnist with them",
}
_EXPECTED["fashion-mnist"] = _EXPECTED["mnist"].replace("folder mnist", "folder fashion-mnist")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """images: (N, C, H, W) uint8; labels: (N,) int64 in 0 .. classes - 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> "LabelledImages":
        """The examples with these row numbers."""
        return LabelledImages(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a data source holds; `test` is None where the source has no test set of its own."""

    classes: int
    train: LabelledImages
    test: LabelledImages | None


def read_dataset(name: DataName, data_root: str | Path | None) -> Dataset:
    """Read a data set whole. `data_root` is the folder with its files, or that folder's parent (digits needs none).

    Raises FileNotFoundError where files are missing, ValueError where a file is damaged or no `data_root` is given.
    """
    if name == "digits":
        return Dataset(10, read_digits(), None)
    if data_root is None:
        raise ValueError(f"data {name!r} needs a data root (--data-root): a folder with {_EXPECTED[name]}")
    root = Path(data_root)
    if name in ("cifar10", "cifar100"):
        return _read_cifar(name, root)
    folder = _folder(name, root, name, "train-images-idx3-ubyte*")
    train = _read_idx_pair(name, folder, "train")
    test = _read_idx_pair(name, folder, "t10k")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{folder}: training images have shape {train.images.shape[1:]}, test images {test.images.shape[1:]}; "
            "they must be files of the same data set"
        )
    return Dataset(10, train, test)


def read_digits() -> LabelledImages:
    """scikit-learn's handwritten digits: 1797 images (1, 8, 8) with pixel values 0 .. 16, 10 classes."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    digits = load_digits()
    return LabelledImages(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64))


def read_cifar_file(path: Path, label_classes: tuple[int, ...]) -> LabelledImages:
    """Read one file in the CIFAR binary layout: rows of label bytes and a 3 x 32 x 32 image (CHW).

    label_classes: the number of classes of each label byte; the last byte is the label that is used
    (CIFAR-10: (10,); CIFAR-100: (20, 100), coarse then fine).
    """
    data = path.read_bytes()
    label_bytes = len(label_classes)
    row_bytes = label_bytes + math.prod(_CIFAR_SHAPE)
    if not data or len(data) % row_bytes:
        raise ValueError(
            f"{path}: its size of {len(data)} bytes is not a positive multiple of the row size, {row_bytes} bytes "
            f"({label_bytes} label byte(s) and 3 x 32 x 32 pixels); the file is empty, cut short or of another layout"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
    for column, classes in enumerate(label_classes):
        _check_labels(path, rows[:, column], classes)
    images = rows[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE)
    return LabelledImages(images, rows[:, label_bytes - 1].astype(np.int64))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped (by its .gz name), as an array of the shape it declares.

    Layout: two zero bytes, a data type byte, the number of dimensions, each dimension as a big-endian int32, the data.
    """
    data = _read_maybe_gzipped(path)
    if len(data) < 4 or data[:2] != b"\x00\x00":
        raise ValueError(f"{path}: not an IDX file: it must start with two zero bytes, found {data[:4].hex(' ')!r}")
    if data[2] != _IDX_UBYTE:
        raise ValueError(f"{path}: IDX data type 0x{data[2]:02x} is not supported; unsigned bytes (0x08) are")
    header_bytes = 4 + 4 * data[3]
    if len(data) < header_bytes:
        raise ValueError(f"{path}: truncated in its header: {len(data)} of {header_bytes} bytes; get the file again")
    shape = struct.unpack(f">{data[3]}I", data[4:header_bytes])
    if len(data) - header_bytes != math.prod(shape):
        raise ValueError(
            f"{path}: holds {len(data) - header_bytes} data bytes, its header {shape} promises {math.prod(shape)}; "
            "the file is cut short or damaged: get it again"
        )
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


def _read_cifar(name: Literal["cifar10", "cifar100"], root: Path) -> Dataset:
    if name == "cifar10":
        folder = _folder(name, root, "cifar-10-batches-bin", "data_batch_*.bin")
        train_paths, test_path = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
        label_classes: tuple[int, ...] = (10,)
    else:
        folder = _folder(name, root, "cifar-100-binary", "train.bin")
        train_paths, test_path = [folder / "train.bin"], folder / "test.bin"
        label_classes = (20, 100)
    if not test_path.is_file():
        raise FileNotFoundError(_missing(name, test_path.name, [folder]))
    parts = [read_cifar_file(path, label_classes) for path in train_paths]
    train = LabelledImages(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
    return Dataset(label_classes[-1], train, read_cifar_file(test_path, label_classes))


def _read_idx_pair(name: str, folder: Path, prefix: str) -> LabelledImages:
    images_path = _idx_path(name, folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _idx_path(name, folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, dims in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != dims or array.size == 0:
            raise ValueError(f"{path}: expected {dims} dimensions, none of them 0, found shape {array.shape}")
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels: not a pair")
    _check_labels(labels_path, labels, 10)
    return LabelledImages(images[:, None], labels.astype(np.int64))


def _read_maybe_gzipped(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error}); get it again") from error


def _idx_path(name: str, folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(_missing(name, f"{stem} or {stem}.gz", [folder]))


def _folder(name: str, root: Path, subfolder: str, pattern: str) -> Path:
    """The folder that has files like `pattern`: `root` itself or its `subfolder`."""
    candidates = [root, root / subfolder]
    for folder in candidates:
        if any(folder.glob(pattern)):
            return folder
    raise FileNotFoundError(_missing(name, pattern, candidates))


def _missing(name: str, sought: str, folders: list[Path]) -> str:
    where = " or ".join(str(folder) for folder in folders)
    return f"data {name!r}: no {sought} in {where}; --data-root must name a folder with {_EXPECTED[name]}"


def _check_labels(path: Path, labels: NDArray[np.uint8], classes: int) -> None:
    bad_rows = np.flatnonzero(labels >= classes)
    if bad_rows.size:
        row = int(bad_rows[0])
        raise ValueError(
            f"{path}: label {labels[row]} in row {row} is not in 0 .. {classes - 1}; "
            "the file is damaged or of another layout"
        )
