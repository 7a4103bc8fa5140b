"""What no HTTP library sends: smuggled and broken requests, and clients that are slow on purpose. One scored request reaches the model once."""

import contextlib
import re
import socket
import time

import pytest
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged

from sameguard.server.demo_server import DemoServer

DIGIT = demo_queries()[0][:1]
HEADERS, BODY = infer_message(DIGIT)
JSON_LENGTH = HEADERS["inference-header-content-length"]
LINE = f"POST {INFER} HTTP/1.1"
OTHER = b"POST /v2/models/other/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"


class Counting(DemoServer):
    """Also notes the path of everything that it is asked."""

    def __init__(self) -> None:
        super().__init__(DEMO / "victim.onnx")
        self.paths: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["raw_path"])
        await super().__call__(scope, receive, send)


@pytest.fixture(scope="module")
def rig():
    with rigged(Counting(), mode="shadow", cache={"seconds": 0}, listen={"header_seconds": 1.5, "body_seconds": 1.5}) as running:
        yield running


def sent(rig: Rig, content: bytes, *, patience: float = 5.0) -> bytes:
    """Everything that comes back until the guard closes, or has said nothing for a while."""
    host, port = rig.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), patience) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(65536):
                found += piece
                connection.settimeout(0.5)
        return found


def request(*more: str, line: str = LINE, body: bytes = BODY, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [line, "Host: guard", f"Content-Length: {size}", f"Inference-Header-Content-Length: {JSON_LENGTH}", *more]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    return b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


CHUNKS = f"{LINE}\r\nHost: guard\r\nInference-Header-Content-Length: {JSON_LENGTH}\r\n".encode()
BROKEN = {
    "length and chunks": request("Transfer-Encoding: chunked", body=chunked(BODY)) + OTHER,
    "chunks and length that ends early": CHUNKS + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunked(BODY) + OTHER,
    "two lengths": request("Content-Length: 0"),
    "a list of lengths": request(length=len(BODY)).replace(b"Content-Length: %d" % len(BODY), b"Content-Length: %d, 0" % len(BODY), 1),
    "a signed length": request().replace(b"Content-Length: %d" % len(BODY), b"Content-Length: +%d" % len(BODY), 1),
    "an unknown transfer encoding": CHUNKS + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked(BODY),
    "chunked twice": CHUNKS + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(BODY),
    "a blank before the colon": request().replace(b"Content-Length:", b"Content-Length :", 1),
    "a NUL in a header": request("X-A: b\0c"),
    "a chunk size beyond 64 bits": CHUNKS + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + BODY,
    "a negative chunk size": CHUNKS + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY,
    "the binary length twice": request(f"Inference-Header-Content-Length: {JSON_LENGTH}"),
    "a proof twice": request("Guard-Proof: a", "Guard-Proof: b"),
    "headers without end": request("X-A: " + "b" * 70_000),
    "large headers": request("X-A: " + "b" * 20_000),
    "no request at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    "an absolute address": request(line=f"POST http://elsewhere{INFER} HTTP/1.1"),
    "an encoded slash": request(line=LINE.replace("/infer", "%2finfer")),
    "dots": request(line=LINE.replace("/v2/", "/v2/../v2/")),
    "two slashes": request(line=LINE.replace("/v2/", "//v2/")),
    "a parameter of the path": request(line=LINE.replace("/infer", "/infer;x=1")),
    "a query string": request(line=LINE.replace("/infer", "/infer?x=1")),
    "another method": request(line=LINE.replace("POST", "PUT")),
    "a method of another case": request(line=LINE.replace("POST", "post")),
}  # fmt: skip


def test_a_plain_request_passes(rig):
    before = rig.upstream.answered
    assert sent(rig, request("Connection: close")).startswith(b"HTTP/1.1 200")
    assert sent(rig, CHUNKS + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(BODY)).startswith(b"HTTP/1.1 200")
    assert rig.upstream.answered == before + 2


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_is_refused_and_never_reaches_the_model(rig, name):
    before, paths = rig.upstream.answered, len(rig.upstream.paths)
    found = sent(rig, BROKEN[name])
    status = found.split(b" ", 2)[1] if found else b"closed"
    assert status in (b"400", b"404", b"405", b"408", b"431", b"closed"), found[:200]
    assert rig.upstream.answered == before
    assert not [path for path in rig.upstream.paths[paths:] if path not in (b"/v2/models/digits/ready", b"/v2")]
    assert b"HTTP/1.1 200" not in found


@pytest.mark.parametrize("header", [f"Content-Length: {len(BODY)}", "X-A: b\r\n c"])
def test_what_is_harmless_here_is_asked_once_and_does_not_travel(rig, header):
    """Equal lengths and folded headers: the parser may take them, for the request that goes on is written anew."""
    before = rig.upstream.answered
    assert sent(rig, request(header, "Connection: close")).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert rig.upstream.answered <= before + 1


def test_what_is_pipelined_behind_a_good_request_is_judged_like_any_other(rig):
    before = rig.upstream.answered
    found = sent(rig, request() + OTHER + request("Connection: close"))
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"404", b"200"]
    assert rig.upstream.answered == before + 2
    assert b"/v2/models/other/infer" not in rig.upstream.paths


@pytest.mark.parametrize("content", [b"", b"POST", request()[:60], request("X-A: b")[: -len(BODY) - 2]])
def test_headers_that_do_not_come_to_an_end_close_the_connection(rig, content):
    host, port = rig.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(content)
        began = time.monotonic()
        assert connection.recv(1000) == b""
    assert time.monotonic() - began < 15


def test_a_body_that_does_not_come_to_an_end_is_answered_408_in_time(rig):
    host, port = rig.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(request()[:-5])
        found = connection.recv(4000)
    assert found.startswith(b"HTTP/1.1 408")


def test_a_body_in_single_bytes_is_the_same_body(rig):
    pieces = b"".join(b"1\r\n" + BODY[index : index + 1] + b"\r\n" for index in range(len(BODY)))
    content = CHUNKS + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
    assert sent(rig, content).startswith(b"HTTP/1.1 200")


def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(rig):
    assert sent(rig, request("Connection: close", body=b"", length=10**12)).startswith(b"HTTP/1.1 413")


def test_a_hundred_clients_that_leave_at_once_leave_nothing_behind(rig):
    host, port = rig.url.removeprefix("http://").split(":")
    for _ in range(100):
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(request())
    deadline = time.monotonic() + 20
    while rig.service._users and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not rig.service._users
    assert sent(rig, request("Connection: close")).startswith(b"HTTP/1.1 200")
