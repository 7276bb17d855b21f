"""Image classification data by name, read from files into uint8 arrays; downloaded only when that is asked for."""

from pathlib import Path

import numpy as np

from lowprec_eb.tasks.cifar import read_cifar
from lowprec_eb.tasks.idx import read_idx_dataset
from lowprec_eb.tasks.labelled import Dataset, LabelledImages
from lowprec_eb.tasks.layouts import DataName, Layout, find_layout, no_root, nothing_found


def read_dataset(name: DataName, data_root: str | Path | None) -> Dataset:
    """Read a data set whole. `data_root` is the folder with its files, or that folder's parent (digits needs none).

    Raises FileNotFoundError where files are missing, ValueError where a file is damaged or no `data_root` is given.
    """
    if name == "digits":
        return Dataset(10, read_digits(), None)
    if data_root is None:
        raise ValueError(no_root(name))
    layout, folder = _found(name, Path(data_root))
    if name in ("cifar10", "cifar100"):
        return read_cifar(name, layout, folder)
    return read_idx_dataset(name, layout, folder)


def read_digits() -> LabelledImages:
    """scikit-learn's handwritten digits: 1797 images (1, 8, 8) with pixel values 0 .. 16, 10 classes."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    digits = load_digits()
    return LabelledImages(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64))


def _found(name: DataName, root: Path) -> tuple[Layout, Path]:
    found = find_layout(name, root)
    if found is None:
        raise FileNotFoundError(nothing_found(name, root))
    return found
