"""The client-proxy: real tritonclient and raw sockets pass through it, and are never asked for a proof."""

import asyncio
import base64
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from stub_guard import MODEL, StubGuard, die_half_way, never_answer, problem, respond, served

from sameguard.client import ClientConfig, SolveLimits, create_proxy
from sameguard.client.proxy import is_loopback
from sameguard.client.proxy_serving import serve_proxy
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


def test_overload_is_waited_out(guard, behind):
    url = behind(config=ClientConfig(first_wait_seconds=0.001))
    guard.faults.extend([problem("unavailable"), die_half_way])
    assert infer(url)[0] == 200


@pytest.mark.parametrize("limits", [SolveLimits(max_seconds=0.01), SolveLimits(call_seconds=0.01)])
def test_a_challenge_that_the_proxy_does_not_pay_is_the_clients_to_see_whole(guard, behind, caplog, limits):
    guard.work = 2**29
    url = behind(config=ClientConfig(solving=limits))
    status, headers, body = infer(url)
    assert (status, headers["content-type"], headers["cache-control"]) == (402, "application/problem+json", "no-store")
    both_rows = DIALECT.parse_infer(guard.heard[0].body, guard.heard[0].headers).digest(MODEL)
    assert json.loads(body)["challenge"]["parameters"]["data"]["d"] == f"sha-256=:{base64.b64encode(both_rows).decode()}:"
    assert "must be solved within" in caplog.text


def test_a_challenge_that_is_none_is_the_clients_to_see(guard, behind, caplog):
    guard.faults.append(problem("proof-of-work-required", 402, challenge={"parameters": {}}))
    assert infer(behind())[0] == 402
    assert "challenge must be an object" in caplog.text


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_batch_that_is_too_costly_is_sent_in_parts_and_tritonclient_sees_one_answer(guard, behind, binary, compression):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    guard.costly_rows = 1
    queries = smooth_images(7)
    queries[[0, 1, 5], 0, 0, 0] = 1
    client = triton.InferenceServerClient(urlsplit(behind()).netloc)
    try:
        tensor = triton.InferInput("input", list(queries.shape), "FP32")
        tensor.set_data_from_numpy(queries, binary_data=binary)
        outputs = [triton.InferRequestedOutput("probs", binary_data=binary)]
        found = client.infer("digits", [tensor], outputs=outputs, request_compression_algorithm=compression, request_id="7")
        np.testing.assert_allclose(found.as_numpy("probs"), linear_victim().query(queries).probs, atol=1e-7)
        assert found.get_response()["id"] == "7"
    finally:
        client.close()
    assert guard.batches == [7, 3, 1, 1, 2, 2, 4, 4]


def test_a_price_that_takes_too_long_for_the_whole_is_paid_in_parts(guard, behind):
    limits = SolveLimits(max_seconds=0.5)
    challenge = guard.challenge
    guard.challenge = lambda bound, rows: challenge(bound, rows if rows == 1 else 2**28)
    assert infer(behind(config=ClientConfig(solving=limits)))[0] == 200
    assert guard.batches == [2, 1, 1, 1, 1]


def test_a_single_row_that_is_too_costly_refuses_the_whole(guard, behind):
    guard.costly_rows = 0
    status, _, body = infer(behind())
    assert (status, json.loads(body)["type"]) == (413, "urn:sameguard:problem:batch-too-costly")
    assert guard.batches == [2, 1]


def test_a_part_that_is_refused_refuses_the_whole_and_the_rest_is_not_paid_for(guard, behind):
    guard.faults.extend([problem("batch-too-costly", 413), problem("query-rejected", 403)])
    status, _, body = infer(behind())
    assert (status, json.loads(body)["type"]) == (403, "urn:sameguard:problem:query-rejected")
    assert len(guard.heard) == 2


def test_a_part_that_is_not_paid_for_gives_the_client_no_challenge_that_is_not_its_own(guard, behind):
    guard.work = 2**29
    for more in ({"solving": SolveLimits(max_seconds=0.01)}, {"solving": SolveLimits(call_seconds=0.01)}, {"solve": False}):
        guard.faults.append(problem("batch-too-costly", 413))
        status, _, body = infer(behind(config=ClientConfig(**more)))
        assert (status, "challenge" in json.loads(body)) == (413, False)


def test_answers_that_cannot_be_joined_are_the_refusal_of_the_whole(guard, behind, caplog):
    guard.faults.extend([problem("batch-too-costly", 413), respond(200, {}, b"{}"), respond(200, {}, b"{}")])
    assert infer(behind())[0] == 413
    assert "answers to the halves of a batch of 2 rows cannot be joined" in caplog.text


def test_tf_serving_is_split_and_what_tells_no_rows_is_not(behind):
    asked = []

    async def app(scope, receive, send):
        body = json.loads((await receive())["body"])
        rows = body.get("instances", body.get("input"))
        asked.append(len(rows))
        if len(rows) > 2:
            await problem("batch-too-costly", 413)(receive, send)
        else:
            await respond(200, {"x-kept": "1"}, json.dumps({"predictions": rows}).encode())(receive, send)

    url = behind(app)
    status, headers, body = call(url, path="/v1/models/m:predict", body=json.dumps({"instances": [1, 2, 3, 4, 5]}).encode())
    assert (status, json.loads(body), headers["x-kept"]) == (200, {"predictions": [1, 2, 3, 4, 5]}, "1")
    assert asked == [5, 2, 3, 1, 2]
    assert call(url, path="/predict", body=json.dumps({"input": [1, 2, 3]}).encode())[0] == 413
    assert asked[5:] == [3]


# ---------------------------------------------------------------------- clients that go, and its own end


def test_work_for_a_client_that_has_gone_stops(guard, behind):
    guard.work = 2**29
    url = behind()
    message = DIALECT.build_infer(ask(WHITE, MODEL))
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as client:
        head = f"POST {DIALECT.infer_path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(message.body)}\r\n\r\n"
        client.sendall(head.encode() + message.body)
        waited_for(lambda: any(thread.name.startswith("sameguard-solver") for thread in threading.enumerate()))
    guard.work = 4
    assert infer(url)[0] == 200  # by the only solver, which is free again


def waited_for(found):
    deadline = time.monotonic() + 20
    while not found():
        assert time.monotonic() < deadline
    return found()


def test_a_proxy_that_is_told_to_stop_answers_what_is_under_way(guard):
    guard.faults.append(never_answer)
    with served(guard) as upstream:
        app = create_proxy(upstream)
        with served(app, lifespan="on") as url, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(infer, url)
            assert waited_for(lambda: guard.heard)
            app.state.stop()
            status, _, body = waiting.result(20)
    assert (status, json.loads(body)["detail"]) == (503, "this proxy is stopping")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_signals_end_the_command_without_a_traceback(signals):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-m", "sameguard", "client-proxy", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--upstream", f"http://127.0.0.1:{silent.getsockname()[1]}"], stderr=subprocess.PIPE, text=True
        )
        try:
            first = process.stderr.readline()
            url = re.search(r"http://127.0.0.1:\d+", first).group()
            if len(signals) > 1:
                client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
                client.request("GET", "/v2")
                silent.accept()[0].recv(1)
            for number in signals:
                process.send_signal(number)
            if len(signals) > 1:
                assert client.getresponse().status == 503
                client.close()
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_a_port_that_is_taken_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--host and --port must be free, got 127.0.0.1:{port}: Address already in use"):
            asyncio.run(serve_proxy(create_proxy("http://127.0.0.1:1"), "127.0.0.1", port, 4))


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
