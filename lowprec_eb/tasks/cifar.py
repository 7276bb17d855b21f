"""CIFAR-10 and CIFAR-100 in both layouts of https://www.cs.toronto.edu/~kriz/cifar.html, with any number of rows.

The binary one, and the Python one (that torchvision and many courses use), which is read without running its pickles.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowprec_eb.tasks.labelled import Dataset, LabelledImages, check_labels, concatenated
from lowprec_eb.tasks.layouts import CIFAR_BINARY, Layout, file_missing
from lowprec_eb.tasks.plain_pickle import read_plain_pickle

_SHAPE = (3, 32, 32)
_PIXELS = math.prod(_SHAPE)
# Label bytes of a row, and label keys of a pickle: the last one is the label that is used.
_CLASSES = {"cifar10": (10,), "cifar100": (20, 100)}
_KEYS = {"cifar10": ("labels",), "cifar100": ("coarse_labels", "fine_labels")}
_TEST_FILES = {"cifar10": "test_batch", "cifar100": "test"}


def read_cifar(name: Literal["cifar10", "cifar100"], layout: Layout, folder: Path) -> Dataset:
    """Read the files of `folder`. Raises FileNotFoundError or ValueError, naming the file."""
    binary = layout.name == CIFAR_BINARY
    test_path = folder / (_TEST_FILES[name] + ".bin" * binary)
    if not test_path.is_file():
        raise FileNotFoundError(file_missing(name, test_path.name, folder, layout))
    classes = _CLASSES[name]

    def read(path: Path) -> LabelledImages:
        return read_cifar_file(path, classes) if binary else read_cifar_pickle(path, _KEYS[name], classes)

    return Dataset(classes[-1], concatenated([read(path) for path in layout.files_in(folder)]), read(test_path))


def read_cifar_file(path: Path, label_classes: tuple[int, ...]) -> LabelledImages:
    """Read one file in the CIFAR binary layout: rows of label bytes and a 3 x 32 x 32 image (CHW).

    label_classes: the number of classes of each label byte; the last byte is the label that is used
    (CIFAR-10: (10,); CIFAR-100: (20, 100), coarse then fine).
    """
    data = path.read_bytes()
    label_bytes = len(label_classes)
    row_bytes = label_bytes + _PIXELS
    if not data or len(data) % row_bytes:
        raise ValueError(
            f"{path}: its size of {len(data)} bytes is not a positive multiple of the row size, {row_bytes} bytes "
            f"({label_bytes} label byte(s) and 3 x 32 x 32 pixels); the file is empty, cut short or of another layout"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
    for column, classes in enumerate(label_classes):
        check_labels(path, rows[:, column], classes)
    images = rows[:, label_bytes:].reshape(-1, *_SHAPE)
    return LabelledImages(images, rows[:, label_bytes - 1].astype(np.int64))


def read_cifar_pickle(path: Path, label_keys: tuple[str, ...], label_classes: tuple[int, ...]) -> LabelledImages:
    """Read one file in the CIFAR Python layout: a pickled dict with `data`, (N, 3072) uint8, and lists of labels.

    label_keys: of its labels, the last of them the one that is used (CIFAR-10: ("labels",); CIFAR-100:
    ("coarse_labels", "fine_labels")); label_classes: the number of classes of each.
    """
    content = read_plain_pickle(path)
    if missing := [key for key in ("data", *label_keys) if key not in content]:
        raise ValueError(
            f"{path}: has no {missing[0]!r}, only {', '.join(sorted(content)) or 'nothing'}; is it of another data set?"
        )
    data = content["data"]
    fits = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == _PIXELS
    if not fits or not data.size:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: 'data' must be a uint8 array of shape (N, 3072) with rows, found {found}")
    labels = [_labels(path, key, content[key], len(data)) for key in label_keys]
    for array, classes in zip(labels, label_classes, strict=True):
        check_labels(path, array, classes)
    return LabelledImages(data.reshape(-1, *_SHAPE), labels[-1])


def _labels(path: Path, key: str, values: Any, rows: int) -> NDArray[np.int64]:
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(plain, list) or not all(type(value) is int for value in plain):
        raise ValueError(f"{path}: {key!r} must be a list of whole numbers, one an image")
    if len(plain) != rows:
        raise ValueError(f"{path}: {rows} images, but {len(plain)} {key}; the file is damaged")
    try:
        return np.array(plain, np.int64)
    except OverflowError as error:
        raise ValueError(f"{path}: {key!r} has a number that is no label ({error}); the file is damaged") from error
