"""Which files a data set consists of, where they are looked for, and what is said when they are not there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DataName = Literal["digits", "cifar10", "cifar100", "fashion-mnist", "mnist", "image-folder"]


@dataclass(frozen=True)
class Layout:
    """One way to store a data set. A folder has it if a file in it matches `pattern` (a glob).

    It is looked for in the data root and in these `subfolders` of it; `files` says all that it needs.
    """

    name: str
    pattern: str
    files: str
    subfolders: tuple[str, ...]

    def folders(self, root: Path) -> list[Path]:
        """Where it may lie, in the order of preference."""
        return [root, *(root / subfolder for subfolder in self.subfolders)]

    def files_in(self, folder: Path) -> list[Path]:
        """The files that match, sorted by name."""
        return sorted(path for path in folder.glob(self.pattern) if path.is_file())


CIFAR_BINARY, CIFAR_PYTHON = "CIFAR binary", "CIFAR Python"
_IDX_FILES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, "
    "each plain or gzipped (.gz)"
)
LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "cifar10": (
        Layout(CIFAR_BINARY, "data_batch_*.bin", "data_batch_*.bin and test_batch.bin", ("cifar-10-batches-bin",)),
        Layout(CIFAR_PYTHON, "data_batch_*[0-9]", "data_batch_1, ... and test_batch", ("cifar-10-batches-py",)),
    ),
    "cifar100": (
        Layout(CIFAR_BINARY, "train.bin", "train.bin and test.bin", ("cifar-100-binary",)),
        Layout(CIFAR_PYTHON, "train", "train and test", ("cifar-100-python",)),
    ),
    # The second subfolder is where torchvision puts them.
    "mnist": (Layout("IDX", "train-images-idx3-ubyte*", _IDX_FILES, ("mnist", "MNIST/raw")),),
    "fashion-mnist": (Layout("IDX", "train-images-idx3-ubyte*", _IDX_FILES, ("fashion-mnist", "FashionMNIST/raw")),),
}


def find_layout(name: DataName, root: Path) -> tuple[Layout, Path] | None:
    """The first layout of this data set that `root` or a subfolder has, and that folder; None: there is none."""
    for layout in LAYOUTS[name]:
        for folder in layout.folders(root):
            if layout.files_in(folder):
                return layout, folder
    return None


def nothing_found(name: DataName, root: Path) -> str:
    """What to say where `find_layout` finds nothing."""
    state = "does not exist" if not root.exists() else "is a file: unpack it" if root.is_file() else "has none of it"
    sought = [
        f"  {layout.name}: {layout.files}, in {' or '.join(str(folder) for folder in layout.folders(root))}"
        for layout in LAYOUTS[name]
    ]
    advice = (
        "Give the folder that has them, or its parent, with --data-root (task.data_root); or have them downloaded to "
        "that folder with --download (task.download: true)"
    )
    return "\n".join([f"data {name!r}: {root} {state}. Looked for:", *sought, advice])


def file_missing(name: DataName, sought: str, folder: Path, layout: Layout) -> str:
    """What to say where one file of a layout is missing."""
    return (
        f"data {name!r}: no {sought} in {folder}; the {layout.name} layout needs {layout.files}. Get the missing file, "
        "or remove the folder and have the data downloaded anew with --download (task.download: true)"
    )


def no_root(name: DataName) -> str:
    """What to say where no data root was given."""
    if name == "image-folder":
        return (
            "data 'image-folder' needs a data root (--data-root): a folder with train/<class>/<image> "
            "and test/<class>/<image> (or val), or a tar archive of it"
        )
    needed = " or with ".join(f"{layout.files} ({layout.name})" for layout in LAYOUTS[name])
    return (
        f"data {name!r} needs a data root (--data-root): a folder with {needed}, or a folder to "
        "download to with --download (task.download: true)"
    )
