"""What was scored is what the model server decodes, whatever a client sends: an upstream with a lenient reader of its own tells what it saw."""

import gzip
import itertools
import json
import struct
import time
import urllib.error
import urllib.request
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import INFER, rigged

# the servers beside us draw random numbers in their threads while hypothesis draws its own
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
MARK = "client-wrote-this"
PIXELS = [round(0.5 + 0.4 * np.sin(index), 6) for index in range(64)]
TENSOR: dict[str, Any] = {"name": "digit", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": PIXELS}


class Echo:
    """Reads bodies with json and numpy alone, last key wins, as a careless server would; answers even logits."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.decoded: list[np.ndarray] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        status, body = 200, b'{"name":"echo","extensions":["binary_tensor_data"]}'
        if scope["method"] == "POST":
            content = b""
            while True:
                message = await receive()
                content += message.get("body", b"")
                if not message.get("more_body"):
                    break
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            self.bodies.append(content)
            self.headers.append(headers)
            self.decoded.append(self.read(content, headers))
            rows = len(self.decoded[-1])
            tensor = {"name": "logits", "datatype": "FP32", "shape": [rows, 10], "data": [0.0] * (10 * rows)}
            body = json.dumps({"model_name": "digits", "outputs": [tensor]}).encode()
        elif scope["raw_path"] == b"/v2/models/digits":
            status, body = 404, b"{}"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    @staticmethod
    def read(content: bytes, headers: dict[str, str]) -> np.ndarray:
        length = int(headers.get("inference-header-content-length", len(content)))
        tensor = json.loads(content[:length])["inputs"][-1]
        if "data" in tensor:
            return np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        return np.frombuffer(content[length:], "<f4").reshape(tensor["shape"])


@pytest.fixture(scope="module")
def rig():
    with rigged(Echo(), mode="shadow", cache={"seconds": 0}, canary={"enabled": False}, listen={"body_bytes": 2**20}) as running:
        yield running


def lowered(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def sent(rig, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(rig.url + INFER, body, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, lowered(found.headers), found.read()
    except urllib.error.HTTPError as error:
        return error.code, lowered(error.headers), error.read()


def check(rig, body: bytes, headers: dict[str, str] | None = None, *, passes: bool | None = None) -> int:
    """Refused with a problem and never sent on, or sent on exactly as it was scored, with nothing of the client's own bytes."""
    before = len(rig.upstream.bodies)
    status, found, answer = sent(rig, body, headers)
    if passes is not None:
        assert (status == 200) == passes, answer
    if status == 200:
        assert len(rig.upstream.bodies) == before + 1
        scored = scored_last(rig)
        assert np.array_equal(rig.upstream.decoded[-1], scored)
        assert MARK.encode() not in rig.upstream.bodies[-1]
        assert not any(MARK in value for value in rig.upstream.headers[-1].values())
    else:
        assert len(rig.upstream.bodies) == before
        assert 400 <= status < 500, answer
        document = json.loads(answer)
        assert document["error"]
        assert found["content-type"] == "application/problem+json"
        assert found["cache-control"] == "no-store"
    return status


def scored_last(rig) -> np.ndarray:
    """The array that was scored last; observers are told after the answer has gone out."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [item.queries for item in rig.noted.evidence if item is not None]
        if len(found) == len(rig.upstream.bodies):
            return found[-1]
        time.sleep(0.002)
    raise AssertionError("the observer was not told")


def plain(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**TENSOR, **changes}]}


def text(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_plain_request_passes_as_it_was_scored(rig):
    check(rig, text(plain()), passes=True)
    check(rig, text({"id": MARK, **plain()}), {"X-Unknown": MARK, "User-Agent": "x", "Cookie": MARK}, passes=True)
    check(rig, text(plain(data=np.array(PIXELS).reshape(1, 1, 8, 8).tolist())), passes=True)


RAW = json.dumps(plain())
DATA = json.dumps(PIXELS)
REFUSED = {
    "data twice": RAW.replace('"data":', f'"data": {json.dumps([0.0] * 64)}, "data":', 1),
    "inputs twice": RAW[:-1] + ', "inputs": []}',
    "an escaped duplicate": RAW.replace('"data":', f'"d\\u0061ta": {json.dumps([0.0] * 64)}, "data":', 1),
    "another case": RAW.replace('"data"', '"Data"'),
    "a look-alike letter": RAW.replace('"data"', '"d\u0430ta"'),
    "two inputs": json.dumps({"inputs": [TENSOR, TENSOR]}),
    "another input": json.dumps(plain(name="other")),
    "an input too many": json.dumps({"inputs": [TENSOR, {**TENSOR, "name": "mask"}]}),
    "an unknown member": json.dumps({**plain(), "extra": MARK}),
    "an unknown member of the input": json.dumps(plain(extra=MARK)),
    "an unknown parameter": json.dumps({**plain(), "parameters": {"sequence_id": 1}}),
    "shared memory": json.dumps(plain(parameters={"shared_memory_region": "a", "shared_memory_byte_size": 256})),
    "a codec": json.dumps(plain(parameters={"content_type": "base64"})),
    "binary size beside data": json.dumps(plain(parameters={"binary_data_size": 256})),
    "an output that is not served": json.dumps({**plain(), "outputs": [{"name": "features"}]}),
    "classification": json.dumps({**plain(), "outputs": [{"name": "logits", "parameters": {"classification": 3}}]}),
    "NaN": RAW.replace(str(PIXELS[0]), "NaN", 1),
    "Infinity": RAW.replace(str(PIXELS[0]), "-Infinity", 1),
    "1e999": RAW.replace(str(PIXELS[0]), "1e999", 1),
    "a number as text": RAW.replace(str(PIXELS[0]), f'"{PIXELS[0]}"', 1),
    "true for a number": RAW.replace(str(PIXELS[0]), "true", 1),
    "null for a number": RAW.replace(str(PIXELS[0]), "null", 1),
    "out of bounds": json.dumps(plain(data=[2.0, *PIXELS[1:]])),
    "too few numbers": json.dumps(plain(data=PIXELS[:-1])),
    "too many numbers": json.dumps(plain(data=[*PIXELS, 0.0])),
    "a shape that overflows": json.dumps(plain(shape=[2**62, 4, 8, 8])),
    "a negative shape": json.dumps(plain(shape=[-1, 1, 8, 8])),
    "a shape of fractions": json.dumps(plain(shape=[1.0, 1, 8, 8])),
    "no rows": json.dumps(plain(shape=[0, 1, 8, 8], data=[])),
    "another shape of equal size": json.dumps(plain(shape=[1, 8, 8, 1])),
    "a flat shape": json.dumps(plain(shape=[1, 64])),
    "another datatype": json.dumps(plain(datatype="FP64")),
    "ragged lists": json.dumps(plain(data=[PIXELS[:63], PIXELS[63:]])),
    "deep nesting": '{"inputs":' + "[" * 100_000 + "]" * 100_000 + "}",
    "two documents": RAW + RAW,
    "a byte order mark": "\ufeff" + RAW,
    "a comment": RAW + " // hello",
    "nothing": "",
    "a list": "[]",
    "another model's name": json.dumps({**plain(), "model_name": "other"}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_take_for_two_things_is_refused(rig, name):
    check(rig, REFUSED[name].encode(), passes=False)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings_of_the_text_are_refused(rig, encoding):
    check(rig, (RAW[:-1] + ', "id": "\u00e9"}').encode(encoding), passes=False)


GZIPPED = gzip.compress(RAW.encode())
BODIES = {
    "gzip": (GZIPPED, {"Content-Encoding": "gzip"}, True),
    "deflate": (zlib.compress(RAW.encode()), {"Content-Encoding": "deflate"}, True),
    "gzip within gzip": (gzip.compress(GZIPPED), {"Content-Encoding": "gzip, gzip"}, False),
    "a second member": (GZIPPED + gzip.compress(b"x"), {"Content-Encoding": "gzip"}, False),
    "bytes behind it": (GZIPPED + b"x", {"Content-Encoding": "gzip"}, False),
    "cut off": (GZIPPED[:-4], {"Content-Encoding": "gzip"}, False),
    "a bomb": (gzip.compress(b" " * 20_000_000), {"Content-Encoding": "gzip"}, False),
    "not compressed": (RAW.encode(), {"Content-Encoding": "gzip"}, False),
    "brotli": (RAW.encode(), {"Content-Encoding": "br"}, False),
    "compressed and not told": (GZIPPED, {}, False),
    "another media type": (RAW.encode(), {"Content-Type": "text/html"}, False),
    "another character set": (RAW.encode(), {"Content-Type": "application/json; charset=utf-16"}, False),
}
VALUES = np.array(PIXELS, "<f4").tobytes()
HEAD = text({"inputs": [{"name": "digit", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": 256}}]})
LENGTH = "Inference-Header-Content-Length"
BINARY = {
    "plain": (HEAD + VALUES, {LENGTH: str(len(HEAD))}, True),
    "a raw tensor": (VALUES, {LENGTH: "0"}, True),
    "bytes behind it": (HEAD + VALUES + b"\0\0\0\0", {LENGTH: str(len(HEAD))}, False),
    "bytes missing": (HEAD + VALUES[:-1], {LENGTH: str(len(HEAD))}, False),
    "a length that is one off": (HEAD + VALUES, {LENGTH: str(len(HEAD) - 1)}, False),
    "a length with a sign": (HEAD + VALUES, {LENGTH: f"+{len(HEAD)}"}, False),
    "a length beyond the body": (HEAD + VALUES, {LENGTH: "99999"}, False),
    "a length that overflows": (HEAD + VALUES, {LENGTH: str(2**64 + len(HEAD))}, False),
    "a size that is one off": (HEAD.replace(b"256", b"252") + VALUES, {LENGTH: str(len(HEAD))}, False),
    "a size as text": (HEAD.replace(b"256", b'"6"') + VALUES, {LENGTH: str(len(HEAD))}, False),
    "NaN as bytes": (HEAD + struct.pack("<f", float("nan")) + VALUES[4:], {LENGTH: str(len(HEAD))}, False),
    "no length": (HEAD + VALUES, {}, False),
}


@pytest.mark.parametrize("name", [*BODIES, *(f"binary: {name}" for name in BINARY)])
def test_a_body_is_read_one_way_or_not_at_all(rig, name):
    body, headers, passes = {**BODIES, **{f"binary: {key}": value for key, value in BINARY.items()}}[name]
    media = {} if name in BODIES else {"Content-Type": "application/octet-stream"}
    check(rig, body, {**media, **headers}, passes=passes)


@pytest.mark.parametrize("value", [-0.0, 1e-45, 1e-38, 1.0 + 0.5 / 255, -0.4 / 255, 0.1 + 0.2])
def test_what_is_nearly_on_the_grid_is_scored_as_it_is_sent_on(rig, value):
    check(rig, text(plain(data=[value, *PIXELS[1:]])), passes=True)


def test_headers_that_other_servers_act_upon_do_not_travel(rig):
    names = (
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "X-Forwarded-For",
        "Forwarded",
        "Authorization",
        "Guard-Pass",
        "Prefer",
        "TE",
    )
    check(rig, text(plain()), {**dict.fromkeys(names, MARK)}, passes=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*TENSOR, "inputs", "outputs", "parameters", "id", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_json_ends_in_a_refusal_or_in_what_was_scored(rig, document):
    check(rig, json.dumps(document).encode())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(TENSOR)), JSON)
def test_any_member_of_a_good_request_may_be_replaced(rig, member, value):
    check(rig, json.dumps(plain(**{member: value})).encode())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300),
    st.sampled_from([{}, {LENGTH: "0"}, {LENGTH: "17"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}]),
)
def test_any_bytes_end_in_a_refusal_or_in_what_was_scored(rig, body, headers):
    check(rig, body, headers)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(RAW) - 1), st.sampled_from(list('{}[]",:0123456789eE+-. \\abN')))
def test_any_letter_of_a_good_request_may_be_replaced(rig, position, letter):
    check(rig, (RAW[:position] + letter + RAW[position + 1 :]).encode())


def test_no_answer_of_all_this_was_a_failure_of_ours(rig):
    reasons = {decision.reason for decision in rig.noted.decisions if decision.outcome == "failed"}
    assert reasons <= {""}
    assert len(list(itertools.islice(rig.noted.decisions, 100))) == 100
