"""A request's rows cut in two, and the answers put together again, by whoever knows no model contract: the client-proxy.

Told by the path, it reads the Open Inference Protocol (JSON and binary tensors) and TF Serving; of plain JSON nobody can tell where the rows
are. Whatever is not plainly a batch is none: every input has to have as many rows, every output as many as were asked.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sameguard.protocol import Limits, WireError, inflate, read_headers
from sameguard.protocol.headers import HEADER_LENGTH, json_part_length
from sameguard.protocol.json_reading import read_json, write_json

OPEN_INFERENCE = re.compile(r"(/[^/?]+)*/v2/models/[^/?]+(/versions/[^/?]+)?/infer")
TF_SERVING = re.compile(r"(/[^/?]+)*/v1/models/[^/?]+(/(versions|labels)/[^/?]+)?:predict")
OF_THE_BODY = frozenset({"content-type", "content-encoding", "content-length", "accept-encoding", "guard-proof", HEADER_LENGTH})
UNREADABLE = (WireError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

Pairs = list[tuple[str, str]]


class Content(NamedTuple):
    """A body as its JSON part and the tensors behind it; None where there is no such part."""

    document: Any
    tail: bytes | None

    @classmethod
    def read(cls, headers: Iterable[tuple[str, str]], body: bytes, most_bytes: int) -> "Content":
        """Raises WireError."""
        named = read_headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
        body = inflate(body, named.get("content-encoding", ""), Limits(most_bytes))
        length = json_part_length(named, len(body))
        return cls(read_json(body if length is None else body[:length]), None if length is None else body[length:])

    def written(self) -> tuple[Pairs, bytes]:
        """Headers that describe the body, and the body."""
        text = write_json(self.document)
        if self.tail is None:
            return [("content-type", "application/json")], text
        return [("content-type", "application/octet-stream"), (HEADER_LENGTH, str(len(text)))], text + self.tail


@dataclass(frozen=True)
class Batch:
    """A request of several rows. headers: of the message, without those that describe its body."""

    path: str
    rows: int
    headers: Pairs
    content: Content

    @classmethod
    def read(cls, path: str, headers: Iterable[tuple[str, str]], body: bytes, most_bytes: int) -> "Batch | None":
        """None where it is not one that can be cut: a single row, another dialect, or not understood."""
        headers = list(headers)
        try:
            if OPEN_INFERENCE.fullmatch(path):
                content = Content.read(headers, body, most_bytes)
                rows = _rows_of_tensors(content)
            elif TF_SERVING.fullmatch(path):
                content = Content.read(headers, body, most_bytes)
                rows = _rows_of_columns(_request_columns(content.document))
            else:
                return None
        except UNREADABLE:
            return None
        kept = [(name, value) for name, value in headers if name.lower() not in OF_THE_BODY]
        return cls(path, rows, [*kept, ("accept-encoding", "identity")], content) if rows > 1 else None

    def halves(self) -> "tuple[Batch, Batch]":
        middle = self.rows // 2
        return self._cut(0, middle), self._cut(middle, self.rows)

    def message(self) -> tuple[Pairs, bytes]:
        """Headers and body to send."""
        own, body = self.content.written()
        return [*self.headers, *own], body

    def joined(self, answers: list[tuple[Iterable[tuple[str, str]], bytes]], most_bytes: int) -> tuple[Pairs, bytes] | None:
        """One answer from those to the halves: headers that describe its body, and the body. None where they cannot be one."""
        try:
            first, second = (Content.read(headers, body, most_bytes) for headers, body in answers)
            rows = (self.rows // 2, self.rows - self.rows // 2)
            if OPEN_INFERENCE.fullmatch(self.path):
                return _joined_tensors(first, second, rows).written()
            return Content(_joined_columns(first.document, second.document, rows), None).written()
        except UNREADABLE:
            return None

    def _cut(self, start: int, stop: int) -> "Batch":
        of_tensors = OPEN_INFERENCE.fullmatch(self.path) is not None
        content = _cut_tensors(self.content, self.rows, start, stop) if of_tensors else _cut_columns(self.content, start, stop)
        return Batch(self.path, stop - start, self.headers, content)


# ---------------------------------------------------------------------- Open Inference Protocol


def _rows_of_tensors(content: Content) -> int:
    """Raises one of UNREADABLE where the inputs are not one batch, each as long as its shape says."""
    tensors = content.document["inputs"]
    (rows,) = {tensor["shape"][0] for tensor in tensors}
    lengths = [_size(tensor, content.tail) for tensor in tensors]
    if type(rows) is not int or rows < 1 or any(length % rows for length in lengths):
        raise ValueError(rows)
    if sum(length for tensor, length in zip(tensors, lengths, strict=True) if "data" not in tensor) != len(content.tail or b""):
        raise ValueError(len(content.tail or b""))
    return rows


def _size(tensor: Mapping[str, Any], tail: bytes | None) -> int:
    """How many list elements, or bytes of the tail, hold the tensor."""
    rows, *row = tensor["shape"]
    if "data" in tensor:
        data, values = tensor["data"], math.prod(row)
        nested = isinstance(data[0], list)
        if not isinstance(data, list) or len(data) != (rows if nested else rows * values):
            raise ValueError(len(data))
        return len(data)
    size = tensor["parameters"]["binary_data_size"]
    if tensor["datatype"] == "BYTES" or tail is None or type(size) is not int or size < 0:  # strings are not equally long
        raise ValueError(size)
    return size


def _cut_tensors(content: Content, rows: int, start: int, stop: int) -> Content:
    cut, pieces, position = [], [], 0
    for tensor in content.document["inputs"]:
        size = _size(tensor, content.tail)
        row = size // rows
        part = {**tensor, "shape": [stop - start, *tensor["shape"][1:]]}
        if "data" in tensor:
            part["data"] = tensor["data"][start * row : stop * row]
        else:
            pieces.append((content.tail or b"")[position + start * row : position + stop * row])
            part["parameters"] = {**tensor["parameters"], "binary_data_size": len(pieces[-1])}
            position += size
        cut.append(part)
    return Content({**content.document, "inputs": cut}, None if content.tail is None else b"".join(pieces))


def _joined_tensors(first: Content, second: Content, rows: tuple[int, int]) -> Content:
    joined, pieces, positions = [], [], [0, 0]
    for pair in zip(first.document["outputs"], second.document["outputs"], strict=True):
        one, other = pair
        same = [(tensor["name"], tensor["datatype"], tensor["shape"][1:], "data" in tensor) for tensor in pair]
        if same[0] != same[1] or tuple(tensor["shape"][0] for tensor in pair) != rows:
            raise ValueError(same)
        whole = {**one, "shape": [sum(rows), *one["shape"][1:]]}
        if "data" in one:
            if isinstance(one["data"][0], list) != isinstance(other["data"][0], list):
                raise ValueError(one["name"])
            whole["data"] = one["data"] + other["data"]
        else:
            sizes = [tensor["parameters"]["binary_data_size"] for tensor in pair]
            for part, (content, size) in enumerate(zip((first, second), sizes, strict=True)):
                pieces.append((content.tail or b"")[positions[part] : positions[part] + size])
                positions[part] += size
            whole["parameters"] = {**one["parameters"], "binary_data_size": sum(sizes)}
        joined.append(whole)
    tails = [len(content.tail or b"") for content in (first, second)]
    if positions != tails:
        raise ValueError(tails)
    return Content({**first.document, "outputs": joined}, b"".join(pieces) if pieces else None)


# ---------------------------------------------------------------------- TF Serving


def _request_columns(document: Mapping[str, Any]) -> list[list[Any]]:
    if ("instances" in document) == ("inputs" in document):
        raise ValueError(sorted(document))
    return _columns(document["instances"] if "instances" in document else document["inputs"])


def _columns(batch: Any) -> list[list[Any]]:
    """The lists that have an element for each row. Raises ValueError where something else stands there."""
    columns = list(batch.values()) if isinstance(batch, dict) else [batch]
    if not columns or not all(isinstance(column, list) for column in columns):
        raise ValueError(type(batch))
    return columns


def _rows_of_columns(columns: list[list[Any]]) -> int:
    (rows,) = set(map(len, columns))
    return rows


def _cut_columns(content: Content, start: int, stop: int) -> Content:
    (member,) = {"instances", "inputs"} & content.document.keys()
    batch = content.document[member]
    if isinstance(batch, dict):
        cut: Any = {name: column[start:stop] for name, column in batch.items()}
    else:
        cut = batch[start:stop]
    return Content({**content.document, member: cut}, None)


def _joined_columns(first: Mapping[str, Any], second: Mapping[str, Any], rows: tuple[int, int]) -> dict[str, Any]:
    (member,) = {"predictions", "outputs"} & first.keys()
    parts = (first[member], second[member])
    if tuple(_rows_of_columns(_columns(part)) for part in parts) != rows or type(parts[0]) is not type(parts[1]):
        raise ValueError(member)
    if isinstance(parts[0], dict):
        if parts[0].keys() != parts[1].keys():
            raise ValueError(member)
        return {**first, member: {name: parts[0][name] + parts[1][name] for name in parts[0]}}
    return {**first, member: parts[0] + parts[1]}
