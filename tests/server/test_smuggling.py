"""Requests whose end is a matter of opinion, over raw sockets: the model server hears what was scored, once, whatever the guard makes of them.

Behind each stands a second request, for a door that is closed or for a query of its own. Where guard and model server disagreed about the
end of the first, the second would pass unseen. The model server here splits its requests naively and remembers every byte.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
from echo_upstream import EchoUpstream
from hostile_bodies import raw_batch, tensor_of
from raw_client import Answer, answers_in, exchanged
from rig import INFER, Rig, rigged

from sameguard.server.demo_server import demo_contract

CONTRACT = demo_contract().input
LINE = f"POST {INFER} HTTP/1.1"


def body_of(seed: int) -> bytes:
    return json.dumps({"inputs": [tensor_of(raw_batch(CONTRACT, seed=seed), CONTRACT)]}).encode()


BODY, HIDDEN = body_of(1), body_of(2)
SIZE = len(BODY)
DENIED = b"POST /v2/repository/models/digits/unload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
LAST = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SECOND = f"{LINE}\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(HIDDEN)}\r\n\r\n".encode() + HIDDEN
CHUNKS = b"%x\r\n" % SIZE + BODY + b"\r\n0\r\n\r\n"
TE = "Transfer-Encoding: chunked"


def head(*lines: str, line: str = LINE, ends: str = "\r\n") -> bytes:
    return ends.join([line, "Host: guard", *lines]).encode("latin-1") + (ends * 2).encode()


@pytest.fixture(scope="module")
def echo() -> EchoUpstream:
    return EchoUpstream(binary=False)


@pytest.fixture(scope="module")
def rig(echo) -> Iterator[Rig]:
    limits = {"header_seconds": 1.0, "body_seconds": 1.0}
    with (
        echo.running() as url,
        rigged(upstream_url=url, mode="shadow", cache={"seconds": 0}, canary={"enabled": False}, listen=limits) as running,
    ):
        yield running


def check(rig: Rig, echo: EchoUpstream, content: bytes, statuses: set[int] | None = None, *, unscored: int = 0) -> list[Answer]:
    """The answers until the guard closes; `exchanged` raises where it does not. What was scored and what was asked are the same.

    unscored: requests among them that pass without being observed.
    """
    seen, noted, asked = len(echo.seen), len(rig.noted.decisions), len(echo.asked)
    answers = answers_in(exchanged(rig.url, content))
    named = [answer.headers["guard-request-id"] for answer in answers if "guard-request-id" in answer.headers]
    deadline = time.monotonic() + 20
    while len(set(named) - {decision.request_id for decision in rig.noted.decisions[noted:]}) > unscored:
        assert time.monotonic() < deadline, "the observer was not told"
        time.sleep(0.002)
    scored = [evidence.queries for evidence in rig.noted.evidence[noted:] if evidence is not None]
    decoded = [item.decoded for item in echo.seen[seen:]]
    assert Counter(array.tobytes() for array in scored) == Counter(array.tobytes() for array in decoded)
    assert len(decoded) == [answer.status for answer in answers].count(200) - unscored
    assert set(echo.asked[asked:]) <= {f"POST {INFER}", *(["GET /v2/health/live"] if unscored else [])}
    for item in echo.seen[seen:]:
        assert item.wire.count(b"HTTP/1.1") == 1
        assert set(item.headers) <= {"host", "accept", "accept-encoding", "content-length", "content-type"}
    if statuses is not None:
        assert {answer.status for answer in answers} <= statuses, answers
    assert all(answer.status < 500 for answer in answers)
    return answers


OPINIONS = {
    # two ends
    "length and chunks": head(f"Content-Length: {SIZE}", TE) + BODY,
    "chunks and length": head(TE, f"Content-Length: {SIZE}") + BODY,
    "length 0 and chunks": head("Content-Length: 0", TE) + CHUNKS,
    "chunks, and a length that ends early": head(TE, "Content-Length: 4") + CHUNKS,
    "two lengths": head(f"Content-Length: {SIZE}", "Content-Length: 0") + BODY,
    "two lengths, the other way round": head("Content-Length: 0", f"Content-Length: {SIZE}") + BODY,
    "a list of lengths": head(f"Content-Length: {SIZE}, 0") + BODY,
    # spellings of a length
    **{
        f"length {text!r}": head(f"Content-Length: {text}") + BODY
        for text in (f"+{SIZE}", f"-{SIZE}", hex(SIZE), f"{SIZE}.0", f"{SIZE}e0", f"{SIZE} 0", f"{SIZE};", "", "x", f"{SIZE}\xa0",
        "9" * 30, f"1_{SIZE}", "\xb2")
    },
    # spellings of chunked
    **{
        f"transfer encoding {text!r}": head(f"Transfer-Encoding: {text}") + CHUNKS
        for text in (
            "xchunked", "chunked, identity", "identity", "gzip", "chunked, chunked", "chunked\xa0", "\x0bchunked", "chunked\x0c",
            "chunked;a=b", '"chunked"', "chunked,", ",chunked", "",
            "gzip, chunked", "identity, chunked",
        )
    },
    "a length, and chunks that are misspelled": head(f"Content-Length: {SIZE}", "Transfer-Encoding: xchunked") + BODY,
    "chunked in two headers": head(TE, TE) + CHUNKS,
    "chunked and identity": head(TE, "Transfer-Encoding: identity") + CHUNKS,
    "chunked over two lines": head("Transfer-Encoding:\r\n chunked", f"Content-Length: {SIZE}") + CHUNKS,
    "a blank before the colon": head("Transfer-Encoding : chunked", f"Content-Length: {SIZE}") + BODY,
    "a length with a blank before the colon": head(f"Content-Length : {SIZE}") + BODY,
    "a NUL in the name": head("Transfer-Encoding\0: chunked", f"Content-Length: {SIZE}") + BODY,
    "a vertical tab in the name": head("\x0bTransfer-Encoding: chunked", f"Content-Length: {SIZE}") + BODY,
    "a letter that is none": head("Tran\u017f".encode().decode("latin-1") + "fer-Encoding: chunked", f"Content-Length: {SIZE}") + BODY,
    "a header inside a header": head("X-A: b\rTransfer-Encoding: chunked", f"Content-Length: {SIZE}") + BODY,
    "a header behind a bare line feed": head("X-A: b\nTransfer-Encoding: chunked", f"Content-Length: {SIZE}") + BODY,
    "two lengths that agree": head(f"Content-Length: {SIZE}", f"content-length: {SIZE}") + BODY,
    "a list of lengths that agree": head(f"Content-Length: {SIZE}, {SIZE}") + BODY,
    "a header over two lines": head("X-A: b\r\n c", f"Content-Length: {SIZE}") + BODY,
    "a header over two lines, with a tab": head("X-A: b\r\n\tc", f"Content-Length: {SIZE}") + BODY,
    "a header that ends with a bare line feed": head("X-A: b\nX-C: d", f"Content-Length: {SIZE}") + BODY,
    "a last line with a bare line feed": head(f"Content-Length: {SIZE}")[:-4] + b"\n\r\n" + BODY,
    "a blank line with a bare line feed": head(f"Content-Length: {SIZE}")[:-2] + b"\n" + BODY,
    "chunks in HTTP/1.0": head(TE, line=LINE.replace("1.1", "1.0")) + CHUNKS,
    # chunks
    **{
        f"chunk size {text!r}": head(TE) + text + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
        for size in (b"%x" % SIZE,)
        for text in (
            b"+" + size, b"-" + size, b"0x" + size, b" " + size, size + b"_0", size + b" 0", b"g", b"", b"f" * 17, b"1" + b"0" * 16 + size,
            size + b"\0",
        )
    },
    "a chunk that is longer than its size": head(TE) + b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk without its end": head(TE) + b"%x\r\n" % SIZE + BODY + b"0\r\n\r\n",
    "a chunk with another end": head(TE) + b"%x\r\n" % SIZE + BODY + b"XX0\r\n\r\n",
    "a last chunk with a line feed alone": head(TE) + b"%x\r\n" % SIZE + BODY + b"\r\n0\n\n",
    "a chunk extension without end": head(TE) + b"%x;" % SIZE + b"a" * 70_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "trailers without end": head(TE) + b"%x\r\n" % SIZE + BODY + b"\r\n0\r\n" + b"X-A: b\r\n" * 9000 + b"\r\n",
    # heads
    "line feeds alone": head(f"Content-Length: {SIZE}", ends="\n") + BODY,
    "carriage returns alone": head(f"Content-Length: {SIZE}", ends="\r") + BODY,
    "no host": f"{LINE}\r\nContent-Length: {SIZE}\r\n\r\n".encode() + BODY,
    "two hosts": head("Host: other", f"Content-Length: {SIZE}") + BODY,
    "a header without a name": head(": b", f"Content-Length: {SIZE}") + BODY,
    "a header without a colon": head("X-A", f"Content-Length: {SIZE}") + BODY,
    "a folded first header": f"{LINE}\r\n Host: guard\r\nContent-Length: {SIZE}\r\n\r\n".encode() + BODY,
    "two blanks in the request line": head(f"Content-Length: {SIZE}", line=LINE.replace(" /", "  /")) + BODY,
    "tabs in the request line": head(f"Content-Length: {SIZE}", line=LINE.replace(" ", "\t")) + BODY,
    "a request line with something behind": head(f"Content-Length: {SIZE}", line=f"{LINE} x") + BODY,
    "a line break in the target": head(f"Content-Length: {SIZE}", line=LINE.replace("/infer", "/infer\nX-A: b")) + BODY,
    **{f"version {text}": head(f"Content-Length: {SIZE}", line=LINE.replace("HTTP/1.1", text)) + BODY for text in ("HTTP/1.2", "HTTP/2",
    "HTTP/2.0", "HTTP/9.9", "http/1.1", "HTTP/1.10", "ICAP/1.0", "HTTP/01.1")},
    "HTTP/0.9": f"GET {INFER}\r\n\r\n".encode(),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    "blank lines before": b"\r\n" * 5 + head("Content-Length: 0"),
    "a large header": head("X-A: " + "b" * 1_000_000),
    "many headers": head(*["X-A: b"] * 50_000),
    "a header line without end": head("X-A: " + "b" * 1_000_000)[:-4],
}  # fmt: skip


# oddities in which every reader sees the same end
CLEAR = {"a chunk extension without end", "trailers without end", "version HTTP/1.2", "version HTTP/2.0", "version HTTP/9.9"}


@pytest.mark.parametrize("name", OPINIONS)
def test_a_request_whose_end_is_a_matter_of_opinion_smuggles_nothing(rig, echo, name):
    answers = check(rig, echo, OPINIONS[name] + DENIED + SECOND)
    assert len(answers) <= 3
    if name not in CLEAR:
        assert {answer.status for answer in answers} <= {400, 404, 408}, answers
        assert not any(answer.status == 200 for answer in answers)
        assert len(answers) == (2 if name == "the preface of HTTP/2" else 1)


def test_pipelined_requests_are_each_judged(rig, echo):
    first = head(f"Content-Length: {SIZE}") + BODY
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = check(rig, echo, first + DENIED + first + health + DENIED + SECOND, {200, 404}, unscored=1)
    assert [answer.status for answer in answers] == [200, 404, 200, 200, 404, 200]


@pytest.fixture
def smuggled() -> bytes:
    """A whole request, as the body of another."""
    return SECOND


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE", "PUT"])
def test_a_body_that_nobody_reads_is_a_body_and_no_request(rig, echo, smuggled, method):
    for target in ("/v2/models/other/infer", INFER):
        content = head(f"Content-Length: {len(smuggled)}", line=f"{method} {target} HTTP/1.1") + smuggled
        answers = check(rig, echo, content + LAST, {404})
        assert len(answers) == 2


def test_a_head_request_with_a_body_is_one_request(rig, smuggled):
    found = exchanged(rig.url, head(f"Content-Length: {len(smuggled)}", line=f"HEAD {INFER} HTTP/1.1") + smuggled + LAST)
    assert found.count(b"HTTP/1.1 404") == found.count(b"HTTP/1.1") == 2


def test_a_body_behind_a_refusal_is_a_body_and_no_request(rig, echo, smuggled):
    for extra in (
        "Content-Encoding: br",
        "Content-Type: text/html",
        "Guard-Proof: a\r\nGuard-Proof: b",
        "Inference-Header-Content-Length: x",
    ):
        answers = check(rig, echo, head(extra, f"Content-Length: {len(smuggled)}") + smuggled + LAST, {400, 404, 415})
        assert len(answers) == 2


def test_the_end_of_a_short_body_is_not_taken_from_the_next_request(rig, echo):
    answers = check(rig, echo, head(f"Content-Length: {SIZE + len(SECOND)}") + BODY + SECOND + LAST, {400, 404})
    assert len(answers) == 2


def test_many_small_writes_are_one_request(rig, echo):
    content = head("Connection: close", f"Content-Length: {SIZE}") + BODY
    before = len(echo.seen)
    parts = urlsplit(rig.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(content), 7):
            connection.sendall(content[start : start + 7])
        found = b""
        while piece := connection.recv(65536):
            found += piece
    assert found.startswith(b"HTTP/1.1 200")
    assert len(echo.seen) == before + 1
    assert np.array_equal(echo.seen[-1].decoded, raw_batch(CONTRACT, seed=1))


def test_nothing_is_left_of_all_this(rig, echo):
    assert [
        decision for decision in rig.noted.decisions if decision.outcome == "failed" and decision.reason not in ("", "client-gone")
    ] == []
    deadline = time.monotonic() + 20
    while rig.service._users and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not rig.service._users
    assert [answer.status for answer in check(rig, echo, SECOND)] == [200]
