"""A model server that is slow, half-open, torn, enormous, garbled or gone: a clear status, nothing leaked, and back by itself."""

import json
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from fault_proxy import GOOD_HEAD, Fault, faulty
from honest_proofs import header_of, proof_of
from rig import DEMO, INFER, demo_queries, infer_message, rigged

from sameguard.protocol import read_problem
from sameguard.server import service as service_module
from sameguard.server.demo_server import DemoServer

DIGITS, GLYPHS = demo_queries()


def answer(rows: list[list[float]], **more: object) -> bytes:
    tensor = {"name": "logits", "datatype": "FP32", "shape": [len(rows), 10], "data": [value for row in rows for value in row]}
    body = json.dumps({"model_name": "digits", "outputs": [{**tensor, **more}]}).encode()
    return GOOD_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


FAULTS = {
    "resets at once": (b"", 502),
    "stops inside its head": (b"HTTP/1.1 200 O", 502),
    "stops inside its body": (GOOD_HEAD + b"Content-Length: 1000\r\n\r\n{", 502),
    "no JSON": (GOOD_HEAD + b"Content-Length: 5\r\n\r\nhello", 502),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", 502),
    "too large by its word": (GOOD_HEAD + b"Content-Length: 99999999999\r\n\r\n", 502),
    "NaN": (answer([[0.0] * 9]).replace(b"0.0]", b"0.0, NaN]"), 502),
    "too few numbers": (answer([[0.0] * 9]), 502),
    "rows that nobody asked for": (answer([[0.0] * 10] * 2), 502),
    "another output": (answer([[0.0] * 10], name="other"), 502),
    "a redirect": (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 502),
    "an error of its own": (b'HTTP/1.1 500 Oops\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{"error":"out of"}', 500),
    "a long error of its own": (b"HTTP/1.1 500 Oops\r\nContent-Length: 99999\r\nConnection: close\r\n\r\n" + b"x" * 99_999, 502),
    "not found": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 404),
    "says nothing": (Fault.SILENT, 504),
    "never comes to an end": (Fault.DRIBBLE, 504),
    "too large, and does not say so": (Fault.FLOOD, 502),
}  # fmt: skip


def asked(url: str, query: np.ndarray, proof: str | None = None) -> tuple[int, bytes]:
    headers, body = infer_message(query)
    request = urllib.request.Request(url + INFER, body, {**headers, **({} if proof is None else {"Guard-Proof": proof})})
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def faulty_rig():
    from rig import served

    with (
        served(DemoServer(DEMO / "victim.onnx")) as inner,
        faulty(inner) as (upstream, address),
        rigged(upstream_url=address, upstream={"timeout_seconds": 2.0}, cache={"seconds": 0}) as rig,
    ):
        yield upstream, rig


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_answer_is_a_clear_status_and_the_next_good_one_passes(faulty_rig, name):
    upstream, rig = faulty_rig
    upstream.fault, status = FAULTS[name]
    found, body = asked(rig.url, DIGITS[:1])
    upstream.fault = Fault.NONE
    assert found == status, rig.noted.decisions[-1]
    if status in (502, 504):
        problem = read_problem(found, body)
        assert problem.kind == "upstream-error"
        assert problem.error
        assert "127.0.0.1" not in body.decode()
    assert asked(rig.url, DIGITS[:1])[0] == 200


def test_who_has_paid_for_a_failed_answer_passes_once_more(faulty_rig):
    upstream, rig = faulty_rig
    query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None])[0] == 402)
    proof = header_of(proof_of(json.loads(asked(rig.url, query)[1])["challenge"]))
    upstream.fault = FAULTS["resets at once"][0]
    status, body = asked(rig.url, query, proof)
    upstream.fault = Fault.NONE
    assert status == 502
    retry = read_problem(502, body).extensions["retry_proof"]
    assert asked(rig.url, 1.0 - query, retry)[0] == 402
    assert asked(rig.url, query, retry)[0] == 200
    assert asked(rig.url, query, retry)[0] == 402
    assert asked(rig.url, query, proof)[0] == 402


@pytest.mark.parametrize("trouble", ["408 Request Timeout", "425 Too Early", "429 Too Many Requests"])
def test_who_has_paid_passes_once_more_where_the_model_server_says_later(faulty_rig, trouble):
    upstream, rig = faulty_rig
    query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None])[0] == 402)
    proof = header_of(proof_of(json.loads(asked(rig.url, query)[1])["challenge"]))
    upstream.fault = f"HTTP/1.1 {trouble}\r\nRetry-After: 7\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
    headers, body = infer_message(query)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(rig.url + INFER, body, {**headers, "Guard-Proof": proof}), timeout=30)
    upstream.fault = Fault.NONE
    with caught.value as error:
        assert (error.code, error.headers["Retry-After"]) == (502, "7")
        retry = read_problem(502, error.read()).extensions["retry_proof"]
    assert asked(rig.url, query, retry)[0] == 200


def test_a_query_that_the_model_server_refuses_has_cost_its_proof(faulty_rig):
    upstream, rig = faulty_rig
    query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None])[0] == 402)
    proof = header_of(proof_of(json.loads(asked(rig.url, query)[1])["challenge"]))
    upstream.fault = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    refused = asked(rig.url, query, proof)
    upstream.fault = Fault.NONE
    assert refused == (400, b"{}")
    assert asked(rig.url, query, proof)[0] == 402


@pytest.mark.parametrize("name", ["resets at once", "no JSON", "a redirect"])
def test_a_model_server_that_keeps_failing_makes_the_guard_unready_until_it_is_back(name, faulty_rig, monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.1)
    upstream, rig = faulty_rig
    upstream.fault = FAULTS[name][0]
    for _ in range(3):
        asked(rig.url, DIGITS[:1])
    assert not rig.run(rig.service.readiness()).ready
    upstream.fault = Fault.NONE
    deadline = time.monotonic() + 20
    while not rig.run(rig.service.readiness()).ready and time.monotonic() < deadline:
        time.sleep(0.05)
    assert rig.run(rig.service.readiness()).ready
    assert asked(rig.url, DIGITS[:1])[0] == 200


def test_an_app_that_was_never_started_answers_503():
    from rig import served, settings_for

    from sameguard.server.app import create_app

    with served(create_app(settings_for("http://127.0.0.1:1"))) as url:
        status, body = asked(url, DIGITS[:1])
    assert status == 503
    assert read_problem(503, body).kind == "unavailable"


def test_until_the_model_server_has_been_seen_nothing_is_answered(monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.1)
    from rig import served

    with served(DemoServer(DEMO / "victim.onnx")) as inner, faulty(inner) as (_, address):
        host = address.rsplit(":", 1)[0]
        with rigged(upstream_url=f"{host}:1", policy={"kind": "reject"}) as rig:
            status, body = asked(rig.url, DIGITS[:1])
            assert status == 503
            assert read_problem(503, body).kind == "unavailable"
            assert not rig.run(rig.service.readiness()).ready
    assert rig.noted.decisions[0].reason == "upstream-unchecked"
