"""Logs of one JSON object a line: `inputs`, `probs`, and whatever else, which is carried along.

A line that is no such object is a bad row, not the end of the log. Blank lines are no rows.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from sameguard.errors import InvalidDataError
from sameguard.runtime.query_log.rows import INPUTS, PROBS, BadRow, Frame, LoggedRows, Piece, Survey, joined_kind, kind_of

LINE_BYTES = 64 * 2**20  # a longer line is another kind of file, and would be held in memory whole


class JsonLines:
    """Reader of `.jsonl`. It is a Source."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def survey(self, path: str, batch_rows: int) -> Survey:
        starts: list[int] = []
        rows = 0
        columns: dict[str, Any] = {}
        for at, line in _lines(path, 0):
            if rows % batch_rows == 0:
                starts.append(at)
            rows += 1
            for name, value in _parts(line)[2].items():
                columns[name] = joined_kind(name, columns.get(name), kind_of(value))
        pieces = [Piece(path, index * batch_rows, min(batch_rows, rows - index * batch_rows), at) for index, at in enumerate(starts)]
        return Survey(rows, pieces, {name: kind or "json" for name, kind in columns.items()})

    def read(self, piece: Piece) -> LoggedRows:
        inputs, probs, rest = [], [], []
        for _, line in _lines(piece.path, piece.at):
            logged, answer, others = _parts(line)
            inputs.append(logged if isinstance(logged, BadRow) else self.frame.input_from_json(logged))
            probs.append(self.frame.probs_from_json(answer))
            rest.append(others)
            if len(inputs) == piece.rows:
                break
        names = dict.fromkeys(name for others in rest for name in others)
        return LoggedRows(inputs, probs, {name: [others.get(name) for others in rest] for name in names})

    def close(self) -> None:
        """Nothing is kept open."""


def _lines(path: str, at: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with the byte at which each begins."""
    with open(path, "rb") as file:
        file.seek(at)
        while line := file.readline(LINE_BYTES + 1):
            if len(line) > LINE_BYTES:
                raise InvalidDataError(f"{path} must hold one JSON object a line, got a line of more than {LINE_BYTES} bytes at byte {at}.")
            if not line.isspace():
                yield at, line
            at += len(line)


def _parts(line: bytes) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs, answer and the rest of one line."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadRow(f"line must be strict JSON, got {error}."), None, {}
    if not isinstance(document, dict):
        return BadRow(f"line must be a JSON object, got {type(document).__name__}."), None, {}
    answer = next((name for name in PROBS if name in document), None)
    return document.pop(INPUTS, None), document.pop(answer, None), document
