"""Reads the official tiny-imagenet-200 folder: 200 classes of 64x64 JPEG files, reduced to 32x32 unless told otherwise.

Classes are numbered by sorted WordNet id (the names of the folders in train/). The test part is the official validation set, whose labels
stand in val_annotations.txt: the labels of the official test set were never published. 1.8 % of the files are grey and become RGB.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from sameguard.data.dataset import DataSet, Split
from sameguard.data.reading import reading
from sameguard.errors import ConfigurationError, InvalidDataError


def read_tiny_imagenet(folder: Path, *, size: int = 32) -> DataSet:
    """Training and validation part as uint8 (n, 3, size, size), reduced with Pillow's antialiased Lanczos filter.

    Raises ConfigurationError unless size is positive, DataNotFoundError if a file is not there, InvalidDataError if one is damaged.
    """
    if size < 1:
        raise ConfigurationError(f"size must be at least 1 pixel, got {size}.")
    with reading(folder, "the tiny-imagenet-200 folder"):
        wnids = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
        train = [(path, label) for label, wnid in enumerate(wnids) for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))]
        test = _validation_files(folder / "val", {wnid: label for label, wnid in enumerate(wnids)})
    if not train or not test:
        raise InvalidDataError(f"{folder} must hold training and validation images, got {len(train)} and {len(test)}: unpack it again.")
    return DataSet("tiny-imagenet", _read(train, len(wnids), size), _read(test, len(wnids), size))


def _validation_files(folder: Path, label_of: dict[str, int]) -> list[tuple[Path, int]]:
    """Path and label of each line of val_annotations.txt: file name, WordNet id, then a box that is not used, tab-separated."""
    annotations = folder / "val_annotations.txt"
    files = []
    with reading(annotations, "the validation set's annotations"):
        for number, line in enumerate(annotations.read_text(encoding="ascii").splitlines(), start=1):
            fields = line.split("\t")
            if len(fields) < 2 or fields[1] not in label_of or Path(fields[0]).name != fields[0]:
                raise InvalidDataError(f"{annotations} line {number} must be a file name and a known WordNet id, got {line[:80]!r}.")
            files.append((folder / "images" / fields[0], label_of[fields[1]]))
    return files


def _read(files: list[tuple[Path, int]], classes: int, size: int) -> Split:
    images = np.empty((len(files), 3, size, size), np.uint8)
    for row, (path, _) in enumerate(files):
        with reading(path, "an image"), Image.open(path) as image:
            rgb = image.convert("RGB")
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
            images[row] = np.asarray(rgb).transpose(2, 0, 1)  # (3, size, size)
    return Split(images, np.array([label for _, label in files], np.int64), classes)
