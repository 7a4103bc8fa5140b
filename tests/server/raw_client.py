"""Requests written byte by byte, and whatever comes back, split into answers without an HTTP library that would smooth things over."""

import contextlib
import json
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from sameguard.protocol import PROBLEMS


class Answer(NamedTuple):
    """headers: lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def request_text(method: str, target: str, headers: list[tuple[str, str]], body: bytes = b"", *, length: int | None = None) -> bytes:
    """A request with Host and Content-Length; headers come as they are, repeated ones too."""
    lines = [f"{method} {target} HTTP/1.1", "Host: guard", *(f"{name}: {value}" for name, value in headers)]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def exchanged(url: str, content: bytes, *, patience: float = 20.0) -> bytes:
    """Everything that comes back until the other side closes. Raises TimeoutError where it does not: that is a hang."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), patience) as connection:
        found = b""
        with contextlib.suppress(ConnectionError):  # it may close before it has read all of it
            connection.sendall(content)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                found += piece
        return found


def answers_in(found: bytes) -> list[Answer]:
    """The answers one behind the other; 100 Continue is none."""
    answers = []
    while found:
        head, _, rest = found.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
        status, length = int(line.split(" ")[1]), int(headers.get("content-length", "0"))
        if "content-length" not in headers and status >= 200:
            length = len(rest)  # to the end of the connection
        if status != 100:
            answers.append(Answer(status, headers, rest[:length]))
        found = rest[length:]
    return answers


def asked(url: str, target: str, body: bytes, headers: list[tuple[str, str]], method: str = "POST") -> Answer:
    """The one answer to one request on a connection of its own."""
    found = answers_in(exchanged(url, request_text(method, target, [("Connection", "close"), *headers], body)))
    assert len(found) == 1, found
    return found[0]


def check_problem(answer: Answer) -> str:
    """The kind of a refusal that is written as all refusals are."""
    document = json.loads(answer.body)
    kind = document["type"].removeprefix("urn:sameguard:problem:")
    assert answer.status >= 400, answer
    assert document["status"] == answer.status
    assert document["title"]
    assert document["detail"]
    assert document["error"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["guard-request-id"]
    assert kind in PROBLEMS
    return kind
