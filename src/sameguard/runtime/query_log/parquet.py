"""Logs in Parquet: `inputs` as lists of numbers or little-endian bytes, `probs` as lists; the other columns go along as they are.

Rows are read batch by batch within a row group; a piece never crosses its end, so that any worker can begin there.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.runtime.query_log.rows import INPUTS, PROBS, BadRow, Frame, LoggedRows, Piece, Survey

BUFFER_BYTES = 2**20  # of a column's compressed bytes; without it a row group's column is read whole


class ParquetRows:
    """Reader of `.parquet`. It is a Source. Raises ConfigurationError without pyarrow."""

    def __init__(self, frame: Frame) -> None:
        arrow()
        self.frame = frame
        self._place: tuple[str, int] = ("", 0)
        self._file: Any = None
        self._batches: Iterator[Any] = iter(())
        self._left: Any = None
        self._next_row = 0

    def survey(self, path: str, batch_rows: int) -> Survey:
        with _opened(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        _check(path, schema)
        pieces, first = [], 0
        for group, rows in enumerate(groups):
            for start in range(0, rows, batch_rows):
                pieces.append(Piece(path, first + start, min(batch_rows, rows - start), start, group))
            first += rows
        answers = _answers(schema)
        return Survey(first, pieces, {field.name: field.type for field in schema if field.name not in (INPUTS, answers)})

    def read(self, piece: Piece) -> LoggedRows:
        table = self._rows(piece)
        answers = _answers(table.schema)
        inputs = [self._input(value) for value in table[INPUTS]]
        probs = [None] * len(inputs) if answers is None else [self._probs(value) for value in table[answers]]
        carried = {name: table[name].combine_chunks() for name in table.column_names if name not in (INPUTS, answers)}
        return LoggedRows(inputs, probs, carried)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._place, self._left, self._next_row = None, ("", 0), None, 0

    def _rows(self, piece: Piece) -> Any:
        pa, _ = arrow()
        if self._place != (piece.path, piece.group) or self._next_row > piece.at or self._file is None:
            self.close()
            self._file = _opened(piece.path)
            self._batches = self._file.iter_batches(batch_size=piece.rows, row_groups=[piece.group])
            self._place = (piece.path, piece.group)
        try:
            self._take(piece.at - self._next_row)  # between this piece and the last one that was read here
            parts = self._take(piece.rows)
        except (pa.ArrowException, OSError) as error:
            raise InvalidDataError(f"{piece.path} must be readable Parquet, got {type(error).__name__}: {error}") from error
        return pa.Table.from_batches(parts)

    def _take(self, rows: int) -> list[Any]:
        """The next rows of the row group."""
        taken = []
        while rows:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                raise InvalidDataError(
                    f"{self._place[0]} must hold the rows that it names, got {rows} fewer in row group {self._place[1]}."
                )
            taken.append(batch.slice(0, rows))
            self._left = batch.slice(rows) if batch.num_rows > rows else None
            rows -= taken[-1].num_rows
            self._next_row += taken[-1].num_rows
        return taken

    def _input(self, value: Any) -> np.ndarray | BadRow:
        if not value.is_valid:
            return BadRow("row must have inputs, got none.")
        if hasattr(value, "as_buffer"):
            dtype = np.dtype("u1" if self.frame.datatype == "UINT8" else "<f4")
            content = value.as_buffer()
            if len(content) % dtype.itemsize:
                return BadRow(f"inputs must be bytes of {self.frame.datatype}, got {len(content)} of them.")
            return self.frame.input_from_array(np.frombuffer(content, dtype))
        return self.frame.input_from_array(value.values.to_numpy(zero_copy_only=False))

    def _probs(self, value: Any) -> np.ndarray | BadRow | None:
        if not value.is_valid:
            return None
        if hasattr(value, "values"):
            return self.frame.probs_from_array(value.values.to_numpy(zero_copy_only=False))
        return self.frame.probs_from_json(value.as_py())


def arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises ConfigurationError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigurationError("Parquet needs pyarrow, which is not installed: pip install 'sameguard[parquet]'.") from error
    return pyarrow, pyarrow.parquet


def _opened(path: str) -> Any:
    pa, parquet = arrow()
    try:
        return parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise InvalidDataError(f"{path} must be readable Parquet, got {type(error).__name__}: {error}") from error


def _answers(schema: Any) -> str | None:
    return next((name for name in PROBS if name in schema.names), None)


def _check(path: str, schema: Any) -> None:
    """Raises InvalidDataError where the columns are not a log's."""
    pa, _ = arrow()
    types = pa.types
    if INPUTS not in schema.names:
        raise InvalidDataError(f"{path} must have a column {INPUTS}, got {', '.join(schema.names) or 'none'}.")
    given = schema.field(INPUTS).type
    listed = types.is_list(given) or types.is_large_list(given) or types.is_fixed_size_list(given)
    numbers = listed and (types.is_floating(given.value_type) or types.is_integer(given.value_type))
    if not numbers and not types.is_binary(given) and not types.is_large_binary(given) and not types.is_fixed_size_binary(given):
        raise InvalidDataError(f"{path} column {INPUTS} must be a list of numbers or binary, got {given}.")
