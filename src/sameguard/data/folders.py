"""Reads what users bring themselves: a folder of images, or one .npz of arrays.

A class is a sub-folder, numbered by sorted name; images straight in the folder have no labels. An .npz may use our words (`inputs`,
`labels`), those of the packs (`train_images`, `train_labels`, `test_images`, `test_labels`) or Keras's (`x_train`, `y_train`, `x_test`,
`y_test`). Nothing is pickled.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sameguard.data.dataset import DataSet, Split, channels_first, int64_labels
from sameguard.data.reading import open_npz, reading
from sameguard.errors import ConfigurationError, DataNotFoundError, InvalidDataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L"}
COLOUR_MODES = {"RGB", "RGBA", "P", "LA", "PA", "CMYK", "YCbCr"}  # 16-bit and float images are refused: scaling them would be a guess

TRAIN_KEYS = (("inputs", "labels"), ("train_inputs", "train_labels"), ("train_images", "train_labels"), ("x_train", "y_train"))
TEST_KEYS = (("test_inputs", "test_labels"), ("test_images", "test_labels"), ("x_test", "y_test"))


class ImageFolder(NamedTuple):
    """The images, and the class names by label; none where the images lie straight in the folder."""

    split: Split
    class_names: tuple[str, ...]


def read_image_folder(folder: str | Path, *, size: int | None = None) -> ImageFolder:
    """All images in folder/<class>/, or without labels straight in folder, as uint8 (n, C, H, W): one channel if all are grey, else three.

    size: resize every image to size x size with Pillow's antialiased Lanczos filter; without it all must have one size.

    Raises DataNotFoundError if there is no folder or image, InvalidDataError if an image is damaged or differs in size, or if some images
    lie in class folders and others beside them.
    """
    if size is not None and size < 1:
        raise ConfigurationError(f"size must be at least 1 pixel, got {size}.")
    root = Path(folder)
    if not root.is_dir():
        raise DataNotFoundError(f"image folder must exist, but there is no folder {root.absolute()}.")
    class_names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    files = [(path, label) for label, name in enumerate(class_names) for path in _image_files(root / name)]
    loose = _image_files(root)
    if files and loose:
        raise InvalidDataError(
            f"image folder {root.absolute()} must have all images in class folders or none, got {len(loose)} beside them: move these."
        )
    if not files and not loose:
        raise DataNotFoundError(
            f"image folder {root.absolute()} must hold images, in one sub-folder per class or straight in it, got none "
            f"in {len(class_names)} sub-folders."
        )
    labelled = bool(files)
    files = files or [(path, -1) for path in loose]
    grey, width, height = _common_form([path for path, _ in files], size)
    images = np.empty((len(files), 1 if grey else 3, height, width), np.uint8)
    for row, (path, _) in enumerate(files):
        with reading(path, "an image"), Image.open(path) as image:
            converted = image.convert("L" if grey else "RGB")
            if size is not None and converted.size != (size, size):
                converted = converted.resize((size, size), Image.Resampling.LANCZOS)
            images[row] = np.asarray(converted).reshape(height, width, -1).transpose(2, 0, 1)  # (channels, height, width)
    if not labelled:
        return ImageFolder(Split(images, None, 0), ())
    return ImageFolder(Split(images, np.array([label for _, label in files], np.int64), len(class_names)), class_names)


def read_arrays(path: str | Path, *, classes: int | None = None) -> DataSet:
    """The training and test part of an .npz; `inputs` and `labels` count as training. Labels may be missing.

    Images: uint8, or floats in [0, 1], as (n, height, width), (n, height, width, channels) or (n, channels, height, width). Vectors: floats
    (n, features). classes: by default the highest label + 1.

    Raises DataNotFoundError if there is no such file, InvalidDataError if it is damaged or holds anything else.
    """
    file = Path(path)
    with reading(file, "an .npz of arrays"), open_npz(file) as arrays:
        parts = [_named_part(arrays, keys, file) for keys in (TRAIN_KEYS, TEST_KEYS)]
    if all(part is None for part in parts):
        known = ", ".join(inputs for inputs, _ in (*TRAIN_KEYS, *TEST_KEYS))
        raise InvalidDataError(f"{file} must hold one of {known}, got {', '.join(arrays.files) or 'nothing'}: rename the arrays.")
    if classes is None:
        labelled = [part[1] for part in parts if part is not None and part[1] is not None and len(part[1])]
        classes = max((int(labels.max()) + 1 for labels in labelled), default=0)
    with reading(file, "an .npz of arrays"):
        return DataSet(file.stem, *(None if part is None else Split(*part, classes) for part in parts))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _common_form(paths: list[Path], size: int | None) -> tuple[bool, int, int]:
    """Whether all images are grey, and their common width and height; reads the heads of the files only."""
    modes, first = set(), None
    for path in paths:
        with reading(path, "an image"), Image.open(path) as image:
            if image.mode not in GREY_MODES | COLOUR_MODES:
                raise InvalidDataError(f"{path} must have 8 bits per channel, got mode {image.mode}: convert it first.")
            modes.add(image.mode)
            first = first or (path, image.size)
            if size is None and image.size != first[1]:
                raise InvalidDataError(
                    f"{path} must have the size of {first[0].name}, {first[1][0]}x{first[1][1]}, got {image.size[0]}x{image.size[1]}: "
                    "give a size to resize them all."
                )
    width, height = (size, size) if size is not None else first[1]
    return modes <= GREY_MODES, width, height


def _named_part(arrays: np.lib.npyio.NpzFile, keys: tuple[tuple[str, str], ...], file: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Raw inputs and labels under the pair of names that is there. Raises InvalidDataError where two are: one would be left out in silence."""
    present = [pair for pair in keys if pair[0] in arrays.files]
    if not present:
        return None
    if len(present) > 1:
        found = " and ".join(inputs for inputs, _ in present)
        raise InvalidDataError(f"{file} must name the inputs of a part once, got {found}: leave one of them out.")
    ((inputs_key, labels_key),) = present
    labels = int64_labels(arrays[labels_key], f"{file} {labels_key}") if labels_key in arrays.files else None
    return _as_raw(arrays[inputs_key], f"{file} {inputs_key}"), labels


def _as_raw(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InvalidDataError(f"{name} must be uint8 pixels or floats, got {array.dtype}: convert it with .astype(np.float32).")
    if array.ndim != 2:
        array = channels_first(array, name)
    elif array.dtype == np.uint8:
        raise InvalidDataError(f"{name} must be floats where inputs are vectors, got uint8 of shape {array.shape}: reshape flat images.")
    if len(array) == 0:
        raise InvalidDataError(f"{name} must hold at least one row, got 0.")
    if array.dtype == np.uint8:
        return array
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and Split refuses it
        return array.astype(np.float32)
