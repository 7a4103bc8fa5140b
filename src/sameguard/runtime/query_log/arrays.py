"""Logs in one `.npz`: `inputs` (rows, ...), `victim_probs` (rows, classes) or (rows,) labels; one-dimensional arrays of as many rows go along.

The archive's members are read side by side, row by row, so that a log larger than memory can be scored: `np.load` would read each whole.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from sameguard.errors import InvalidDataError
from sameguard.runtime.query_log.rows import INPUTS, PROBS, Frame, LoggedRows, Piece, Survey

DAMAGE = (ValueError, EOFError, LookupError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)
KINDS = {"b": "bool", "i": "int", "f": "float", "U": "text", "S": "text"}


class _Member(NamedTuple):
    """Header of one array. shape: rows first."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class _Open:
    """One member being read, from its first row on."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.file = archive.open(f"{name}.npy")
        self.member = _header(self.file)
        self.next_row = 0

    def rows(self, start: int, count: int) -> np.ndarray:
        self._read((start - self.next_row) * self.member.row_bytes)
        content = self._read(count * self.member.row_bytes)
        self.next_row = start + count
        return np.frombuffer(content, self.member.dtype).reshape(count, *self.member.shape[1:])

    def _read(self, size: int) -> bytes:
        """The next bytes; those that are skipped in steps of what a batch may hold."""
        content = self.file.read(size)
        if len(content) != size:
            raise EOFError(f"array ends {size - len(content)} bytes early")
        return content


class Arrays:
    """Reader of `.npz`. It is a Source."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._path = ""
        self._archive: zipfile.ZipFile | None = None
        self._open: dict[str, _Open] = {}

    def survey(self, path: str, batch_rows: int) -> Survey:
        with _reading(path), zipfile.ZipFile(path) as archive:
            members = _members(archive)
        rows = self._check(path, members)
        pieces = [Piece(path, start, min(batch_rows, rows - start), start) for start in range(0, rows, batch_rows)]
        carried = {name: KINDS.get(member.dtype.kind, "json") for name, member in members.items() if _goes_along(name, member, rows)}
        return Survey(rows, pieces, carried)

    def read(self, piece: Piece) -> LoggedRows:
        with _reading(piece.path):
            self._place(piece)
            found = {name: member.rows(piece.at, piece.rows) for name, member in self._open.items()}
        inputs = [self.frame.input_from_array(row) for row in found.pop(INPUTS)]
        answers = next((found.pop(name) for name in PROBS if name in found), None)
        if answers is None:
            return LoggedRows(inputs, [None] * len(inputs), _columns(found))
        read = self.frame.probs_from_array if answers.ndim == 2 else lambda label: self.frame.probs_from_label(int(label))
        return LoggedRows(inputs, [read(answer) for answer in answers], _columns(found))

    def close(self) -> None:
        for member in self._open.values():
            member.file.close()
        if self._archive is not None:
            self._archive.close()
        self._path, self._archive, self._open = "", None, {}

    def _place(self, piece: Piece) -> None:
        """Opens the members anew where another file, or an earlier row of this one, is wanted."""
        if self._path == piece.path and all(member.next_row <= piece.at for member in self._open.values()):
            return
        self.close()
        self._archive = zipfile.ZipFile(piece.path)
        self._path = piece.path
        members = _members(self._archive)
        rows = members[INPUTS].shape[0]
        answers = next((name for name in PROBS if name in members), None)
        for name, member in members.items():
            if name in (INPUTS, answers) or _goes_along(name, member, rows):
                self._open[name] = _Open(self._archive, name)

    def _check(self, path: str, members: dict[str, _Member]) -> int:
        """Number of rows. Raises InvalidDataError where the arrays are not a log of this model."""
        if INPUTS not in members:
            raise InvalidDataError(f"{path} must hold an array {INPUTS}, got {', '.join(members) or 'nothing'}.")
        inputs = members[INPUTS]
        values, wanted = math.prod(inputs.shape[1:]), math.prod(self.frame.shape)
        dtypes = "u" if self.frame.datatype == "UINT8" else "fiu"
        if len(inputs.shape) < 2 or values != wanted or inputs.dtype.kind not in dtypes:
            raise InvalidDataError(
                f"{path} {INPUTS} must be (rows, {', '.join(map(str, self.frame.shape))}) of {self.frame.datatype}, got {inputs.shape} of "
                f"{inputs.dtype.name}: is it the log of another model, or canonical (--canonical)?"
            )
        if inputs.shape[1:] not in (self.frame.shape, (wanted,)):
            raise InvalidDataError(f"{path} {INPUTS} must have rows of shape {self.frame.shape} or flat ones, got {inputs.shape[1:]}.")
        answers = next((name for name in PROBS if name in members), None)
        if answers is not None:
            shape, kind = members[answers].shape, members[answers].dtype.kind
            label = self.frame.labels and shape == inputs.shape[:1] and kind in "iu"
            if not label and (shape != (inputs.shape[0], self.frame.classes) or kind not in "fiu"):
                raise InvalidDataError(f"{path} {answers} must be ({inputs.shape[0]}, {self.frame.classes}) numbers, got {shape}.")
        for name in (INPUTS, answers):
            if name is not None and members[name].fortran and len(members[name].shape) > 1:
                raise InvalidDataError(f"{path} {name} must lie row by row, got column order: save np.ascontiguousarray({name}).")
        return inputs.shape[0]


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except InvalidDataError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidDataError(f"{path} must be an .npz of arrays, got a damaged or foreign file ({reason}).") from error


def _members(archive: zipfile.ZipFile) -> dict[str, _Member]:
    found = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as file:
                found[name.removesuffix(".npy")] = _header(file)
    return found


def _header(file: io.BufferedIOBase) -> _Member:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    member = _Member(*read(file))
    if member.dtype.hasobject:
        raise ValueError("an array of Python objects, which are not unpickled")
    return member


def _goes_along(name: str, member: _Member, rows: int) -> bool:
    return name != INPUTS and name not in PROBS and member.shape == (rows,)


def _columns(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Python values; what JSON and tables have no type for, as text."""
    return {
        name: [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in array.tolist()]
        if array.dtype.kind in "biufUS"
        else array.astype(str).tolist()
        for name, array in found.items()
    }
