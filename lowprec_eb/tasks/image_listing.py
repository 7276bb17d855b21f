"""Which images a folder or a tar archive holds: root/{train, test or val}/<class>/..., as torchvision's ImageFolder.

Nothing is decoded here, and of an archive nothing is ever unpacked to the disk: its members are read where they lie,
so a member's path cannot lead anywhere.
"""

import lzma
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# torchvision's IMG_EXTENSIONS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_Found = tuple[str, int, int]  # a file's name, size and time of change
_TRAIN, _TESTS = "train", ("test", "val")  # a validation split is held out of train, so val tests where test is missing


@dataclass(frozen=True)
class ImageFile:
    """One image. `place` is its path within the split's parent, posix; `member` its path within root, or archive."""

    split: str
    label: str
    place: str
    member: str
    size_bytes: int
    stamp: int  # time of the last change, whole nanoseconds (seconds of an archive's members)


@dataclass(frozen=True)
class ImageListing:
    """All images of a data set, and what else was found.

    train, test: sorted by class and path, whatever the order on the disk. classes: sorted by name; a label is a
    position in it. ignored: suffix -> files that are no images of a class; unused: a split that was left aside.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    ignored: tuple[tuple[str, int], ...]
    unused: str | None

    def notes(self) -> list[str]:
        """What was left out, in words."""
        notes = []
        if self.ignored:
            kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in self.ignored)
            notes.append(f"{self.root}: ignored files that are no images of a class: {kinds}")
        if self.unused:
            notes.append(f"{self.root}: {self.unused} is not used, since there is test; validation is taken from train")
        return notes


def list_images(root: Path) -> ImageListing:
    """List a folder, or a tar archive (.tar, .tar.gz, .tgz, ...) that may have folders in front of train and test.

    Raises FileNotFoundError where root, a split or the images of a class are missing, ValueError where train and test
    have other classes, or the archive is damaged.
    """
    if root.is_file():
        with open_archive(root) as archive:
            # Of a path that comes twice, the last one counts, as when unpacking.
            members = {name: (name, member.size, int(member.mtime)) for name, member in _files(archive)}
        return _listing(root, members.values())
    folders = [root / split for split in (_TRAIN, *_TESTS) if (root / split).is_dir()]
    listing = _listing(root, [found for folder in folders for found in _scan(str(folder), folder.name)])
    _check_no_empty_class(folders, listing)
    return listing


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive to read from. Raises ValueError, naming it, where it is damaged or none."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; a damaged gzip has none
            raise
        raise ValueError(
            f"{path}: not a whole tar archive ({error}); the data root of image-folder is a folder or a tar archive"
        ) from error


def read_files(listing: ImageListing) -> Iterator[tuple[int, bytes]]:
    """(row, bytes) of every image, in the order on the disk; rows count train first, then test."""
    rows = {file.member: row for row, file in enumerate((*listing.train, *listing.test))}
    if listing.root.is_file():
        with open_archive(listing.root) as archive:
            for name, member in _files(archive):
                content = archive.extractfile(member) if name in rows else None
                if content is not None:
                    yield rows[name], content.read()
    else:
        for name, row in rows.items():
            yield row, (listing.root / name).read_bytes()


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Plain files by normalised path; links and devices are none."""
    return ((posixpath.normpath(member.name), member) for member in archive if member.isfile())


def _scan(folder: str, name: str) -> Iterator[_Found]:
    """Files at any depth below `folder`; links to files are followed, links to folders if they are a class."""
    with os.scandir(folder) as entries:
        for entry in entries:
            entry_name = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks="/" not in name):
                yield from _scan(entry.path, entry_name)
            elif entry.is_file():
                stat = entry.stat()
                yield entry_name, stat.st_size, stat.st_mtime_ns


def _listing(root: Path, found: Iterable[_Found]) -> ImageListing:
    by_split: dict[str, list[ImageFile]] = {split: [] for split in (_TRAIN, *_TESTS)}
    ignored: Counter[str] = Counter()
    for name, size, stamp in found:
        file = _image_file(name, size, stamp)
        if file is None:
            ignored[posixpath.splitext(name)[1].lower()] += 1
        else:
            by_split[file.split].append(file)
    missing = _TRAIN if not by_split[_TRAIN] else "" if any(by_split[split] for split in _TESTS) else "test or val"
    if missing:
        raise FileNotFoundError(_not_found(root, missing))
    used = next(split for split in _TESTS if by_split[split])
    train, test = (sorted(by_split[split], key=lambda file: (file.label, file.place)) for split in (_TRAIN, used))
    _check_one_place(root, [*train, *test])
    classes = sorted({file.label for file in train})
    _check_classes(root, classes, sorted({file.label for file in test}), used)
    unused = next((split for split in _TESTS if split != used and by_split[split]), None)
    return ImageListing(root, tuple(classes), tuple(train), tuple(test), tuple(sorted(ignored.items())), unused)


def _image_file(name: str, size: int, stamp: int) -> ImageFile | None:
    parts = name.split("/")
    depth = next((depth for depth, part in enumerate(parts) if part in (_TRAIN, *_TESTS)), None)
    if depth is None or len(parts) < depth + 3 or not name.lower().endswith(EXTENSIONS):
        return None
    return ImageFile(parts[depth], parts[depth + 1], "/".join(parts[depth:]), name, size, stamp)


def _not_found(root: Path, missing: str) -> str:
    state = "" if root.exists() else f"{root} does not exist: "
    return (
        f"data 'image-folder': {state}no images in {root / missing}. Looked for {root}/train/<class>/<image> and "
        f"{root}/test/<class>/<image> (or val), the image's name ending in {', '.join(EXTENSIONS)}. Give the folder "
        "that has train in it, or a tar archive of it, with --data-root (task.data_root)"
    )


def _check_one_place(root: Path, files: list[ImageFile]) -> None:
    fronts = sorted({file.member.removesuffix(file.place) for file in files})
    if len(fronts) > 1:
        raise ValueError(f"{root}: has several data sets, in {fronts[0] or '.'!r} and {fronts[1]!r}; keep one of them")


def _check_classes(root: Path, train: list[str], test: list[str], split: str) -> None:
    if odd := sorted({*train} ^ {*test}):
        having, lacking = ("train", split) if odd[0] in train else (split, "train")
        raise ValueError(
            f"{root}: train and {split} must have the same classes; {len(odd)} differ: {odd[0]!r} has images in "
            f"{having} and none in {lacking}"
        )


def _check_no_empty_class(folders: list[Path], listing: ImageListing) -> None:
    """A class without images would shift the labels of those behind it."""
    used = {file.split for file in (*listing.train, *listing.test)}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if folder.name in used and path.is_dir() and path.name not in listing.classes:
                raise FileNotFoundError(f"{path}: a class without images; remove the folder, or put images into it")
