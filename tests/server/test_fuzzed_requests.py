"""Requests from a dice: bytes, heads, bodies and connections at random. No hang, no failure of ours, no status that is not declared."""

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from echo_upstream import EchoUpstream
from hostile_bodies import LENGTH, MARK, oip_variants, raw_batch, tensor_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import guard_process
from raw_client import Answer, answers_in, asked, exchanged, request_text
from rig import DIALECT, INFER, Rig, rigged

from sameguard.server.demo_server import demo_contract
from sameguard.server.openapi import openapi_document

# the servers beside us draw random numbers in their threads while hypothesis draws its own
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
UNHURRIED = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
CONTRACT = demo_contract().input
DECLARED = {int(status) for status in openapi_document(DIALECT)["paths"][INFER]["post"]["responses"] if status.isdigit()} | {404}
GOOD = json.dumps({"id": "1", "inputs": [tensor_of(raw_batch(CONTRACT), CONTRACT)]}).encode()
OURS = {500, 502, 503, 504}
TRAVELS = {
    "host",
    "accept",
    "accept-encoding",
    "content-length",
    "content-type",
    LENGTH.lower(),
    "user-agent",
    "x-request-id",
    "traceparent",
    "tracestate",
}


@pytest.fixture(scope="module")
def echo() -> EchoUpstream:
    return EchoUpstream()


@pytest.fixture(scope="module")
def rig(echo) -> Iterator[Rig]:
    listen = {"header_seconds": 1.0, "body_seconds": 1.0, "body_bytes": 2**20}
    with (
        echo.running() as url,
        rigged(upstream_url=url, mode="shadow", cache={"seconds": 0}, canary={"enabled": False}, listen=listen) as running,
    ):
        yield running


def check(answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.status in DECLARED, answer
        assert answer.status not in OURS, answer
        if answer.status != 200 and "guard-request-id" in answer.headers:
            assert json.loads(answer.body)["error"]


def settled(rig: Rig, echo: EchoUpstream) -> None:
    """What was scored and what the model server decoded are the same arrays, each as often; all connections are let go of."""
    deadline = time.monotonic() + 20
    while rig.service._users and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not rig.service._users
    scored = Counter(evidence.queries.tobytes() for evidence in rig.noted.evidence if evidence is not None)
    decoded = Counter(seen.decoded.tobytes() for seen in echo.seen)
    # whoever leaves early may leave between the two; what was not scored is never asked
    assert not decoded - scored
    assert sum(scored.values()) - sum(decoded.values()) <= sum(decision.reason == "client-gone" for decision in rig.noted.decisions)
    assert {decision.reason for decision in rig.noted.decisions if decision.outcome == "failed"} <= {"client-gone", ""}


def all_at_once(rig: Rig, contents: list[bytes]) -> None:
    """Many connections side by side: those that wait for an end that never comes wait together."""
    with ThreadPoolExecutor(48) as pool:
        for found in pool.map(lambda content: exchanged(rig.url, content, patience=30.0), contents):
            check(answers_in(found))


def wires() -> list[bytes]:
    """Good requests, as bytes."""
    close = ("Connection", "close")
    text = request_text("POST", INFER, [close, ("Content-Type", "application/json")], GOOD)
    values = raw_batch(CONTRACT).astype("<f4").tobytes()
    head = json.dumps({"inputs": [{**tensor_of(raw_batch(CONTRACT), CONTRACT), "parameters": {"binary_data_size": len(values)}}]})
    document = json.loads(head)
    del document["inputs"][0]["data"]
    head = json.dumps(document)
    binary = request_text("POST", INFER, [close, (LENGTH, str(len(head)))], head.encode() + values)
    zipped = request_text("POST", INFER, [close, ("Content-Encoding", "gzip")], gzip.compress(GOOD))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(GOOD[start : start + 300]), GOOD[start : start + 300]) for start in range(0, len(GOOD), 300))
    chunked = (
        f"POST {INFER} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    )
    return [text, binary, zipped, chunked]


def test_wires_are_good(rig, echo):
    for wire in wires():
        (answer,) = answers_in(exchanged(rig.url, wire))
        assert answer.status == 200
    settled(rig, echo)


def test_connections_full_of_random_bytes_are_closed(rig, echo):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(int(rng.integers(1, 3000))) for _ in range(60)]
    contents += [rng.bytes(int(rng.integers(1, 300))) + b"\r\n\r\n" + rng.bytes(50) for _ in range(60)]
    letters = np.frombuffer(b"GETPOSTHTTP/1.1 \r\n:;,-abcz0189/\t\x00\xff", np.uint8)
    contents += [rng.choice(letters, int(rng.integers(1, 400))).tobytes() + b"\r\n\r\n" for _ in range(60)]
    all_at_once(rig, contents)
    settled(rig, echo)


def test_good_connections_with_bytes_changed_at_random_end_as_they_should(rig, echo):
    rng = np.random.default_rng(1)
    contents = []
    for number in range(400):
        wire = bytearray(wires()[number % 4])
        end = bytes(wire).index(b"\r\n\r\n")
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(end if number % 2 else len(wire)))  # every other one in its head
            piece = bytes(wire[place : place + int(rng.integers(1, 12))])
            wire[place : place + len(piece)] = (b"", piece * 2, piece[::-1], rng.bytes(len(piece)), piece.swapcase(), b"\r\n" + piece)[
                int(rng.integers(6))
            ]
        contents.append(bytes(wire))
    all_at_once(rig, contents)
    settled(rig, echo)


def test_pieces_of_good_connections_put_together_at_random_smuggle_nothing(rig, echo):
    rng = np.random.default_rng(2)
    pieces = [piece + b"\r\n" for wire in wires() for piece in wire.split(b"\r\n")]
    contents = [b"".join(pieces[int(index)] for index in rng.integers(0, len(pieces), int(rng.integers(2, 14)))) for _ in range(200)]
    contents += [wires()[0] + b"".join(pieces[int(index)] for index in rng.integers(0, len(pieces), 6)) for _ in range(60)]
    all_at_once(rig, contents)
    settled(rig, echo)


NAMES = st.sampled_from([
    "Content-Type", "Content-Encoding", LENGTH, "Guard-Proof", "Accept", "Accept-Encoding", "Expect", "TE", "Upgrade", "X-Forwarded-For",
    "Forwarded", "Authorization", "Connection", "Cookie",
    "traceparent", "tracestate", "X-Request-Id", "User-Agent", "Host", "Keep-Alive", "Transfer-Encoding", "Content-Length",
]) | st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)  # fmt: skip
WORDS = st.sampled_from(
    [
        "application/json",
        "application/octet-stream",
        "gzip",
        "deflate",
        "identity",
        "chunked",
        "0",
        str(len(GOOD)),
        "close",
        "keep-alive",
        "100-continue",
        "h2c",
        MARK,
        "",
    ]
)
VALUES = (
    WORDS
    | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
    | st.lists(WORDS, max_size=3).map(", ".join)
)


@UNHURRIED
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_any_headers_end_in_a_declared_status_and_stay_here(rig, echo, headers):
    before = len(echo.seen)
    answers = answers_in(exchanged(rig.url, request_text("POST", INFER, [*headers, ("Connection", "close")], GOOD), patience=30.0))
    check(answers)
    for seen in echo.seen[before:]:
        assert set(seen.headers) <= TRAVELS


@UNHURRIED
@given(
    st.sampled_from(["GET", "POST", "PUT", "get", "X"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    st.binary(max_size=60),
)
def test_any_target_ends_in_a_declared_status(rig, echo, method, target, body):
    before = len(echo.seen)
    check([answer for answer in [asked(rig.url, f"/{target}", body, [], method)] if answer.status != 200])
    assert len(echo.seen) == before


TENSOR = tensor_of(raw_batch(CONTRACT), CONTRACT)
KEYS = [*TENSOR, "id", "inputs", "outputs", "parameters", "instances", "input", "signature_name", "digit", "b64", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.just(raw_batch(CONTRACT).tolist()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@pytest.mark.parametrize(("dialect", "path"), [("oip", INFER), ("tf-serving", "/v1/models/digits:predict"), ("plain-json", "/predict")])
def test_any_json_ends_in_a_refusal_or_in_what_was_scored(dialect, path):
    echo = EchoUpstream(dialect)
    upstream = {"dialect": dialect}
    with (
        echo.running() as url,
        rigged(upstream_url=url, mode="shadow", cache={"seconds": 0}, canary={"enabled": False}, upstream=upstream) as rig,
    ):

        @UNHURRIED
        @given(JSON)
        def any_json(document: Any) -> None:
            check([asked(rig.url, path, json.dumps(document).encode(), [])])

        any_json()
        settled(rig, echo)


def test_any_change_to_a_good_body_ends_in_a_refusal_or_in_what_was_scored(rig, echo):
    @UNHURRIED
    @given(st.sampled_from(sorted(TENSOR)), JSON)
    def any_member(member: str, value: Any) -> None:
        check([asked(rig.url, INFER, json.dumps({"inputs": [{**TENSOR, member: value}]}).encode(), [])])

    @UNHURRIED
    @given(st.integers(0, len(GOOD) - 1), st.sampled_from(list('{}[]",:0123456789eE+-. \\abN')))
    def any_letter(place: int, letter: str) -> None:
        check([asked(rig.url, INFER, GOOD[:place] + letter.encode() + GOOD[place + 1 :], [])])

    @UNHURRIED
    @given(
        st.binary(max_size=300),
        st.sampled_from([(), (LENGTH, "0"), (LENGTH, "17"), ("Content-Encoding", "gzip"), ("Content-Encoding", "deflate")]),
    )
    def any_bytes(body: bytes, header: tuple[str, ...]) -> None:
        check([asked(rig.url, INFER, body, [header] if header else [])])

    any_member()
    any_letter()
    any_bytes()
    settled(rig, echo)


def test_memory_stays_bounded_under_large_hostile_bodies(tmp_path):
    """A guard in a process of its own: bodies of a megabyte cost it megabytes, each time the same ones."""
    large = [(variant.body, list(variant.headers)) for variant in oip_variants(CONTRACT).values() if len(variant.body) > 20_000]
    texts = (
        b'{"inputs":[' + b"[]," * 300_000 + b"[]]}", b'{"inputs":["' + b"a" * 900_000 + b'"]}', b"[" * 10**6, b'{"a":' * 150_000,
        b"9" * 10**6,
        b'{"inputs":[{"data":[' + b"0," * 400_000 + b"0]}]}", b'{"' + b"\\u0061" * 170_000 + b'":1}', b'{"' + b"\\n" * 500_000 + b'":1}',
        b'{"a":"' + b"\\\\" * 500_000 + b'"}',
    )  # fmt: skip
    bodies = [
        *large,
        *((text, []) for text in texts),
        (gzip.compress(b"0," * 500_000), [("Content-Encoding", "gzip")]),
        (bytes(2**20), [(LENGTH, "0")]),
    ]
    echo = EchoUpstream()
    with (
        echo.running() as url,
        guard_process(
            url, tmp_path, MODE="shadow", CANARY__ENABLED="false", LISTEN__BODY_BYTES=str(2**20), LISTEN__MAX_ROWS="256"
        ) as guard,
    ):

        def round_of_all() -> int:
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda case: check([asked(guard.url, INFER, *case)]), bodies))
            return guard.memory_bytes

        before = guard.memory_bytes
        warm = max(round_of_all() for _ in range(3))  # what is allocated once is allocated
        assert warm - before < 160 * 2**20
        for _ in range(10):
            after = round_of_all()
        assert after - warm < 48 * 2**20
        assert asked(guard.url, INFER, GOOD, []).status == 200


def test_threads_do_not_pile_up(rig):
    before = threading.active_count()
    for _ in range(60):
        check([asked(rig.url, INFER, gzip.compress(GOOD), [("Content-Encoding", "gzip")])])
    assert threading.active_count() <= before + 34  # of the pool that reads compressed bodies, at most


def test_an_honest_request_still_passes(rig, echo):
    answer = asked(rig.url, INFER, GOOD, [])
    assert answer.status == 200
    settled(rig, echo)
