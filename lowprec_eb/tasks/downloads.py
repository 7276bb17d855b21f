"""Fetching data sets, when that is asked for: by pooch, checked against the checksum that was published.

Files are fetched into a folder of their own beside the data and take their place at once when all are there and right:
a download that was killed leaves nothing that could be taken for data, and the next one begins anew.
"""

import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lowprec_eb.tasks.notices import Notices


class DownloadError(OSError):
    """Data could not be fetched, or are not what was published; the text says how to get them by hand."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, and its MD5 as published: known content is what it has to show, not a signature."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class RemoteData:
    """A data set on a server. folder: in the data root, where its files go. `archive`: its one file is a tar archive
    of that folder. Otherwise the files themselves are what is read."""

    folder: str
    files: tuple[RemoteFile, ...]
    archive: bool = False


def _idx(base: str, checksums: tuple[str, str, str, str]) -> tuple[RemoteFile, ...]:
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(RemoteFile(f"{base}{stem}-ubyte.gz", md5) for stem, md5 in zip(stems, checksums, strict=True))


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
REMOTE: Mapping[str, RemoteData] = {
    # Checksums: the authors' page, https://www.cs.toronto.edu/~kriz/cifar.html
    "cifar10": RemoteData(
        "cifar-10-batches-bin",
        (RemoteFile(f"{_TORONTO}cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
        archive=True,
    ),
    "cifar100": RemoteData(
        "cifar-100-binary",
        (RemoteFile(f"{_TORONTO}cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
        archive=True,
    ),
    # The authors published none; these and the mirror are torchvision's, torchvision/datasets/mnist.py.
    "mnist": RemoteData(
        "mnist",
        _idx(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    # Checksums: the authors' README, https://github.com/zalandoresearch/fashion-mnist
    "fashion-mnist": RemoteData(
        "fashion-mnist",
        _idx(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    ),
}


def fetch(name: str, root: Path) -> Path:
    """Download a data set into its folder below `root`, which is made; returns that folder, at once if it is there.

    Raises ImportError without pooch, DownloadError where a file cannot be had or has another checksum.
    """
    data = REMOTE[name]
    target, working = root / data.folder, root / f".{data.folder}.part"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{data.folder}.lock"):
        if target.exists():
            return target
        shutil.rmtree(working, ignore_errors=True)  # of a download that was killed
        try:
            fetched = [_fetch_file(file, working / "files", target, data.archive) for file in data.files]
            whole = _unpacked(fetched[0], data.folder, working / "unpacked") if data.archive else working / "files"
            whole.replace(target)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return target


def _fetch_file(file: RemoteFile, folder: Path, target: Path, archive: bool) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise ImportError("downloads need pooch: pip install 'lowprec-eb[download]'") from error
    pooch.get_logger().setLevel("WARNING")
    folder.mkdir(parents=True, exist_ok=True)
    with Notices() as notices:
        notices.say(f"downloading {file.url}")
        downloader = pooch.HTTPDownloader(progressbar=_Bar(notices, file.name), chunk_size=2**16)
        try:
            pooch.retrieve(file.url, f"md5:{file.md5}", file.name, folder, downloader=downloader)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: another checksum
            raise DownloadError(_by_hand(file, target, archive, error)) from error
    return folder / file.name


def _by_hand(file: RemoteFile, target: Path, archive: bool, error: Exception) -> str:
    place = f"unpack it in {target.parent}, so that it makes {target}" if archive else f"put it into {target}"
    return (
        f"{file.url} was not downloaded ({error}). Run the same command again where there is a network; or fetch the "
        f"file by hand, check that its MD5 is {file.md5}, {place}, and run again"
    )


def _unpacked(archive: Path, folder: str, into: Path) -> Path:
    """The plain files that lie right in `folder` of the archive, and nothing else, each under its own name."""
    into.mkdir(parents=True)
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            content = members.extractfile(member) if member.isfile() and path.parts == (folder, path.name) else None
            if content is not None:
                with (into / path.name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    return into


class _Bar:
    """What pooch expects of a bar: a total that it sets, and these three."""

    def __init__(self, notices: Notices, name: str) -> None:
        self.bars, self.total = notices.bars, 0
        self.task = notices.bars.add_task(name, total=None)

    def update(self, size_bytes: int) -> None:
        self.bars.update(self.task, total=self.total or None, advance=size_bytes)

    def reset(self) -> None:
        self.bars.reset(self.task)

    def close(self) -> None:
        self.bars.refresh()
