"""Image folders as uint8 arrays: every image decoded once, to a file in the cache that all runs then read.

The file is a plain .npy array, mapped into memory and not loaded: only the rows that a task takes are copied. Its name
hashes the listing (paths, sizes, times of change), the side and the place, so other images are another file.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from energy_models.files import replacing
from lowprec_eb.cache import cache_folder
from lowprec_eb.tasks.image_listing import ImageFile, ImageListing, list_images, read_files
from lowprec_eb.tasks.labelled import Dataset, LabelledImages
from lowprec_eb.tasks.notices import Notices

_MANY_BITS = ("I", "I;16", "I;16B", "I;16L", "F")  # converting these clips at 255


def read_image_folder(root: Path, side: int | None) -> Dataset:
    """Read root/{train, test or val}/<class>/<image>, or a tar archive of it; labels are positions in sorted classes.

    side: S resizes the shorter side to S pixels (bilinear, antialiased) and cuts the middle S x S; None: all images
    must have one size already, and stay as they are. Images are RGB, (N, 3, H, W) uint8: grey is repeated, alpha
    dropped, CMYK and palettes converted by Pillow. What EXIF says about the orientation is not applied.

    In memory are the rows that are taken, 3 * S * S bytes each. Raises FileNotFoundError or ValueError, naming folder
    or image; what was ignored is said on stderr when images are decoded.
    """
    listing = list_images(root)
    path = _cache_of_images() / _name(listing, side)
    with FileLock(path.with_suffix(".lock")):  # arms that run side by side decode once
        images = _mapped(path, listing)
        if images is None:
            _decode_all(listing, side, path)
            images = np.load(path, mmap_mode="r", allow_pickle=False)
    images, trained = np.asarray(images), len(listing.train)  # still mapped
    return Dataset(
        len(listing.classes),
        LabelledImages(images[:trained], _labels(listing, listing.train)),
        LabelledImages(images[trained:], _labels(listing, listing.test)),
    )


def decode(data: bytes, side: int | None) -> NDArray[np.uint8]:
    """One image file as (3, H, W) uint8. Raises ValueError for what Pillow cannot read, and for 16 bits a channel."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in _MANY_BITS:
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8")
            plain = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"it cannot be read as an image ({error}); get it again, or remove it") from error
    if side is not None:
        plain = ImageOps.fit(plain, (side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(plain).transpose(2, 0, 1))


def _cache_of_images() -> Path:
    place: Path | str = "the user's cache folder"
    try:
        place = cache_folder() / "images"
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise OSError(
            f"decoded images cannot be kept in {place} ({error}); set LOWPREC_EB_CACHE to a folder that can be written"
        ) from error
    return place


def _name(listing: ImageListing, side: int | None) -> str:
    files = [(file.member, file.size_bytes, file.stamp) for file in (*listing.train, *listing.test)]
    identity = json.dumps([str(listing.root.resolve()), side, files])
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npy"


def _mapped(path: Path, listing: ImageListing) -> NDArray[np.uint8] | None:
    """The decoded images; None: not there, or not what was written."""
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return images if images.ndim == 4 and len(images) == len(listing.train) + len(listing.test) else None


def _decode_all(listing: ImageListing, side: int | None, path: Path) -> None:
    files = (*listing.train, *listing.test)
    with Notices() as notices, replacing(path) as temporary, temporary.open("wb") as file:
        for note in listing.notes():
            notices.say(note)
        start, shape = 0, (0, 0, 0)
        for row, image in notices.progress(_decoded(listing, side, files), len(files), f"decoding {listing.root}"):
            if not start:
                shape = image.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                start = file.tell()
            if image.shape != shape:
                raise ValueError(_other_size(listing.root / files[row].member, image.shape, shape))
            # Written, not through a mapping: a full disk is then an error and not a signal.
            file.seek(start + row * image.nbytes)
            file.write(image.tobytes())
        size_mb = (start + len(files) * math.prod(shape)) / 1e6
        notices.say(f"decoded {len(files)} images of {listing.root} to {path}, {size_mb:.1f} MB")


def _decoded(
    listing: ImageListing, side: int | None, files: tuple[ImageFile, ...]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for row, data in read_files(listing):
        try:
            yield row, decode(data, side)
        except ValueError as error:
            raise ValueError(f"{listing.root / files[row].member}: {error}") from error


def _other_size(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"{path}: is {found[2]} x {found[1]} pixels, others are {expected[2]} x {expected[1]}; set task.image_side to "
        "the side in pixels that all are resized and cropped to"
    )


def _labels(listing: ImageListing, files: tuple[ImageFile, ...]) -> NDArray[np.int64]:
    number = {name: label for label, name in enumerate(listing.classes)}
    return np.array([number[file.label] for file in files], np.int64)
