"""Reads a data pack: one .npz with train_images, train_labels, test_images, test_labels, each part optional or empty.

Images are uint8 (n, height, width) or (n, height, width, 3), stored plainly, or as lossless WebP strips of square images one below the
other: `<part>_images_webp` holds all strips' bytes, `<part>_images_len` the bytes of each. Other keys in the file are ignored.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from sameguard.data.dataset import DataSet, Split, channels_first, int64_labels
from sameguard.data.reading import open_npz, reading
from sameguard.errors import InvalidDataError


def read_pack(path: Path, *, name: str, classes: int) -> DataSet:
    """The pack's training and test parts, None where a part is absent or empty.

    Raises DataNotFoundError if there is no such file, InvalidDataError if it is damaged or holds something else.
    """
    with reading(path, "a data pack (.npz)"), open_npz(path) as pack:
        parts = {part: _read_part(pack, part, path, classes) for part in ("train", "test")}
        return DataSet(name, **parts)


def _read_part(pack: np.lib.npyio.NpzFile, part: str, path: Path, classes: int) -> Split | None:
    has_strips = f"{part}_images_webp" in pack.files
    if not has_strips and f"{part}_images" not in pack.files:
        return None
    labels = int64_labels(pack[f"{part}_labels"], f"{path} {part}_labels")
    if not len(labels):
        return None
    if has_strips:
        images = _decode_strips(pack[f"{part}_images_webp"], pack[f"{part}_images_len"], len(labels), path)
    else:
        images = pack[f"{part}_images"]
        if images.dtype != np.uint8:
            raise InvalidDataError(f"{path} must hold uint8 images, got {part}_images of {images.dtype}.")
    return Split(channels_first(images, f"{path} {part}_images"), labels, classes)


def _decode_strips(strips: np.ndarray, lengths: np.ndarray, rows: int, path: Path) -> np.ndarray:
    """Images (rows, 3, side, side), uint8, decoded strip by strip into the one array that is returned."""
    data, ends = strips.tobytes(), np.cumsum(lengths)
    if lengths.min(initial=0) < 0 or (ends[-1] if len(ends) else 0) != len(data):
        raise InvalidDataError(f"{path} must hold WebP strips of the lengths it lists, got {len(data)} bytes for {lengths.sum()}.")
    images, filled = np.empty((0, 3, 0, 0), np.uint8), 0
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        strip = np.asarray(Image.open(io.BytesIO(data[start:end])).convert("RGB"))  # (count * side, side, 3)
        side = strip.shape[1]
        if not filled:
            images = np.empty((rows, 3, side, side), np.uint8)
        count, rest = divmod(strip.shape[0], side)
        if rest or side != images.shape[2] or filled + count > rows:
            raise InvalidDataError(
                f"{path} must hold strips of {rows} equal square images, got one of {strip.shape[:2]} at image {filled}."
            )
        images[filled : filled + count] = strip.reshape(count, side, side, 3).transpose(0, 3, 1, 2)  # (count, 3, side, side)
        filled += count
    if filled != rows:
        raise InvalidDataError(f"{path} must hold one image for each label, got {filled} images for {rows} labels.")
    return images
