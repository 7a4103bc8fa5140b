"""Reads IDX, the format of MNIST and its descendants: a big-endian header (0, 0, type 8 = uint8, axes; the axes' lengths), then the bytes.

Files are read gzip-compressed or raw, from a folder or from EMNIST's official gzip.zip. EMNIST stores its images transposed; they are
turned upright here. Counts are not checked against the official ones: a subset in the same format is a valid set.
"""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np

from sameguard.data.dataset import DataSet, Split, channels_first
from sameguard.data.reading import reading
from sameguard.errors import InvalidDataError

UINT8_TYPE = 8
GZIP_MAGIC = b"\x1f\x8b"
MAX_BYTES = 1 << 32  # the largest official file holds 0.6 GB: a header that claims more is not believed

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMNIST_DIGITS_FILES = (
    "emnist-digits-train-images-idx3-ubyte",
    "emnist-digits-train-labels-idx1-ubyte",
    "emnist-digits-test-images-idx3-ubyte",
    "emnist-digits-test-labels-idx1-ubyte",
)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of one IDX file, compressed or raw.

    Raises DataNotFoundError if there is no such file, InvalidDataError if it is damaged, cut short, too long or of another type.
    """
    with reading(path, "an IDX file"), path.open("rb") as file:
        return _read_stream(file, str(path))


def read_idx_folder(folder: Path, *, name: str, files: tuple[str, ...] = MNIST_FILES, transposed: bool = False) -> DataSet:
    """Training and test part of a ten-class set from its four files (train images, labels, test images, labels), each as `x` or `x.gz`.

    transposed: the images on disk have rows and columns exchanged (EMNIST).

    Raises DataNotFoundError if a file is not there, InvalidDataError if one is damaged or images and labels do not fit together.
    """
    paths = [folder / file if (folder / file).exists() else folder / f"{file}.gz" for file in files]
    with reading(folder, "a folder of IDX files"):
        return _data_set([read_idx(path) for path in paths], name, transposed)


def read_emnist_zip(path: Path, *, name: str = "emnist-digits", files: tuple[str, ...] = EMNIST_DIGITS_FILES) -> DataSet:
    """The digits of EMNIST's official gzip.zip, read in place and turned upright.

    Raises DataNotFoundError if there is no such file, InvalidDataError if it is damaged or has no digits in it.
    """
    with reading(path, "EMNIST's gzip.zip"), zipfile.ZipFile(path) as archive:
        members = {Path(member).name: member for member in archive.namelist()}
        missing = [f"{file}.gz" for file in files if f"{file}.gz" not in members]
        if missing:
            raise InvalidDataError(f"{path} must be EMNIST's gzip.zip, got an archive without {missing[0]}: fetch it again.")
        arrays = []
        for file in files:
            with archive.open(members[f"{file}.gz"]) as member:
                arrays.append(_read_stream(member, f"{path}:{file}.gz"))
        return _data_set(arrays, name, transposed=True)


def _read_stream(stream: io.BufferedReader | zipfile.ZipExtFile, name: str) -> np.ndarray:
    if stream.peek(2)[:2] == GZIP_MAGIC:
        with gzip.open(stream) as unpacked:
            return _parse(unpacked, name)
    return _parse(stream, name)


def _parse(stream: io.BufferedIOBase, name: str) -> np.ndarray:
    """One uint8 array (up to four axes) from an unpacked stream that holds exactly that."""
    zeros, kind, axes = struct.unpack(">HBB", _exactly(stream, 4, name))
    if zeros or kind != UINT8_TYPE or not 1 <= axes <= 4:
        raise InvalidDataError(f"{name} must be an IDX file of uint8 with 1 to 4 axes, got type {kind} and {axes} axes after {zeros:#06x}.")
    shape = struct.unpack(f">{axes}I", _exactly(stream, 4 * axes, name))
    size = int(np.prod([int(side) for side in shape], dtype=object))
    if size > MAX_BYTES:
        raise InvalidDataError(f"{name} must hold at most {MAX_BYTES} bytes, got a header of shape {shape}: it is damaged.")
    array = np.frombuffer(_exactly(stream, size, name), np.uint8).reshape(shape).copy()  # the bytes are read-only
    if stream.read(1):  # for gzip this also reaches the trailing checksum
        raise InvalidDataError(f"{name} must end after {size} values of shape {shape}, got more: it is damaged.")
    return array


def _exactly(stream: io.BufferedIOBase, size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise InvalidDataError(f"{name} must not be cut short, got {len(data)} of {size} bytes: fetch it again.")
    return data


def _data_set(arrays: list[np.ndarray], name: str, transposed: bool) -> DataSet:
    train_images, train_labels, test_images, test_labels = arrays
    return DataSet(name, _split(train_images, train_labels, name, transposed), _split(test_images, test_labels, name, transposed))


def _split(images: np.ndarray, labels: np.ndarray, name: str, transposed: bool) -> Split:
    if images.ndim != 3:
        raise InvalidDataError(f"{name} images must be (n, height, width), got shape {images.shape}: are images and labels exchanged?")
    upright = images.transpose(0, 2, 1) if transposed else images
    return Split(channels_first(upright, f"{name} images"), labels.astype(np.int64), classes=10)
