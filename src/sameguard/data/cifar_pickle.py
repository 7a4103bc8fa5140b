"""Reads one CIFAR batch from a pickle without trusting it.

A pickle is a program: it may name any importable callable and call it. This unpickler knows four names, those of a pickled numpy array,
and answers each with an inert stand-in of its own; numpy's own reconstruction, which trusts its arguments, is never reached. Any other
name ends the reading. The array is built afterwards from plain bytes whose length must fit the shape.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sameguard.data.reading import reading
from sameguard.errors import InvalidDataError

PIXELS = 3 * 32 * 32


def read_cifar_pickle(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, 3072) and labels int64 (n,) of one batch file. label_key: "labels", or "fine_labels" for CIFAR-100.

    Raises DataNotFoundError if there is no such file, InvalidDataError if it is damaged, holds something else, or names any other callable.
    """
    with reading(path, "a pickled CIFAR batch"), path.open("rb") as file:
        try:
            batch = _ArrayUnpickler(file, path).load()
        except (TypeError, AttributeError, ImportError) as error:  # opcodes applied to what they do not fit
            raise pickle.UnpicklingError(str(error)) from error
        if not isinstance(batch, dict):
            raise InvalidDataError(f"{path} must hold a dict, got {type(batch).__name__}: it is not a CIFAR batch.")
        batch = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        for key in ("data", label_key):
            if key not in batch:
                raise InvalidDataError(f"{path} must hold {key!r}, got {sorted(map(str, batch))}: it is another set or version.")
        pixels, labels = batch["data"], batch[label_key]
        if not isinstance(pixels, _PickledArray):
            raise InvalidDataError(f"{path} must hold 'data' as an array, got {type(pixels).__name__}: it is not a CIFAR batch.")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise InvalidDataError(f"{path} must hold {label_key!r} as a list of integers, got {type(labels).__name__}.")
        return pixels.pixels(path), np.array(labels, np.int64)


class _PickledDtype:
    """Stands in for numpy.dtype: keeps the type code, ignores the state."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _PickledArray:
    """Stands in for the array that numpy's _reconstruct returns: keeps the state that follows."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self, path: Path) -> np.ndarray:
        """The state's bytes as uint8 (n, 3072)."""
        match self.state:
            case (int(), (int(rows), 3072), _PickledDtype(code=("u1" | b"u1")), fortran, bytes(data)) if len(data) == rows * PIXELS:
                return np.frombuffer(data, np.uint8).reshape((rows, PIXELS), order="F" if fortran else "C")
        raise InvalidDataError(f"{path} must hold 'data' as uint8 (n, {PIXELS}), got another type, shape or length: it is damaged.")


def _encode(text: Any, codec: Any) -> bytes:
    """Stands in for _codecs.encode, by which old protocols store bytes: Latin-1 and no other codec."""
    if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes must be stored as latin1, got {codec!r}")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _PickledDtype,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InvalidDataError(
                f"{self._path} must name nothing but numpy arrays, got {module}.{name}: it is not a CIFAR batch; do not load it elsewhere."
            )
        return ALLOWED[module, name]
