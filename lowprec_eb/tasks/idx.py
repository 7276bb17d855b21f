"""IDX files: MNIST and Fashion-MNIST.

(LeCun, Cortes & Burges, "The MNIST database"; Xiao et al. 2017, arXiv 1708.07747.) Files may hold any number of rows.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowprec_eb.tasks.labelled import Dataset, LabelledImages, check_labels
from lowprec_eb.tasks.layouts import DataName, Layout, file_missing

_IDX_UBYTE = 0x08


def read_idx_dataset(name: DataName, layout: Layout, folder: Path) -> Dataset:
    """Read the four files of `folder`. Raises FileNotFoundError or ValueError, naming the file."""
    train = _read_pair(name, layout, folder, "train")
    test = _read_pair(name, layout, folder, "t10k")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{folder}: training images have shape {train.images.shape[1:]}, test images {test.images.shape[1:]}; "
            "they must be files of the same data set"
        )
    return Dataset(10, train, test)


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


def _read_pair(name: DataName, layout: Layout, folder: Path, prefix: str) -> LabelledImages:
    images_path = _path(name, layout, folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _path(name, layout, folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, dims in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != dims or array.size == 0:
            raise ValueError(f"{path}: expected {dims} dimensions, none of them 0, found shape {array.shape}")
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels: not a pair")
    check_labels(labels_path, labels, 10)
    return LabelledImages(images[:, None], labels.astype(np.int64))


def _read_maybe_gzipped(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error}); get it again") from error


def _path(name: DataName, layout: Layout, folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(file_missing(name, f"{stem} or {stem}.gz", folder, layout))
