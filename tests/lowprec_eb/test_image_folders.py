"""Image folders and archives of them."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lowprec_eb.strict_config import digest
from lowprec_eb.tasks import TaskSettings, image_folder, make_task, prepare_data
from lowprec_eb.tasks.datasets import read_dataset
from lowprec_eb.tasks.image_folder import decode, read_image_folder

NAMES = ("train/dog/b.png", "train/dog/a.png", "train/cat/x.png", "test/cat/1.png", "test/dog/2.png")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWPREC_EB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def pixels(seed: int, height: int = 6, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five PNG images of 6 x 8; image i of NAMES has pixels(i)."""
    for seed, name in enumerate(NAMES):
        save(tmp_path / "data" / name, Image.fromarray(pixels(seed)))
    return tmp_path / "data"


def archived(folder: Path, path: Path, front: str = "", mode: Any = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in reversed(NAMES):  # another order than on the disk
            archive.add(folder / name, f"{front}{name}")
    return path


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_classes_are_sorted_folders_and_images_come_by_class_and_name(folder: Path) -> None:
    dataset = read_image_folder(folder, None)
    assert dataset.classes == 2
    assert dataset.test is not None
    for part, seeds, labels in ((dataset.train, (2, 1, 0), [0, 1, 1]), (dataset.test, (3, 4), [0, 1])):
        assert np.array_equal(part.images, np.stack([pixels(seed).transpose(2, 0, 1) for seed in seeds]))
        assert part.labels.tolist() == labels
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tar", "w"), ("a.tar.xz", "w:xz")])
@pytest.mark.parametrize("front", ["", "./", "some/folder/"])
def test_an_archive_is_read_as_its_folder(tmp_path: Path, folder: Path, name: str, mode: str, front: str) -> None:
    archive = archived(folder, tmp_path / name, front, mode)
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    first, second = read_image_folder(folder, None), read_image_folder(archive, None)
    assert np.array_equal(first.train.images, second.train.images)
    assert first.test is not None
    assert second.test is not None
    assert np.array_equal(first.test.images, second.test.images)
    assert first.train.labels.tolist() == second.train.labels.tolist()
    assert before == sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)  # nothing unpacked


def test_no_member_of_an_archive_leads_out_of_it(tmp_path: Path, folder: Path) -> None:
    path = archived(folder, tmp_path / "a.tar", "../../", "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("../../train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / NAMES[0])
        archive.addfile(link)
        archive.add(folder / NAMES[4], f"../../{NAMES[3]}")  # a path that comes twice: the last one counts
    dataset = read_image_folder(path, None)
    assert len(dataset.train.images) == 3
    assert dataset.test is not None
    assert np.array_equal(dataset.test.images[0], dataset.test.images[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache", "data"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "RGB"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(pixels(0)).convert(mode)
    data = encoded(image, "tiff" if mode == "CMYK" else "png")
    assert np.array_equal(decode(data, None), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_sixteen_bits_a_channel_are_refused() -> None:
    data = encoded(Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000))
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode(data, None)


def test_the_middle_of_a_resized_image_is_taken() -> None:
    thirds = np.zeros((20, 60, 3), np.uint8)
    for third in range(3):
        thirds[:, 20 * third : 20 * (third + 1), third] = 200
    small = decode(encoded(Image.fromarray(thirds)), 10)
    assert small.shape == (3, 10, 10)
    assert (small[1, :, 1:-1] == 200).all()  # the green third, whose neighbours tinge its edges
    assert small[1].min() >= 150
    assert not small[[0, 2], :, 1:-1].any()
    tall = decode(encoded(Image.fromarray(thirds.transpose(1, 0, 2))), 10)
    assert np.array_equal(tall, small.transpose(0, 2, 1))


def test_resizing_averages_and_the_right_size_stays() -> None:
    board = np.indices((32, 32)).sum(axis=0).astype(np.uint8) % 2 * 200
    small = decode(encoded(Image.fromarray(board)), 8)
    assert np.abs(small.astype(int) - 100).max() <= 5  # antialiased; every fourth pixel would be all 0 or all 200
    image = pixels(0, 8, 8)
    assert np.array_equal(decode(encoded(Image.fromarray(image)), 8), image.transpose(2, 0, 1))


def test_images_of_several_sizes_need_a_side(folder: Path, cache: Path) -> None:
    save(folder / "train" / "dog" / "c.jpg", Image.fromarray(pixels(9, 10, 12)))
    with pytest.raises(ValueError, match=r"c\.jpg: is 12 x 10 pixels, others are 8 x 6; set task\.image_side"):
        read_image_folder(folder, None)
    assert not list(cache.glob("*.npy*"))
    assert read_image_folder(folder, 4).train.images.shape == (4, 3, 4, 4)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "cut_jpeg"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_image_that_cannot_be_read_is_named(
    tmp_path: Path, folder: Path, cache: Path, damage: str, packed: bool
) -> None:
    path = folder / NAMES[1]
    whole = path.read_bytes()
    jpeg = encoded(Image.fromarray(pixels(0, 60, 80)), "jpeg")
    path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[:-40], "cut_jpeg": jpeg[: len(jpeg) // 2]}[damage])
    root = archived(folder, tmp_path / "a.tar") if packed else folder
    with pytest.raises(ValueError, match=r"train/dog/a\.png: it cannot be read as an image"):
        read_image_folder(root, 4)
    assert not list(cache.glob("*.npy*"))  # no half file
    path.write_bytes(whole)
    assert len(read_image_folder(folder, 4).train.images) == 3


def test_other_files_are_ignored_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/dog/notes.txt", "train/cat/more.TXT", "test/cat/README", "train/loose.png"):
        (folder / name).write_bytes(b"")
    assert len(read_image_folder(folder, None).train.images) == 3
    told = capsys.readouterr()
    assert "ignored files that are no images of a class: 1 without a suffix, 1 .png, 2 .txt" in told.err
    assert "decoded 5 images" in told.err
    assert not told.out
    read_image_folder(folder, None)
    assert not capsys.readouterr().err  # said once


def test_nested_files_and_linked_classes(folder: Path, tmp_path: Path) -> None:
    save(folder / "train" / "dog" / "more" / "c.JPG", Image.fromarray(pixels(9)), format="png")
    for split in ("train", "test"):
        save(tmp_path / "elsewhere" / split / "x.png", Image.fromarray(pixels(8)))
        (folder / split / "ant").symlink_to(tmp_path / "elsewhere" / split)
    (folder / "train" / "dog" / "loop").symlink_to(folder / "train")
    dataset = read_image_folder(folder, None)
    assert (dataset.classes, dataset.train.labels.tolist()) == (3, [0, 1, 2, 2, 2])


def test_images_are_decoded_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counting(data: bytes, side: int | None) -> NDArray[np.uint8]:
        decoded.append(len(data))
        return decode(data, side)

    monkeypatch.setattr(image_folder, "decode", counting)
    first = read_image_folder(folder, None).train.images
    assert np.array_equal(read_image_folder(folder, None).train.images, first)
    assert len(decoded) == 5
    read_image_folder(folder, 4)  # another side
    assert len(decoded) == 10
    os.utime(folder / NAMES[0], ns=(0, 0))  # a changed file
    read_image_folder(folder, None)
    assert len(decoded) == 15
    for path in cache.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1])  # a damaged cache
    assert np.array_equal(read_image_folder(folder, None).train.images, first)
    assert len(decoded) == 20


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWPREC_EB_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be kept in .*/file/images .*set LOWPREC_EB_CACHE"):
        read_image_folder(folder, None)


def test_val_stands_in_for_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = read_image_folder(folder, None).test
    (folder / "test").rename(folder / "val")
    found = read_image_folder(folder, None).test
    assert expected is not None
    assert found is not None
    assert np.array_equal(found.images, expected.images)
    capsys.readouterr()
    for name in NAMES[3:]:
        save(folder / name, Image.fromarray(pixels(7)))
    both = read_image_folder(folder, None).test
    assert both is not None
    assert np.array_equal(both.images[0], pixels(7).transpose(2, 0, 1))
    assert "val is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("remove", "add", "error", "message"),
    [
        (["train/cat/x.png"], [], ValueError, "1 differ: 'cat' has images in test and none in train"),
        ([], ["train/emu/1.png"], ValueError, "1 differ: 'emu' has images in train and none in test"),
        (["train/cat/x.png", "test/cat/1.png"], [], FileNotFoundError, "train/cat: a class without images"),
        (NAMES[:3], [], FileNotFoundError, r"no images in .*/train\. Looked for .*/train/<class>/<image> and "),
        (NAMES[3:], [], FileNotFoundError, "no images in .*/test or val.*--data-root"),
    ],
)
def test_folders_that_do_not_fit(folder: Path, remove: Any, add: Any, error: Any, message: str) -> None:
    for name in remove:
        (folder / name).unlink()
    for name in add:
        save(folder / name, Image.fromarray(pixels(0)))
    with pytest.raises(error, match=message):
        read_image_folder(folder, None)


def test_two_data_sets_in_one_archive(tmp_path: Path, folder: Path) -> None:
    path = archived(folder, tmp_path / "a.tar", "one/", "w")
    with tarfile.open(path, "a") as archive:
        archive.add(folder / NAMES[0], f"two/{NAMES[0]}")
    with pytest.raises(ValueError, match="several data sets, in 'one/' and 'two/'"):
        read_image_folder(path, None)


@pytest.mark.parametrize("kind", ["text", "cut"])
def test_a_damaged_archive(tmp_path: Path, folder: Path, kind: str) -> None:
    path = archived(folder, tmp_path / "a.tar.gz")
    path.write_bytes(b"hello" if kind == "text" else path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"a\.tar\.gz: not a whole tar archive"):
        read_image_folder(path, None)


def test_messages_without_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*train/<class>/<image>"):
        read_dataset("image-folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs a data root.*train/<class>/<image>"):
        read_dataset("image-folder", None)


def test_as_a_task(folder: Path) -> None:
    for seed in range(20):
        save(folder / "train" / ("dog", "cat")[seed % 2] / f"more{seed}.png", Image.fromarray(pixels(seed)))
    settings = TaskSettings(data="image-folder", data_root=str(folder), image_side=5, augment="crop_flip", batch_size=8)
    prepare_data(settings)
    task = make_task(settings, seed=0)
    assert (task.input_shape, task.classes) == ((3, 5, 5), 2)
    assert task.samples == {"train": 18, "validation": 5, "test": 2}
    assert [batch.inputs.shape[0] for batch in task.batches(0)] == [8, 8, 2]


def test_the_side_names_a_run_and_how_the_data_came_does_not() -> None:
    plain = TaskSettings(data="image-folder")
    assert digest(plain) != digest(TaskSettings(data="image-folder", image_side=32))
    assert digest(plain) == digest(TaskSettings(data="image-folder", download=True))
    with pytest.raises(ValueError, match="image_side is of image-folder only"):
        TaskSettings(image_side=32)
    with pytest.raises(ValueError, match="image_side must be a whole number"):
        TaskSettings(data="image-folder", image_side=0)
