"""Differential bypass over HTTP: hundreds of requests that two readers could take for two things, before servers that tell what they read.

Each ends in one of two ways: a refusal, and the model server hears nothing; or the model server decodes the very array that was scored,
and nothing else of what the client wrote reaches it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from echo_upstream import EchoUpstream, Seen, echo_of
from hostile_bodies import LENGTH, MARK, Variant, oip_variants, raw_batch, tensor_of
from raw_client import Answer, answers_in, asked, check_problem, exchanged, request_text
from rig import Rig, rigged

from blur_artifact import write_blur_artifact
from sameguard.contract import InputContract
from sameguard.protocol import InferRequest
from sameguard.server.decision import Decision, Evidence
from sameguard.server.demo_server import demo_contract

DIGIT = demo_contract().input
TRAVELS = {
    "host",
    "accept",
    "accept-encoding",
    "content-length",
    "content-type",
    "inference-header-content-length",
    "user-agent",
    "x-request-id",
}
MEMBERS = {"oip": {"inputs", "outputs"}, "tf-serving": {"instances"}, "plain-json": {"input"}}


@dataclass
class Door:
    """A guard in shadow mode, which answers whatever it understands, before an echo."""

    rig: Rig
    echo: EchoUpstream
    contract: InputContract

    @property
    def path(self) -> str:
        return self.rig.service.snapshot.dialect.infer_path

    def observed(self, answer: Answer) -> tuple[Decision, Evidence | None]:
        """What the guard noted of this request; observers are told after the answer has gone out."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for decision, evidence in zip(reversed(self.rig.noted.decisions), reversed(self.rig.noted.evidence), strict=False):
                if decision.request_id == answer.headers["guard-request-id"]:
                    return decision, evidence
            time.sleep(0.002)
        raise AssertionError("the observer was not told")

    def check(self, answer: Answer, before: int, wanted: str = "either") -> None:
        """before: how many inference requests the model server had seen."""
        assert "guard-request-id" in answer.headers, answer
        decision, evidence = self.observed(answer)
        new = self.echo.seen[before:]
        assert wanted != "passes" or answer.status == 200, answer
        assert wanted != "refused" or answer.status != 200, answer
        assert MARK not in answer.headers.values()
        if answer.status != 200:
            assert new == []
            assert evidence is None
            assert 400 <= answer.status < 500, answer
            assert check_problem(answer) in ("input-invalid", "too-large", "not-found")
            assert MARK.encode() not in answer.body or len(answer.body) < 1000  # an error names what it does not know, shortly
            return
        assert len(new) == 1
        assert evidence is not None
        self._check_equal(new[0], decision, evidence)
        self._check_clean(new[0])
        assert np.array_equal(logits_of(answer), echo_of(new[0].decoded, classes=self.echo.classes))

    def _check_equal(self, seen: Seen, decision: Decision, evidence: Evidence) -> None:
        """What was scored is what the model server decoded; and the digest on record is the digest of that."""
        mapped = by_hand(seen.decoded, self.contract)
        np.testing.assert_allclose(mapped, evidence.queries, rtol=0, atol=0 if self.contract.scale == (1.0,) else 1e-6)
        again = self.contract.decode(seen.decoded)
        assert np.array_equal(again, evidence.queries)
        model = self.rig.service.snapshot.model
        assert InferRequest(again, outputs=model.allowed_outputs).digest(model).hex() == decision.digest

    def _check_clean(self, seen: Seen) -> None:
        assert MARK.encode() not in seen.wire
        assert set(seen.headers) <= TRAVELS, seen.headers
        assert seen.wire.startswith(f"POST {self.path} HTTP/1.1\r\n".encode())
        length = int(seen.headers.get("inference-header-content-length", seen.headers["content-length"]))
        body = seen.wire.partition(b"\r\n\r\n")[2]
        document = json.loads(body[:length])
        assert set(document) == MEMBERS[self.echo.dialect] or (self.echo.dialect == "tf-serving" and set(document) == {"inputs"})
        assert len(body) == length + (seen.decoded.nbytes if self.echo.binary and self.echo.dialect == "oip" else 0)


def by_hand(raw: np.ndarray, contract: InputContract) -> np.ndarray:
    """The canonical queries of a raw batch, without the contract's own code."""
    values = raw.astype(np.float64)
    if contract.layout == "NHWC":
        values = np.moveaxis(values, -1, 1)
    return values.reshape(len(raw), *contract.shape) * contract.scale[0] + contract.offset[0]


def logits_of(answer: Answer) -> np.ndarray:
    length = answer.headers.get("inference-header-content-length")
    text = answer.body if length is None else answer.body[: int(length)]
    document = json.loads(text)
    if "outputs" not in document or not isinstance(document["outputs"][0], dict):
        (rows,) = (document[name] for name in ("predictions", "outputs", "probs") if name in document)
        return np.array(rows, np.float32)
    tensor = document["outputs"][0]
    assert "data" in tensor or length is not None
    values = np.array(tensor["data"], np.float32) if "data" in tensor else np.frombuffer(answer.body[len(text) :], "<f4")
    return values.reshape(tensor["shape"])


@contextmanager
def opened(echo: EchoUpstream, contract: InputContract = DIGIT, **changes: Any) -> Iterator[Door]:
    upstream = {"dialect": echo.dialect, "model": "digits", "output": "logits", "output_kind": "logits", **changes.pop("upstream", {})}
    quiet = {"mode": "shadow", "cache": {"seconds": 0}, "canary": {"enabled": False}, "upstream": upstream}
    limits = {"listen": {"body_bytes": 2**20, "header_seconds": 2.0, "body_seconds": 2.0}}
    with echo.running() as url, rigged(upstream_url=url, **{**quiet, **limits, **changes}) as rig:
        yield Door(rig, echo, contract)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with opened(EchoUpstream()) as found:
        yield found


def tried(door: Door, variant: Variant) -> None:
    before = len(door.echo.seen)
    door.check(asked(door.rig.url, door.path, variant.body, list(variant.headers)), before, variant.wanted)


VARIANTS = oip_variants(DIGIT)


def test_there_are_hundreds_of_them():
    assert len(VARIANTS) > 400


@pytest.mark.parametrize("name", VARIANTS)
def test_a_body_is_refused_or_the_model_server_decodes_what_was_scored(door, name):
    tried(door, VARIANTS[name])


@pytest.mark.parametrize("value", [-0.0, 1e-45, 1e-38, 1.0 + 0.5 / 255, -0.4 / 255, 0.1 + 0.2])
def test_what_is_nearly_on_the_grid_is_scored_as_it_is_sent_on(door, value):
    tensor = tensor_of(raw_batch(DIGIT), DIGIT, data=[value, *raw_batch(DIGIT).ravel().tolist()[1:]])
    tried(door, Variant(json.dumps({"inputs": [tensor]}).encode(), (), "passes"))


CONTRACTS = {
    "bytes, channels last": InputContract.images(1, 4, 4, dtype="UINT8", layout="NHWC"),
    "normalised, flat": InputContract.images(1, 4, 4, layout="flat", mean=[0.4], std=[0.25]),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_same_holds_under_other_contracts_and_without_binary_tensors(name, tmp_path):
    contract = CONTRACTS[name]
    artifact = write_blur_artifact(tmp_path / "artefact", contract=contract)
    with opened(EchoUpstream(binary=False, dtype=contract.dtype, classes=3), contract, artifact=artifact) as door:
        for variant in oip_variants(contract).values():
            tried(door, variant)


# ---------------------------------------------------------------------- other dialects

NESTED = raw_batch(DIGIT)[0].tolist()
FLAT = raw_batch(DIGIT)[0].ravel().tolist()
BATCHES: dict[str, tuple[Any, bool]] = {
    "a nested row": ([NESTED], True), "two rows": ([NESTED, NESTED], True), "a row bare": (NESTED, False), "flat rows": ([FLAT], False),
    "a number": (1, False),
    "nothing": ([], False), "null": (None, False), "text": (MARK, False), "base64": ([{"b64": "AAAA"}], False),
    "one named other": ([{"other": NESTED}], False),
    "ragged": ([NESTED, NESTED[0]], False), "true": ([[[[True] * 8] * 8]], False), "rows and names": ([NESTED, {"digit": NESTED}], False),
    "too many": ([NESTED] * 65, False),
}  # fmt: skip


def both_ways(text: str, key: str) -> list[str]:
    """The document with one member twice: another before it, another behind it, and one that is spelled otherwise."""
    other = f'"{key}": [[0]]'
    escaped = f'"\\u{ord(key[0]):04x}{key[1:]}": [[0]]'
    return [
        text.replace("{", "{" + other + ", ", 1),
        f"{text[:-1]}, {other}}}",
        f"{text[:-1]}, {escaped}}}",
        text.replace(key, key.upper(), 1),
    ]


@pytest.mark.parametrize("dialect", ["tf-serving", "plain-json"])
def test_the_same_holds_in_the_other_dialects(dialect):
    key = "instances" if dialect == "tf-serving" else "input"
    good = json.dumps({key: [NESTED]})
    variants = [Variant(json.dumps({key: batch}).encode(), (), "passes" if passes else "refused") for batch, passes in BATCHES.values()]
    variants += [Variant(text.encode()) for text in both_ways(good, key)]
    variants += [
        Variant(json.dumps({key: [NESTED], name: MARK}).encode()) for name in ("extra", "inputs", "signature_name", "data", "parameters")
    ]
    variants += [
        Variant(good.replace(str(FLAT[0]), spelling, 1).encode())
        for spelling in ("NaN", "Infinity", "1e999", "null", "true", '"1"', "[0]", "2.0")
    ]
    variants += [variant for name, variant in VARIANTS.items() if name.startswith("compressed:") and variant.wanted == "refused"]
    variants += [Variant(good.encode(), ((LENGTH, "5"), ("X-Unknown", MARK)), "either"), Variant(b"[" * 10**5 + b"]" * 10**5)]
    variants += [VARIANTS["inputs: none"], VARIANTS["binary"]._replace(wanted="refused")]
    if dialect == "tf-serving":
        named = (
            {"instances": [{"digit": NESTED}]},
            {"inputs": [NESTED]},
            {"inputs": {"digit": [NESTED]}},
            {"signature_name": "serving_default", "instances": [NESTED]},
        )
        variants += [Variant(json.dumps(document).encode(), (), "passes") for document in named]
        variants.append(Variant(json.dumps({"instances": [{"digit": NESTED}, {"digit": NESTED, "other": 1}]}).encode()))
    with opened(EchoUpstream(dialect)) as door:
        for variant in variants:
            tried(door, variant)
        assert door.echo.seen


# ---------------------------------------------------------------------- heads

GOOD = json.dumps({"id": MARK, "inputs": [tensor_of(raw_batch(DIGIT), DIGIT)]}).encode()
HARMLESS = [
    *[(name, MARK) for name in (
        "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Forwarded-For",
        "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded",
        "X-Real-IP", "Via", "Authorization", "Cookie", "Proxy-Authorization", "Proxy-Connection", "Guard-Pass", "Guard-Action",
        "Guard-Request-Id", "Guard-Proof", "Keep-Alive",
        "Prefer", "Range", "If-Match", "If-None-Match", "Accept", "Accept-Encoding", "Accept-Charset", "Origin", "Referer",
        "Idempotency-Key", "Trailer", "Warning", "Max-Forwards",
        "X-Accel-Redirect", "Ce-Id", "Ce-Type", "Content-Language", "Content-Location", "Content-Range", "Digest", "Repr-Digest",
        "Inference-Header", "triton-grpc-error", "endpoint-load-metrics-format",
    )],
    ("TE", "trailers, deflate"), ("X-A", MARK + "\xe9\xff"), ("Accept-Encoding", "gzip;q=1.0, identity;q=0"),
    ("X-Request-Id", "a-request"), ("User-Agent", "somebody"),
]  # fmt: skip


@pytest.mark.parametrize("header", HARMLESS, ids=lambda header: header[0])
def test_a_header_that_is_not_understood_stays_here(door, header):
    before = len(door.echo.seen)
    door.check(asked(door.rig.url, door.path, GOOD, [header]), before, "passes")
    kept = ("x-request-id", "user-agent")
    assert all(door.echo.seen[-1].headers.get(name) == (header[1] if header[0].lower() == name else None) for name in kept)


def test_what_connection_names_is_hop_by_hop(door):
    before = len(door.echo.seen)
    headers = [("X-Request-Id", MARK), ("User-Agent", MARK), ("Connection", "x-request-id, User-Agent, content-length")]
    found = answers_in(exchanged(door.rig.url, request_text("POST", door.path, [*headers, ("Connection", "close")], GOOD)))
    door.check(found[0], before, "passes")


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Encoding", "gzip"), ("Content-Encoding", "identity")],
        [("Content-Type", "application/json"), ("content-type", "text/html")],
        [("Guard-Proof", "a"), ("Guard-Proof", "a")],
        [(LENGTH, "0"), (LENGTH.lower(), "1")],
        [("X-A", "\x01")],
        [("X-A", "b\0c")],
        [("X-A", "a\x0bb")],
        [("X-Folded", f"a\r\n {MARK}")],
        [("X-A", "b" * 17_000)],
        [(f"X-{number}", "b" * 100) for number in range(200)],
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(door, headers):
    before = len(door.echo.seen)
    found = answers_in(exchanged(door.rig.url, request_text("POST", door.path, [("Connection", "close"), *headers], GOOD)))
    assert [answer.status for answer in found] in ([400], [415], [431])
    assert len(door.echo.seen) == before


HOME = "/v2/models/digits"
TARGETS = [
    "*", f"http://guard{HOME}/infer", f"http://elsewhere{HOME}/infer", f"//guard{HOME}/infer", f"/{HOME}/infer", f"{HOME}//infer",
    f"{HOME}/infer/", f"{HOME}/infer//",
    f"{HOME}/infer/.", f"{HOME}/./infer", f"{HOME}/../digits/infer", "/v2/../v2/models/digits/infer", f"{HOME}/infer/../infer",
    f"{HOME}%2finfer", f"{HOME}%2Finfer", f"{HOME}/%69nfer",
    f"{HOME}/infer%00", f"{HOME}/infer%20", f"{HOME}/infer;a=1", f"{HOME};a=1/infer", f"{HOME}/infer#a", f"{HOME}/infer?a=1",
    f"{HOME}/infer?", f"{HOME}/infer%3fa", f"{HOME}\\infer",
    f"{HOME.upper()}/infer", f"{HOME}/INFER", "/v2/models/Digits/infer", "/v2/models/digits%2f..%2fother/infer", "/v2/models/other/infer",
    "/v2/models//infer", "/v2/models/infer",
    f"{HOME}/versions/1/infer", f"{HOME}/versions//infer", f"{HOME}/generate", f"{HOME}/generate_stream", f"{HOME}/infer_stream",
    f"{HOME}/stats", f"{HOME}/config", f"{HOME}/trace/setting",
    "/v2/repository/index", "/v2/repository/models/digits/unload", "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/a/register", "/v2/logging", "/v1/models/digits:predict",
    "/metrics", "/healthz", "/readyz", "/openapi.json", "/reload", "/", f"{HOME}/infer/infer", f"{HOME}/explain",
    "/v2/models/d%C4%B1gits/infer",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_another_target_is_another_door_and_closed(door, target):
    before, gets = len(door.echo.seen), len(door.echo.asked)
    answer = asked(door.rig.url, target, GOOD, [("Content-Type", "application/json")])
    door.check(answer, before, "either" if target == f"{HOME}/infer?" else "refused")
    if answer.status != 200:
        assert len(door.echo.asked) == gets


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "Post", "POSTS", "PROPFIND", "MOVE", "PURGE"]
)
def test_another_method_is_another_door_and_closed(door, method):
    before, gets = len(door.echo.seen), len(door.echo.asked)
    door.check(asked(door.rig.url, door.path, GOOD, [], method), before, "refused")
    assert len(door.echo.asked) == gets


@pytest.mark.parametrize("target", ["/v2/health/live", "/v2/health/ready", HOME, f"{HOME}/ready", "/v2"])
def test_what_passes_unscored_is_asked_without_a_body_or_headers_of_the_clients(door, target):
    before, gets = len(door.echo.seen), len(door.echo.asked)
    answer = asked(door.rig.url, target, GOOD, [("X-HTTP-Method-Override", "POST"), ("X-Original-URL", door.path)], "GET")
    assert answer.status == 200
    assert door.echo.asked[gets:] == [f"GET {target}"]
    assert len(door.echo.seen) == before
    for method in ("POST", "PUT", "DELETE"):
        assert asked(door.rig.url, target, GOOD, [], method).status == 404
    assert len(door.echo.asked) == gets + 1


# ---------------------------------------------------------------------- framing


def chunked(body: bytes, size: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {HOME}/infer HTTP/1.1", "Host: guard", "Connection: close", *lines]).encode("latin-1") + b"\r\n\r\n"


CHUNKED = head("Transfer-Encoding: chunked")
FRAMINGS = {
    "one chunk": CHUNKED + chunked(GOOD, 10**6),
    "many chunks": CHUNKED + chunked(GOOD, 1),
    "chunks with extensions": CHUNKED + chunked(GOOD, 100, b';a="b";' + MARK.encode()),
    "trailers": CHUNKED + chunked(GOOD, 500, trailers=b"X-Trailer: " + MARK.encode() + b"\r\nContent-Length: 5\r\nGuard-Proof: a\r\n"),
    "chunk sizes with zeros before": CHUNKED + b"0000%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD),
    "expectation": head("Expect: 100-continue", f"Content-Length: {len(GOOD)}") + GOOD,
    "an upgrade": head("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", f"Content-Length: {len(GOOD)}") + GOOD,
    "a websocket": head("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA",
    f"Content-Length: {len(GOOD)}") + GOOD,
    "HTTP/1.0": (head(f"Content-Length: {len(GOOD)}") + GOOD).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMINGS)
def test_however_a_body_is_framed_it_is_the_same_body(door, name):
    before = len(door.echo.seen)
    (answer,) = answers_in(exchanged(door.rig.url, FRAMINGS[name]))
    door.check(answer, before, "passes")
    assert "content-length" in door.echo.seen[-1].headers
    assert "transfer-encoding" not in door.echo.seen[-1].headers


def test_a_body_in_too_many_pieces_is_refused():
    with opened(EchoUpstream(), listen={"body_pieces": 50}) as door:
        (answer,) = answers_in(exchanged(door.rig.url, CHUNKED + chunked(GOOD, 1)))
        assert answer.status == 400
        assert door.echo.seen == []


def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(door):
    (answer,) = answers_in(exchanged(door.rig.url, head(f"Content-Length: {10**12}")))
    assert answer.status == 413


def test_nothing_of_all_this_was_a_failure_of_ours(door):
    assert [decision for decision in door.rig.noted.decisions if decision.outcome == "failed"] == []
