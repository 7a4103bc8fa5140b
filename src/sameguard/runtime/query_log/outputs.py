"""Where scored rows are written: `.parquet`, `.jsonl`, `.csv` or `.npz`, row by row, and in place only once all are there.

The file is for its owner only: scores of many queries tell a thief which of them pass.

What a format has no type for is written as JSON text (lists, objects) or as text (times, decimals). An unknown value is null; in `.csv`
empty; in `.npz` NaN, -1 in columns of truth values, and "" in text.
"""

import base64
import csv
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import orjson

from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.runtime.query_log.parquet import arrow
from sameguard.runtime.query_log.rows import Kind, ScoredRows

GROUP_ROWS, GROUP_BYTES = 16_384, 32 * 2**20  # of a Parquet row group: small ones read slowly, large ones are held in memory
LONGEST_TEXT = 1024  # letters: a text array is as wide as its longest
ROWS_AT_ONCE = 4096


@runtime_checkable
class Output(Protocol):
    """An open file of scored rows."""

    def write(self, rows: ScoredRows) -> None: ...

    def finish(self) -> None:
        """Writes what is left and closes."""
        ...

    def close(self) -> None:
        """Closes, whatever is left."""
        ...


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raises ConfigurationError where `path` has no known suffix, is a directory, or is there and must not be replaced."""
    if path.suffix not in OUTPUTS:
        raise ConfigurationError(f"output must end in {', '.join(OUTPUTS)}, got {path}.")
    if path.is_dir():
        raise ConfigurationError(f"output {path} must be a file, got a directory: name a file in it.")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"output {path} must be new, got a file of that name: choose another, or pass --overwrite.")
    if path.suffix == ".parquet":
        arrow()


@contextmanager
def open_output(path: Path, columns: Mapping[str, Kind], *, overwrite: bool) -> Iterator[Output]:
    """An output that appears under its name when the block ends, whole, and not at all where it raises."""
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    output = None
    try:
        temporary.touch(0o600)  # whoever opens it for writing keeps this mode
        output = OUTPUTS[path.suffix](temporary, columns)
        yield output
        output.finish()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        check_output(path, overwrite=overwrite)  # hours may have passed
        os.replace(temporary, path)
    finally:
        if output is not None:
            output.close()
        temporary.unlink(missing_ok=True)


class JsonLinesOutput:
    """One object a line. It is an Output."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        self.columns = columns
        self.file = path.open("wb")

    def write(self, rows: ScoredRows) -> None:
        for row in _rows(rows, self.columns):
            self.file.write(orjson.dumps(row, default=_as_text) + b"\n")

    def finish(self) -> None:
        self.file.close()

    def close(self) -> None:
        self.file.close()


class CsvOutput:
    """A header and one line for each row; truth values are 1 and 0. It is an Output."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        self.columns = columns
        self.file = path.open("w", encoding="utf-8", newline="")
        self.table = csv.writer(self.file, lineterminator="\n")
        self.table.writerow(columns)

    def write(self, rows: ScoredRows) -> None:
        for row in _rows(rows, self.columns):
            self.table.writerow([int(value) if isinstance(value, bool) else _flat(value) for value in row.values()])

    def finish(self) -> None:
        self.file.close()

    def close(self) -> None:
        self.file.close()


class ParquetOutput:
    """Carried columns of a Parquet log keep their types. It is an Output."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        self.pa, parquet = arrow()
        named = {"bool": self.pa.bool_(), "int": self.pa.int64(), "float": self.pa.float64()}
        types = {name: named.get(kind, self.pa.string()) if isinstance(kind, str) else kind for name, kind in columns.items()}
        self.columns = columns
        self.schema = self.pa.schema(types)
        self.writer = parquet.ParquetWriter(path, self.schema, compression="zstd")
        self._waiting: list[Any] = []

    def write(self, rows: ScoredRows) -> None:
        given = rows.columns()
        self._waiting.append(self.pa.table([self._column(given.get(name), name, len(rows)) for name in self.columns], schema=self.schema))
        if sum(table.num_rows for table in self._waiting) >= GROUP_ROWS or sum(table.nbytes for table in self._waiting) >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        if self._waiting:
            self._flush()
        self.writer.close()

    def close(self) -> None:
        self.writer.close()

    def _flush(self) -> None:
        self.writer.write_table(self.pa.concat_tables(self._waiting))
        self._waiting = []

    def _column(self, column: Any, name: str, rows: int) -> Any:
        if column is None:
            return self.pa.nulls(rows, self.schema.field(name).type)
        if not isinstance(column, list):
            return column
        kind = self.columns[name]
        if kind in ("text", "json"):
            column = [value if value is None or kind == "text" else _json_text(value) for value in column]
        return self.pa.array(column, self.schema.field(name).type)


class ArraysOutput:
    """One array a column. Rows go to a file of lines first: an array's length and type stand before its values. It is an Output."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        self.path = path
        self.columns = columns
        self.lines_path = path.with_name(f"{path.name}.lines")
        self.lines_path.touch(0o600)
        self.lines = self.lines_path.open("w+b")
        self.rows = 0
        self.widest = dict.fromkeys(columns, 1)
        self.incomplete: set[str] = set()

    def write(self, rows: ScoredRows) -> None:
        for row in _rows(rows, self.columns):
            plain = {name: _flat(value) for name, value in row.items()}
            for name, value in plain.items():
                if value is None:
                    self.incomplete.add(name)
                elif isinstance(value, str):
                    self._measure(name, value)
            self.lines.write(orjson.dumps(plain) + b"\n")
            self.rows += 1

    def finish(self) -> None:
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.columns:
                dtype, unknown = self._type(name)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (self.rows,)}
                    np.lib.format.write_array_header_1_0(member, head)
                    for values in self._batches(name, unknown):
                        member.write(np.array(values, dtype).tobytes())
        self.close()

    def close(self) -> None:
        self.lines.close()
        self.lines_path.unlink(missing_ok=True)

    def _measure(self, name: str, text: str) -> None:
        if len(text) > LONGEST_TEXT:
            raise InvalidDataError(
                f"column {name!r} of an .npz must hold texts of at most {LONGEST_TEXT} letters, got {len(text)}: write .parquet or .jsonl."
            )
        self.widest[name] = max(self.widest[name], len(text))

    def _type(self, name: str) -> tuple[np.dtype, Any]:
        """The array's dtype, and what stands for unknown values."""
        kind = self.columns[name]
        if kind == "bool":
            return np.dtype(np.int8), -1
        if kind == "int" and name not in self.incomplete:
            return np.dtype(np.int64), 0
        if kind in ("int", "float"):
            return np.dtype(np.float64), np.nan
        return np.dtype(f"<U{self.widest[name]}"), ""

    def _batches(self, name: str, unknown: Any) -> Iterator[list[Any]]:
        self.lines.seek(0)
        values: list[Any] = []
        for line in self.lines:
            value = orjson.loads(line)[name]
            values.append(unknown if value is None else value)
            if len(values) == ROWS_AT_ONCE:
                yield values
                values = []
        yield values


OUTPUTS: dict[str, Callable[[Path, Mapping[str, Kind]], Output]] = {
    ".parquet": ParquetOutput,
    ".jsonl": JsonLinesOutput,
    ".csv": CsvOutput,
    ".npz": ArraysOutput,
}


def _rows(rows: ScoredRows, columns: Mapping[str, Kind]) -> Iterator[dict[str, Any]]:
    """Each row by column name, in Python values."""
    given = rows.columns()
    lists = [_values(given[name]) if name in given else [None] * len(rows) for name in columns]
    for values in zip(*lists, strict=True):
        yield dict(zip(columns, values, strict=True))


def _values(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # nanoseconds that Python's times cannot hold
        return column.cast(arrow()[0].string()).to_pylist()


def _flat(value: Any) -> Any:
    """What a cell of a table can hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _json_text(value) if isinstance(value, list | dict) else _as_text(value)


def _json_text(value: Any) -> str:
    return orjson.dumps(value, default=_as_text).decode()


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
