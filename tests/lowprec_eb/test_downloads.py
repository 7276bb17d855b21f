"""Downloads, from a server in this process."""

import gzip
import hashlib
import io
import multiprocessing
import struct
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lowprec_eb.cli import app
from lowprec_eb.tasks import downloads
from lowprec_eb.tasks.datasets import read_dataset
from lowprec_eb.tasks.downloads import REMOTE, DownloadError, RemoteData, RemoteFile, fetch
from lowprec_eb.tasks.layouts import LAYOUTS

pytest.importorskip("pooch")


@dataclass
class Server:
    """url -> bytes; `asked` lists the paths that were asked for. `cut` bytes are promised and not sent."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: int = 0
    hanging: bool = False
    half_sent: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            data = state.files.get(self.path)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            if state.hanging:
                state.half_sent.set()
                state.go_on.wait(30)
                return
            self.wfile.write(data[len(data) // 2 : len(data) - state.cut])

        def log_message(self, format: str, *args: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/"
    yield state
    state.go_on.set()
    listening.shutdown()
    listening.server_close()
    thread.join()


def tar_gz(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("cifar-10-batches-bin/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return file.getvalue()


@pytest.fixture
def cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with a small CIFAR-10, and paths in its archive that lead elsewhere."""
    rows = {label: bytes([label]) + bytes(3072) for label in (1, 2, 7)}
    members = {
        "cifar-10-batches-bin/data_batch_1.bin": rows[1],
        "cifar-10-batches-bin/data_batch_2.bin": rows[2],
        "cifar-10-batches-bin/test_batch.bin": rows[7],
        "cifar-10-batches-bin/../evil.bin": b"x",
        "../evil.bin": b"x",
        "/tmp/cifar-10-batches-bin/evil.bin": b"x",
        "cifar-10-batches-bin/deep/data_batch_3.bin": rows[1],
    }
    server.files["/cifar.tar.gz"] = tar_gz(members)
    md5 = hashlib.md5(server.files["/cifar.tar.gz"]).hexdigest()
    remote = RemoteData("cifar-10-batches-bin", (RemoteFile(f"{server.url}cifar.tar.gz", md5),), archive=True)
    monkeypatch.setattr(downloads, "REMOTE", {"cifar10": remote})
    return server


def listed(root: Path) -> list[str]:
    """All files but the lock."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")


WHOLE = [f"cifar-10-batches-bin/{name}.bin" for name in ("data_batch_1", "data_batch_2", "test_batch")]


def test_an_archive_is_fetched_checked_and_unpacked_once(
    cifar: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "data"
    for _ in range(2):
        dataset = read_dataset("cifar10", root, download=True)
        assert dataset.train.labels.tolist() == [1, 2]
        assert dataset.test is not None
        assert dataset.test.labels.tolist() == [7]
    assert cifar.asked == ["/cifar.tar.gz"]
    assert listed(tmp_path) == [f"new/data/{name}" for name in WHOLE]  # nothing beside, nothing of the download
    told = capsys.readouterr()
    assert f"downloading {cifar.url}cifar.tar.gz" in told.err
    assert not told.out


def test_idx_files_stay_as_they_come(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", np.ones((3, 4, 4), np.uint8)), ("labels-idx1", np.arange(3, dtype="u1"))):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            data, name = gzip.compress(header + array.tobytes()), f"{prefix}-{kind}-ubyte.gz"
            server.files[f"/{name}"] = data
            files.append(RemoteFile(server.url + name, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(downloads, "REMOTE", {"mnist": RemoteData("mnist", tuple(files))})
    assert read_dataset("mnist", tmp_path, download=True).train.labels.tolist() == [0, 1, 2]
    assert listed(tmp_path) == sorted(f"mnist/{file.name}" for file in files)


def test_nothing_is_fetched_unasked(cifar: Server, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--download"):
        read_dataset("cifar10", tmp_path)
    assert not cifar.asked


def test_one_file_of_several_that_fails_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a"] = b"a"
    files = (RemoteFile(f"{server.url}a", hashlib.md5(b"a").hexdigest()), RemoteFile(f"{server.url}b", "0" * 32))
    monkeypatch.setattr(downloads, "REMOTE", {"mnist": RemoteData("mnist", files)})
    with pytest.raises(DownloadError, match=r"/b was not downloaded .*404.* put it into .*/mnist"):
        fetch("mnist", tmp_path)
    assert listed(tmp_path) == []


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "offline"])
def test_what_is_not_as_published_is_not_kept(cifar: Server, tmp_path: Path, damage: str) -> None:
    data = cifar.files["/cifar.tar.gz"]
    if damage == "changed":
        cifar.files["/cifar.tar.gz"] = data[:-1] + bytes([data[-1] ^ 1])
    elif damage == "cut":
        cifar.cut = 10
    elif damage == "missing":
        cifar.files.clear()
    else:
        file = RemoteFile("http://127.0.0.1:9/cifar.tar.gz", "0" * 32)  # port 9: nobody listens
        downloads.REMOTE = {"cifar10": RemoteData("cifar-10-batches-bin", (file,), archive=True)}  # type: ignore[misc]
    remote = downloads.REMOTE["cifar10"].files[0]
    with pytest.raises(DownloadError) as caught:
        read_dataset("cifar10", tmp_path, download=True)
    for part in (remote.url, remote.md5, "by hand", f"unpack it in {tmp_path}", str(tmp_path / "cifar-10-batches-bin")):
        assert part in str(caught.value)
    assert listed(tmp_path) == []
    if damage in ("changed", "cut"):
        cifar.cut, cifar.files["/cifar.tar.gz"] = 0, data
        assert len(read_dataset("cifar10", tmp_path, download=True).train.labels) == 2


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_killed_download_leaves_no_data_and_the_next_one_works(cifar: Server, tmp_path: Path) -> None:
    cifar.hanging = True
    child = multiprocessing.get_context("fork").Process(target=fetch, args=("cifar10", tmp_path))
    child.start()
    assert cifar.half_sent.wait(30)
    child.kill()
    child.join()
    with pytest.raises(FileNotFoundError):
        read_dataset("cifar10", tmp_path)
    cifar.hanging = False
    assert read_dataset("cifar10", tmp_path, download=True).train.labels.tolist() == [1, 2]
    assert listed(tmp_path) == WHOLE


def test_two_at_once_download_once(cifar: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=("cifar10", tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cifar.asked == ["/cifar.tar.gz"]
    assert listed(tmp_path) == WHOLE


def test_without_pooch(cifar: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'lowprec-eb\[download\]'"):
        fetch("cifar10", tmp_path)


def test_what_is_fetched_is_where_the_readers_look() -> None:
    assert set(REMOTE) == set(LAYOUTS)
    for name, data in REMOTE.items():
        assert any(data.folder in layout.subfolders for layout in LAYOUTS[name])
        for file in data.files:
            assert len(file.md5) == 32
            assert set(file.md5) <= set("0123456789abcdef")
            assert (data.archive and file.name.endswith(".tar.gz")) or file.name.endswith("-ubyte.gz")


def test_the_command_asks_for_it(cifar: Server, tmp_path: Path) -> None:
    cifar.files.clear()
    arguments = ["compare", "--data", "cifar10", "--data-root", str(tmp_path), "--dry-run"]
    assert "was not downloaded" not in CliRunner().invoke(app, arguments).output
    result = CliRunner().invoke(app, [*arguments, "--download"])
    assert result.exit_code == 2
    assert "was not downloaded" in result.output
    assert cifar.asked == ["/cifar.tar.gz"]
