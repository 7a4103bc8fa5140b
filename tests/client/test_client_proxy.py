"""The client-proxy: real tritonclient and raw sockets pass through it, and are never asked for a proof."""

import asyncio
import contextlib
import http.client
import json
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from stub_guard import MODEL, StubGuard, die_half_way, problem, respond, served

from sameguard.client import ClientConfig, SolveLimits, create_proxy
from sameguard.client.proxy import is_loopback
from sameguard.errors import ConfigurationError
from sameguard.protocol import OpenInference, ask
from stand_ins import linear_victim, smooth_images

WHITE = smooth_images(2)
WHITE[:, 0, 0, 0] = 1
DIALECT = OpenInference(MODEL)


@pytest.fixture
def guard():
    return StubGuard(model=replace(MODEL, binary_tensors=True))


@pytest.fixture
def behind(guard):
    """Starts a proxy before the guard, or before another application."""
    with contextlib.ExitStack() as stack:

        def start(app=None, **more):
            upstream = stack.enter_context(served(app or guard))
            return stack.enter_context(served(create_proxy(upstream, **more), lifespan="on"))

        yield start


def call(url, method="POST", path=DIALECT.infer_path, body=b"", headers=None):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def infer(url, queries=WHITE, **headers):
    message = DIALECT.build_infer(ask(queries, MODEL))
    return call(url, body=message.body, headers={**message.headers, **headers})


# ---------------------------------------------------------------------- through it


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_real_tritonclient_gets_its_answer_where_the_guard_asks_for_work(guard, behind, binary, compression):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    client = triton.InferenceServerClient(urlsplit(behind()).netloc)
    try:
        tensor = triton.InferInput("input", list(WHITE.shape), "FP32")
        tensor.set_data_from_numpy(WHITE, binary_data=binary)
        outputs = [triton.InferRequestedOutput("probs", binary_data=binary)]
        found = client.infer("digits", [tensor], outputs=outputs, request_compression_algorithm=compression, request_id="7")
        np.testing.assert_allclose(found.as_numpy("probs"), linear_victim().query(WHITE).probs, atol=1e-7)
        assert client.get_model_metadata("digits")["name"] == "digits"
    finally:
        client.close()
    assert ["guard-proof" in heard.headers for heard in guard.heard] == [False, True]
    assert "content-type" not in guard.heard[0].headers  # tritonclient sends none, and none is made up


def test_a_refusal_stays_one_that_tritonclient_reads(guard, behind):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    guard.suspicion = "reject"
    client = triton.InferenceServerClient(urlsplit(behind()).netloc)
    tensor = triton.InferInput("input", list(WHITE.shape), "FP32")
    tensor.set_data_from_numpy(WHITE)
    try:
        with pytest.raises(triton.InferenceServerException, match="this query is not answered") as caught:
            client.infer("digits", [tensor])
        assert caught.value.status() == "403"
    finally:
        client.close()


def test_bodies_and_headers_pass_whole_but_for_those_between_neighbours(guard, behind):
    url = behind(headers={"X-Api-Key": "ours"})
    status, headers, body = infer(
        url, Authorization="Bearer t", Connection="close, X-Private", **{"X-Private": "1", "TE": "trailers", "Accept-Encoding": "gzip"}
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["model_name"] == "digits"
    sent = guard.heard[1].headers
    assert sent.keys() == {"host", "content-length", "content-type", "authorization", "accept-encoding", "x-api-key", "guard-proof"}
    assert guard.heard[1].body == guard.heard[0].body


def test_paths_queries_methods_and_compressed_answers_pass_as_they_are(behind):
    seen = []

    async def echo(scope, receive, send):
        seen.append((scope["method"], scope["raw_path"], scope["query_string"]))
        headers = {"content-encoding": "gzip", "set-cookie": "a=b", "connection": "x-hop", "x-hop": "1", "x-kept": "é"}
        fault = respond(200, headers, b"" if scope["method"] == "HEAD" else b"\x1f\x8bnot looked at")
        await fault(receive, send)

    url = behind(echo)
    status, headers, body = call(url, "DELETE", "/a%2Fb/../c//d?x=%20&y", headers={"Accept": "*/*"})
    assert (status, body) == (200, b"\x1f\x8bnot looked at")
    assert (headers["content-encoding"], headers["set-cookie"], headers["x-kept"]) == ("gzip", "a=b", "é".encode().decode("latin-1"))
    assert "x-hop" not in headers
    assert call(url, "HEAD", "/only")[2] == b""
    assert seen == [("DELETE", b"/a%2Fb/../c//d", b"x=%20&y"), ("HEAD", b"/only", b"")]


def test_overload_is_waited_out_and_batches_that_are_too_costly_pass_through(guard, behind):
    url = behind(config=ClientConfig(first_wait_seconds=0.001))
    guard.faults.extend([problem("unavailable"), die_half_way])
    assert infer(url)[0] == 200
    guard.costly_rows = 0
    status, _, body = infer(url, WHITE + np.float32(0))
    assert (status, json.loads(body)["type"]) == (413, "urn:sameguard:problem:batch-too-costly")


def test_a_challenge_that_the_proxy_does_not_pay_is_the_clients_to_see(guard, behind):
    guard.work = 2**29
    url = behind(config=ClientConfig(solving=SolveLimits(max_seconds=0.01)))
    status, headers, body = infer(url)
    assert (status, headers["content-type"], headers["cache-control"]) == (402, "application/problem+json", "no-store")
    assert "challenge" in json.loads(body)


def test_a_clients_own_proof_goes_with_its_first_request_and_is_replaced_where_it_does_not_count(guard, behind):
    assert infer(behind(), **{"Guard-Proof": "mine"})[0] == 200
    assert [heard.headers.get("guard-proof", "")[:4] for heard in guard.heard] == ["mine", "", "eyJj"]  # {"ch of challenge, in base64


def test_a_guard_that_is_gone_is_a_502_with_an_error_member():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with served(create_proxy(dead, config=ClientConfig(attempts=1)), lifespan="on") as url:
            status, _, body = infer(url)
    assert status == 502
    assert "must answer, got ClientConnectorError" in json.loads(body)["error"]


def test_an_answer_that_is_too_large_is_a_502(guard, behind):
    guard.faults.append(respond(200, {}, b"x" * 5000))
    status, _, body = infer(behind(config=ClientConfig(response_bytes=1000)))
    assert (status, "must have at most 1,000 bytes" in json.loads(body)["error"]) == (502, True)


# ---------------------------------------------------------------------- who may call it


def test_bodies_are_bounded(guard, behind):
    url = behind(body_bytes=100)
    assert call(url, body=b"x" * 101)[0] == 413
    assert guard.heard == []


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "["},
                                     {"Origin": "http://evil.example"}])  # fmt: skip
def test_web_pages_cannot_use_it(guard, behind, headers):
    assert infer(behind(), **headers)[0] == 403
    assert guard.heard == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:8090"])
def test_programs_on_this_machine_can(behind, host):
    assert infer(behind(), Host=host)[0] == 200


def test_other_names_can_be_allowed_all_of_them_too(behind):
    assert infer(behind(hosts=("box",)), Host="box:1")[0] == 200
    assert infer(behind(hosts=None), Host="anything")[0] == 200


def test_an_address_instead_of_a_path_leads_nowhere(guard, behind):
    assert call(behind(), "GET", "http://other.example/v2")[0] == 404
    assert guard.heard == []


def test_only_loopback_is_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match="body_bytes must be at least 1, got 0"):
        create_proxy("http://host", body_bytes=0)
    with pytest.raises(ConfigurationError, match="url must be http://host"):
        create_proxy("host:80")


def test_websockets_are_not_spoken():
    sent = []

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "root_path": ""}
    asyncio.run(create_proxy("http://127.0.0.1:1")(scope, None, send))
    assert sent == ["websocket.close"]
