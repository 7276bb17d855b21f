"""Which CIFAR-10 a folder holds: the authors' files, or the same images as JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowprec_eb.report.paper_table import OF_IMAGES
from lowprec_eb.tasks.datasets import read_dataset
from lowprec_eb.tasks.layouts import DataName, find_layout

TRAINING_IMAGES = 50_000
JPEG = "cifar-10-jpeg*"  # a folder, or a tar archive of it
JPEG_NOTE = (
    f"{OF_IMAGES} CIFAR-10 re-encoded as JPEG (about 30 dB), not the data set itself. Accuracies compare these "
    "arms with each other; they are not to be set against published ones."
)


@dataclass(frozen=True)
class Cifar10:
    """Where CIFAR-10 lies and how it is read; ``note``: what a result must say of it, None if it is the data set."""

    data: DataName
    root: Path
    note: str | None

    @property
    def overrides(self) -> list[str]:
        """Of the settings of a comparison or a study."""
        return [f"task.data={self.data}", f"task.data_root={self.root}"]


def find_cifar10(folder: Path) -> Cifar10:
    """The data set where it is whole, else its JPEG copy, else the part of it that is there.

    Raises:
        FileNotFoundError: the folder has none of them. ValueError: a file is damaged.
    """
    layout, part = find_layout("cifar10", folder), None
    if layout is not None:
        rows = len(read_dataset("cifar10", folder).train.labels)
        if rows == TRAINING_IMAGES:
            return Cifar10("cifar10", folder, None)
        part = Cifar10(
            "cifar10", folder, f"{OF_IMAGES} {rows} of CIFAR-10's {TRAINING_IMAGES} training images, no more."
        )
    copies = sorted(folder.glob(JPEG))
    if copies:
        return Cifar10("image-folder", copies[0], JPEG_NOTE)
    if part is not None:
        return part
    raise FileNotFoundError(
        f"{folder}: has no CIFAR-10: neither data_batch_*.bin or data_batch_1, ... (in it, in cifar-10-batches-bin or "
        f"cifar-10-batches-py) nor {JPEG}, a tar archive or folder of train/<class>/<image> and test/<class>/<image>"
    )
