"""Reads CIFAR-10 and CIFAR-100 in both official versions: binary records, and the Python pickles that most users have on disk.

A binary record is the label (CIFAR-100: coarse, then fine label) followed by 3,072 pixels, channel by channel. The pickles hold the same in
a dict; they are read by an unpickler that never imports or calls anything (see cifar_pickle.py). Labels of CIFAR-100 are the fine ones.
"""

from pathlib import Path

import numpy as np

from sameguard.data.cifar_pickle import read_cifar_pickle
from sameguard.data.dataset import DataSet, Split
from sameguard.data.reading import reading
from sameguard.errors import InvalidDataError

PIXELS = 3 * 32 * 32

CIFAR10_BINARY = (("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"), ("test_batch.bin",))
CIFAR100_BINARY = (("train.bin",), ("test.bin",))
CIFAR10_PICKLES = (("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"), ("test_batch",))
CIFAR100_PICKLES = (("train",), ("test",))


def read_cifar10_binary(folder: Path) -> DataSet:
    """CIFAR-10 from the folder of cifar-10-binary.tar.gz. Raises DataNotFoundError, InvalidDataError."""
    train, test = CIFAR10_BINARY
    return DataSet("cifar10", _binary(folder, train, 1, 10), _binary(folder, test, 1, 10))


def read_cifar100_binary(folder: Path) -> DataSet:
    """CIFAR-100 with its fine labels from the folder of cifar-100-binary.tar.gz. Raises DataNotFoundError, InvalidDataError."""
    train, test = CIFAR100_BINARY
    return DataSet("cifar100", _binary(folder, train, 2, 100), _binary(folder, test, 2, 100))


def read_cifar10_pickles(folder: Path) -> DataSet:
    """CIFAR-10 from the folder of cifar-10-python.tar.gz. Raises DataNotFoundError, InvalidDataError."""
    train, test = CIFAR10_PICKLES
    return DataSet("cifar10", _pickles(folder, train, "labels", 10), _pickles(folder, test, "labels", 10))


def read_cifar100_pickles(folder: Path) -> DataSet:
    """CIFAR-100 with its fine labels from the folder of cifar-100-python.tar.gz. Raises DataNotFoundError, InvalidDataError."""
    train, test = CIFAR100_PICKLES
    return DataSet("cifar100", _pickles(folder, train, "fine_labels", 100), _pickles(folder, test, "fine_labels", 100))


def _binary(folder: Path, files: tuple[str, ...], label_bytes: int, classes: int) -> Split:
    batches = [_records(folder / file, label_bytes) for file in files]
    images = np.concatenate([batch[:, label_bytes:] for batch in batches]).reshape(-1, 3, 32, 32)  # (n, 3, 32, 32)
    labels = np.concatenate([batch[:, label_bytes - 1] for batch in batches]).astype(np.int64)
    with reading(folder, f"CIFAR-{classes} in its binary version"):
        return Split(images, labels, classes)


def _records(path: Path, label_bytes: int) -> np.ndarray:
    with reading(path, "a CIFAR batch"):
        data = np.fromfile(path, np.uint8)
    size = label_bytes + PIXELS
    if not len(data) or len(data) % size:
        raise InvalidDataError(f"{path} must be records of {size} bytes, got {len(data)} bytes: it is cut short or another set.")
    return data.reshape(-1, size)


def _pickles(folder: Path, files: tuple[str, ...], label_key: str, classes: int) -> Split:
    batches = [read_cifar_pickle(folder / file, label_key) for file in files]
    images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)  # (n, 3, 32, 32)
    labels = np.concatenate([batch_labels for _, batch_labels in batches])
    with reading(folder, f"CIFAR-{classes} in its Python version"):
        return Split(images, labels, classes)
