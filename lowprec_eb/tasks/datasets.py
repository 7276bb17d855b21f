"""Image classification data by name, read from files into uint8 arrays; downloaded only when that is asked for."""

from pathlib import Path

import numpy as np

from lowprec_eb.tasks.cifar import read_cifar
from lowprec_eb.tasks.downloads import fetch
from lowprec_eb.tasks.idx import read_idx_dataset
from lowprec_eb.tasks.image_folder import read_image_folder
from lowprec_eb.tasks.labelled import Dataset, LabelledImages
from lowprec_eb.tasks.layouts import DataName, Layout, find_layout, no_root, nothing_found


def read_dataset(
    name: DataName, data_root: str | Path | None, image_side: int | None = None, download: bool = False
) -> Dataset:
    """Read a data set whole. `data_root` is the folder with its files, or that folder's parent (digits needs none).

    image_side: of image-folder, see `read_image_folder`. download: fetch what is not there into `data_root`, see
    `fetch`. Raises FileNotFoundError where files are missing, ValueError where a file is damaged or no `data_root` is
    given, and what `fetch` raises.
    """
    if name == "digits":
        return Dataset(10, read_digits(), None)
    if data_root is None:
        raise ValueError(no_root(name))
    root = Path(data_root)
    if name == "image-folder":
        return read_image_folder(root, image_side)
    layout, folder = _found(name, root, download)
    if name in ("cifar10", "cifar100"):
        return read_cifar(name, layout, folder)
    return read_idx_dataset(name, layout, folder)


def read_digits() -> LabelledImages:
    """scikit-learn's handwritten digits: 1797 images (1, 8, 8) with pixel values 0 .. 16, 10 classes."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    digits = load_digits()
    return LabelledImages(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64))


def _found(name: DataName, root: Path, download: bool) -> tuple[Layout, Path]:
    found = find_layout(name, root)
    if found is None and download:
        fetch(name, root)
        found = find_layout(name, root)
    if found is None:
        raise FileNotFoundError(nothing_found(name, root))
    return found
