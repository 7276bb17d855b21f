"""What every reader of image data delivers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """images: (N, C, H, W) uint8; labels: (N,) int64 in 0 .. classes - 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> "LabelledImages":
        """The examples with these row numbers, copied."""
        return LabelledImages(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a data source holds; `test` is None where the source has no test set of its own."""

    classes: int
    train: LabelledImages
    test: LabelledImages | None


def concatenated(parts: list[LabelledImages]) -> LabelledImages:
    """All examples of the parts, in their order."""
    return LabelledImages(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def check_labels(path: Path, labels: NDArray[np.integer], classes: int) -> None:
    """Raise ValueError, naming the file and the first bad row, unless all labels (N,) lie in 0 .. classes - 1."""
    bad_rows = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad_rows.size:
        row = int(bad_rows[0])
        raise ValueError(
            f"{path}: label {labels[row]} in row {row} is not in 0 .. {classes - 1}; "
            "the file is damaged or of another layout"
        )
