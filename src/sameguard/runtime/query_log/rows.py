"""What travels between reader, scorer and writer: pieces of a log, their rows as recorded, their rows with scores.

Columns that the scorer does not know (id, time ...) are carried along untouched: lists of Python values, or Arrow arrays where the log is
Parquet. Their kinds are gathered before anything is scored, because a table's columns must be known when its first row is written.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sameguard.contract import InputContract
from sameguard.errors import InvalidDataError, SameguardError
from sameguard.protocol.errors import InvalidRequestError, shown
from sameguard.protocol.tensors import array_from_json

INPUTS = "inputs"
PROBS = ("probs", "victim_probs")  # the first of these that is there
FIELDS = {  # what scoring adds to a row, in this order, around the carried columns
    "row": "int",
    "stage_a_score": "float",
    "score": "float",
    "flagged": "bool",
    "p_value": "float",
    "stages": "text",
    "error": "text",
}
Kind = Any  # bool, int, float, text, json; an Arrow type where the log is Parquet


class LogScoringError(SameguardError, RuntimeError):
    """Scoring a log could not be finished."""


@dataclass(frozen=True)
class Piece:
    """Rows that lie together in one file. at: byte (JSON lines) or row (others) at which they begin, in `group` of a Parquet file."""

    path: str
    first_row: int
    rows: int
    at: int
    group: int = 0


@dataclass(frozen=True)
class Survey:
    """What a file holds. columns: name -> kind of what is carried along."""

    rows: int
    pieces: list[Piece]
    columns: dict[str, Kind]


@dataclass(frozen=True)
class BadRow:
    """In place of an input or answer that cannot be used."""

    reason: str


@dataclass(frozen=True, eq=False)
class LoggedRows:
    """inputs: one array each, shaped as recorded. probs: one array each, None where no answer was recorded. carried: name -> column."""

    inputs: list[np.ndarray | BadRow]
    probs: list[np.ndarray | BadRow | None]
    carried: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Rows of one piece with what was found, NaN where nothing was. stages: "A", "A+B", or "" for a bad row; errors: its reason."""

    first_row: int
    stage_a_scores: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray
    p_values: np.ndarray
    stages: list[str]
    errors: list[str]
    carried: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.stages)

    def columns(self) -> dict[str, Any]:
        """Output name -> column; None is what is unknown."""
        good = [not error for error in self.errors]
        found = {
            "row": list(range(self.first_row, self.first_row + len(self))),
            "stage_a_score": _known(self.stage_a_scores),
            "score": _known(self.scores),
            "flagged": [bool(flag) if fine else None for flag, fine in zip(self.flagged, good, strict=True)],
            "p_value": _known(self.p_values),
            "stages": [stage or None for stage in self.stages],
            "error": [error or None for error in self.errors],
        }
        names = output_names(self.carried)
        return {"row": found.pop("row"), **{names[name]: column for name, column in self.carried.items()}, **found}


def output_names(carried: Iterable[str]) -> dict[str, str]:
    """Carried name -> its name in the output: one that scoring itself writes, as in a log of an earlier run, gets `logged_` in front."""
    taken = set(carried)
    names = {}
    for name in taken:
        chosen = name
        while chosen in FIELDS or (chosen != name and chosen in taken):
            chosen = f"logged_{chosen}"
        names[name] = chosen
    return names


def output_columns(carried: Mapping[str, Kind]) -> dict[str, Kind]:
    """Name -> kind of every column that is written, in order."""
    names = output_names(carried)
    added = {name: kind for name, kind in FIELDS.items() if name != "row"}
    return {"row": FIELDS["row"], **{names[name]: kind for name, kind in carried.items()}, **added}


def _known(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


@dataclass(frozen=True)
class Frame:
    """What a recorded row must be: shape and datatype of its input, number of classes, and whether an answer may be a single label."""

    shape: tuple[int, ...]
    datatype: str
    classes: int
    labels: bool = False

    @classmethod
    def of(cls, contract: InputContract, classes: int, *, canonical: bool, labels: bool) -> "Frame":
        if canonical:
            return cls(contract.shape, "FP32", classes, labels)
        return cls(contract.raw_shape, contract.dtype, classes, labels)

    def input_from_json(self, value: Any) -> np.ndarray | BadRow:
        """An input from a list, nested or flat."""
        return self._read("inputs", value, self.shape, self.datatype)

    def probs_from_json(self, value: Any) -> np.ndarray | BadRow | None:
        """An answer from a list of probabilities; from one label where the victim gives no more."""
        if value is None:
            return None
        if self.labels and type(value) is int:
            return self.probs_from_label(value)
        return self._read("probs", value, (self.classes,), "FP64")

    def probs_from_label(self, label: int) -> np.ndarray | BadRow:
        if not 0 <= label < self.classes:
            return BadRow(f"probs must be a label in [0, {self.classes}), got {label}.")
        return np.eye(self.classes)[label]

    def input_from_array(self, values: np.ndarray) -> np.ndarray | BadRow:
        """An input from numbers in row-major order, which must fit the datatype exactly."""
        if values.size != np.prod(self.shape, dtype=int) or values.dtype.kind not in "fiu":
            return BadRow(f"inputs must be {np.prod(self.shape, dtype=int)} numbers, got {values.size} of {values.dtype.name}.")
        if self.datatype == "UINT8" and values.dtype != np.uint8:
            if not ((values >= 0) & (values <= 255) & (values == np.rint(values))).all():
                return BadRow("inputs of datatype UINT8 must be whole numbers in [0, 255], got another.")
            values = values.astype(np.uint8)
        if self.datatype == "FP32" and values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        return values.reshape(self.shape)

    def probs_from_array(self, values: np.ndarray) -> np.ndarray | BadRow:
        if values.shape != (self.classes,) or values.dtype.kind not in "fiu":
            return BadRow(f"probs must be {self.classes} numbers, got {values.size} of {values.dtype.name}.")
        return values.astype(np.float64)

    def _read(self, name: str, value: Any, shape: tuple[int, ...], datatype: str) -> np.ndarray | BadRow:
        if value is None:
            return BadRow(f"row must have {name}, got none.")
        try:
            return array_from_json(value, shape, datatype)
        except InvalidRequestError as error:
            return BadRow(f"{name}: {error}")


@runtime_checkable
class Source(Protocol):
    """Files of one format. Raises InvalidDataError for a file that is not of that format; bad rows are part of what it reads."""

    def survey(self, path: str, batch_rows: int) -> Survey: ...

    def read(self, piece: Piece) -> LoggedRows: ...

    def close(self) -> None: ...


def merged(surveys: list[Survey]) -> Survey:
    """The files as one log, rows numbered on. Raises InvalidDataError where a column's kinds cannot be joined."""
    rows, pieces, columns = 0, [], {}
    for survey in surveys:
        pieces += [dataclasses.replace(piece, first_row=piece.first_row + rows) for piece in survey.pieces]
        rows += survey.rows
        for name, kind in survey.columns.items():
            columns[name] = joined_kind(name, columns.get(name), kind)
    return Survey(rows, pieces, columns)


def kind_of(value: Any) -> str | None:
    """Kind of a JSON value; None where it says nothing."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "json"
    return {bool: "bool", int: "int", float: "float", str: "text"}.get(type(value), "json")


def joined_kind(name: str, first: Kind, second: Kind) -> Kind:
    """The kind that holds both; JSON text holds everything but Arrow's types."""
    if first is None or second is None or first == second:
        return second if first is None else first
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidDataError(f"column {shown(name)} must have one type in all files, got {first} and {second}: score them one by one.")
    return "float" if {first, second} == {"int", "float"} else "json"
