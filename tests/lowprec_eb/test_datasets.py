import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec_eb.tasks.cifar import read_cifar_file
from lowprec_eb.tasks.datasets import read_dataset, read_digits
from lowprec_eb.tasks.idx import read_idx

SHARED_CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar-10-batches-bin"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def cifar_rows(labels: list[tuple[int, ...]], seed: int = 0) -> tuple[bytes, NDArray[np.uint8]]:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = [bytes(label) + image.tobytes() for label, image in zip(labels, images, strict=True)]
    return b"".join(rows), images


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_cifar10(folder: Path) -> NDArray[np.uint8]:
    """Files of different lengths: 2 and 1 training rows, 1 test row; returns the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    first, images_1 = cifar_rows([(3,), (9,)], 1)
    second, images_2 = cifar_rows([(0,)], 2)
    (folder / "data_batch_1.bin").write_bytes(first)
    (folder / "data_batch_2.bin").write_bytes(second)
    (folder / "test_batch.bin").write_bytes(cifar_rows([(5,)], 3)[0])
    return np.concatenate([images_1, images_2])


def write_idx(folder: Path, zipped: bool) -> NDArray[np.uint8]:
    """5 training and 5 test images of 4 x 6; returns the images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    labels = np.array([0, 9, 4, 4, 1], dtype=np.uint8)
    for images_name, labels_name in IDX_NAMES.values():
        for name, array in ((images_name, images), (labels_name, labels)):
            data = idx_bytes(array)
            path = folder / (name + ".gz" * zipped)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return images


def test_digits_are_the_whole_set_in_its_own_scale() -> None:
    digits = read_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int64)
    assert (digits.images.min(), digits.images.max()) == (0, 16)
    assert set(digits.labels) == set(range(10))


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_concatenates_files_of_any_length(tmp_path: Path, subfolder: str) -> None:
    images = write_cifar10(tmp_path / subfolder)
    dataset = read_dataset("cifar10", tmp_path)
    assert dataset.classes == 10
    assert np.array_equal(dataset.train.images, images)
    assert dataset.train.labels.tolist() == [3, 9, 0]
    assert dataset.test is not None
    assert dataset.test.images.shape == (1, 3, 32, 32)
    assert dataset.test.labels.tolist() == [5]


@pytest.mark.parametrize("subfolder", ["", "cifar-100-binary"])
def test_cifar100_uses_the_fine_label(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    data, images = cifar_rows([(19, 99), (1, 42)])
    (folder / "train.bin").write_bytes(data)
    (folder / "test.bin").write_bytes(cifar_rows([(0, 7)])[0])
    dataset = read_dataset("cifar100", str(tmp_path))
    assert dataset.classes == 100
    assert np.array_equal(dataset.train.images, images)
    assert dataset.train.labels.tolist() == [99, 42]
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [7]


@pytest.mark.parametrize("cut", [1, 3000, 2 * 3073])
def test_cifar_file_of_a_wrong_size(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "data_batch_1.bin"
    data = cifar_rows([(0,), (1,)])[0][:-cut]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"data_batch_1\.bin.* {len(data)} bytes.* 3073 bytes"):
        read_cifar_file(path, (10,))


@pytest.mark.parametrize(("labels", "classes"), [((10,), (10,)), ((20, 0), (20, 100)), ((0, 100), (20, 100))])
def test_cifar_label_out_of_range(tmp_path: Path, labels: tuple[int, ...], classes: tuple[int, ...]) -> None:
    path = tmp_path / "train.bin"
    good = tuple(0 for _ in classes)
    path.write_bytes(cifar_rows([good, labels])[0])
    with pytest.raises(ValueError, match=r"train\.bin: label \d+ in row 1 is not in 0 \.\. \d+"):
        read_cifar_file(path, classes)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("inside", ["", "own", "torchvision"])
def test_idx_dataset(tmp_path: Path, zipped: bool, name: str, inside: str) -> None:
    torchvision = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}[name]
    images = write_idx(tmp_path / {"": "", "own": name, "torchvision": torchvision}[inside], zipped)
    dataset = read_dataset("mnist" if name == "mnist" else "fashion-mnist", tmp_path)
    assert dataset.classes == 10
    for part in (dataset.train, dataset.test):
        assert part is not None
        assert np.array_equal(part.images, images[:, None])
        assert part.labels.tolist() == [0, 9, 4, 4, 1]
        assert part.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x01\x08\x01", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + bytes(4), "data type 0x0d"),
        (b"\x00\x00\x08\x03" + bytes(8), "header: 12 of 16 bytes"),
        (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], r"holds 5 data bytes.*promises 6"),
        (idx_bytes(np.zeros((2, 3), np.uint8)) + b"\x00", r"holds 7 data bytes.*promises 6"),
    ],
)
def test_damaged_idx_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "some-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"some-idx.*{message}"):
        read_idx(path)


@pytest.mark.parametrize("damage", ["cut", "not_gzip", "wrong_checksum", "wrong_block"])
def test_damaged_gzip_file(tmp_path: Path, damage: str) -> None:
    content = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
    data = bytearray(gzip.compress(idx_bytes(content)))
    if damage == "cut":
        data = data[:-100]
    elif damage == "not_gzip":
        data = bytearray(idx_bytes(content))
    elif damage == "wrong_checksum":
        data[200] ^= 0xFF
    else:
        data[10] = 0xFF  # the first byte after the gzip header: a block type that does not exist
    path = tmp_path / "some-idx.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"some-idx\.gz: damaged or truncated gzip"):
        read_idx(path)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (IDX_NAMES["train"][1], np.zeros(4, np.uint8), "5 images.* 4 labels"),
        (IDX_NAMES["train"][1], np.full(5, 10, np.uint8), "label 10 in row 0"),
        (IDX_NAMES["test"][0], np.zeros((5, 24), np.uint8), "expected 3 dimensions"),
        (IDX_NAMES["test"][0], np.zeros((0, 4, 6), np.uint8), "none of them 0"),
        (IDX_NAMES["test"][0], np.zeros((5, 6, 4), np.uint8), "same data set"),
    ],
)
def test_idx_files_that_do_not_fit_together(tmp_path: Path, file: str, array: NDArray[np.uint8], message: str) -> None:
    write_idx(tmp_path, zipped=False)
    (tmp_path / file).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=message):
        read_dataset("mnist", tmp_path)


def test_no_data_root_says_what_it_should_hold() -> None:
    with pytest.raises(ValueError, match=r"--data-root.*data_batch_\*\.bin and test_batch\.bin"):
        read_dataset("cifar10", None)


@pytest.mark.parametrize("exists", [False, True])
def test_missing_data_says_what_was_sought_and_where(tmp_path: Path, exists: bool) -> None:
    root = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as caught:
        read_dataset("fashion-mnist", root)
    message = str(caught.value)
    places = (str(root), str(root / "fashion-mnist"), str(root / "FashionMNIST" / "raw"))
    for part in ("train-images-idx3-ubyte", *places, "--data-root", "--download", "t10k-labels"):
        assert part in message
    assert ("does not exist" in message) == (not exists)


def test_both_layouts_of_cifar_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.txt").touch()
    with pytest.raises(FileNotFoundError) as caught:
        read_dataset("cifar10", tmp_path)
    for part in ("data_batch_*.bin and test_batch.bin", "cifar-10-batches-bin", "data_batch_1", "cifar-10-batches-py"):
        assert part in str(caught.value)


def test_an_archive_in_place_of_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.touch()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-binary\.tar\.gz is a file: unpack it"):
        read_dataset("cifar10", archive)


def test_a_missing_cifar_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read_dataset("cifar10", tmp_path)
    assert f"no test_batch.bin in {tmp_path}" in str(caught.value)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in "):
        read_dataset("mnist", tmp_path)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_CIFAR.is_dir(), reason="no CIFAR-10 subset beside the checkout")
def test_real_cifar10_subset() -> None:
    dataset = read_dataset("cifar10", SHARED_CIFAR.parent)
    assert dataset.train.images.shape == (8068, 3, 32, 32)
    assert dataset.test is not None
    assert dataset.test.images.shape == (1017, 3, 32, 32)
    assert dataset.test.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]  # cat, ship, ship, airplane, frog, ...
    means = dataset.train.images.mean(axis=(0, 2, 3)) / 255
    assert np.allclose(means, [0.4914, 0.4822, 0.4465], atol=0.01)  # red, green, blue of all of CIFAR-10


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Fashion-MNIST (Debian: dataset-fashion-mnist) not installed")
def test_real_fashion_mnist() -> None:
    dataset = read_dataset("fashion-mnist", FASHION_MNIST)
    assert dataset.train.images.shape == (60000, 1, 28, 28)
    assert dataset.test is not None
    assert dataset.test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
