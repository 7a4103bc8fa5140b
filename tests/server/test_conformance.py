"""The guard is not noticed: tritonclient, golden bodies and other dialects get through it what the model server itself would give them."""

import asyncio
import base64
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from echo_upstream import EchoUpstream, echo_of
from honest_proofs import header_of, proof_of
from hostile_bodies import LENGTH, raw_batch, tensor_of
from raw_client import asked
from rig import DEMO, INFER, Rig, demo_queries, rigged

from blur_artifact import write_blur_artifact
from sameguard.contract import InputContract
from sameguard.protocol.challenge import CHALLENGE_PREFIX
from sameguard.server.demo_server import DemoServer, demo_contract

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient[http] is not installed")
exceptions = pytest.importorskip("tritonclient.utils", reason="tritonclient[http] is not installed")

DIGIT = demo_contract().input
DIGITS, GLYPHS = demo_queries()
CODINGS = [None, "gzip", "deflate"]


@contextmanager
def triton(url: str, **options: Any) -> Iterator[Any]:
    client = http.InferenceServerClient(url.removeprefix("http://"), **options)
    try:
        yield client
    finally:
        client.close()


def input_of(queries: np.ndarray, *, binary: bool = True) -> Any:
    tensor = http.InferInput("digit", list(queries.shape), "FP32")
    tensor.set_data_from_numpy(queries, binary_data=binary)
    return tensor


def outputs_of(binary: bool | None) -> Any:
    return None if binary is None else [http.InferRequestedOutput("logits", binary_data=binary)]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigged(mode="shadow", cache={"seconds": 0}) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(rig) -> Iterator[Any]:
    with triton(rig.url) as client:
        yield client


@pytest.fixture(scope="module")
def direct(rig) -> Iterator[Any]:
    with triton(rig.service.settings.upstream.url) as client:
        yield client


def before_echo(url: str, **changes: Any) -> Any:
    """A guard that answers whatever it understands, before an echo."""
    return rigged(upstream_url=url, mode="shadow", cache={"seconds": 0}, canary={"enabled": False}, **changes)


def check_equal(through: Any, straight: Any) -> None:
    """Tensor for tensor, bit for bit, and the same words around them."""
    ours, its = through.get_response(), straight.get_response()
    assert ours == its
    for output in its["outputs"]:
        found, wanted = through.as_numpy(output["name"]), straight.as_numpy(output["name"])
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("binary_output", [None, True, False])
@pytest.mark.parametrize("binary_input", [True, False])
def test_answers_are_the_model_servers_tensor_for_tensor(guarded, direct, rows, binary_input, binary_output):
    options = {"outputs": outputs_of(binary_output), "request_id": f"request {rows}"}
    results = [client.infer("digits", [input_of(DIGITS[:rows], binary=binary_input)], **options) for client in (guarded, direct)]
    check_equal(*results)
    assert results[0].get_response()["id"] == f"request {rows}"
    assert results[0].as_numpy("logits").shape == (rows, 10)


@pytest.mark.parametrize("response", CODINGS)
@pytest.mark.parametrize("request_coding", CODINGS)
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_requests_and_answers_are_the_same_requests_and_answers(guarded, direct, request_coding, response, binary):
    options = {"request_compression_algorithm": request_coding, "response_compression_algorithm": response, "outputs": outputs_of(binary)}
    check_equal(*(client.infer("digits", [input_of(DIGITS[:3], binary=binary)], **options) for client in (guarded, direct)))


def test_headers_of_its_users_do_no_harm(guarded, direct):
    headers = {"X-Request-Id": "a", "Authorization": "Bearer b", "Accept-Encoding": "gzip", "X-Anything": "c"}
    check_equal(*(client.infer("digits", [input_of(DIGITS[:1])], headers=headers) for client in (guarded, direct)))


def test_its_asynchronous_requests_are_answered_each_by_its_own(rig):
    with triton(rig.url, concurrency=4) as client:
        waiting = [
            client.async_infer("digits", [input_of(digit[None])], request_id=str(number)) for number, digit in enumerate(DIGITS[:12])
        ]
        found = [(item.get_response()["id"], item.as_numpy("logits")) for item in (request.get_result() for request in waiting)]
    with triton(rig.service.settings.upstream.url) as client:
        wanted = [client.infer("digits", [input_of(digit[None])]).as_numpy("logits") for digit in DIGITS[:12]]
    assert [name for name, _ in found] == [str(number) for number in range(12)]
    assert np.array_equal(np.concatenate([values for _, values in found]), np.concatenate(wanted))


def test_its_asyncio_client_gets_the_same(rig):
    async def answers(url: str) -> list[np.ndarray]:
        client = aio.InferenceServerClient(url.removeprefix("http://"))
        try:
            found = await asyncio.gather(*(client.infer("digits", [input_of(digit[None])]) for digit in DIGITS[:6]))
            assert await client.is_server_live()
            return [result.as_numpy("logits") for result in found]
        finally:
            await client.close()

    ours, its = (asyncio.run(answers(url)) for url in (rig.url, rig.service.settings.upstream.url))
    assert np.array_equal(np.concatenate(ours), np.concatenate(its))


def test_health_and_metadata_are_the_model_servers(guarded, direct):
    for client in (guarded, direct):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
    assert guarded.get_server_metadata() == direct.get_server_metadata()
    assert guarded.get_model_metadata("digits") == direct.get_model_metadata("digits")
    assert not guarded.is_model_ready("other")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_model_config", ("digits",)),
        ("get_inference_statistics", ("digits",)),
        ("get_model_repository_index", ()),
        ("load_model", ("digits",)),
        ("unload_model", ("digits",)),
        ("get_trace_settings", ()),
        ("update_trace_settings", ("digits", {"trace_rate": "1"})),
        ("get_log_settings", ()),
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", ("a", "/a", 256)),
        ("get_cuda_shared_memory_status", ()),
        ("get_model_metadata", ("other",)),
        ("get_model_metadata", ("digits", "7")),
    ],
)
def test_what_it_can_ask_beyond_inference_is_told_to_be_closed(guarded, method, arguments):
    with pytest.raises(exceptions.InferenceServerException, match="there is no such door here") as caught:
        getattr(guarded, method)(*arguments)
    assert caught.value.status() == "404"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 5}, "request parameter 'timeout' is not understood here"),
        ({"sequence_id": 3, "sequence_start": True}, "request parameter 'sequence_"),
        ({"priority": 2}, "request parameter 'priority' is not understood here"),
        ({"model_version": "7"}, "there is no such door here"),
        ({"query_params": {"a": "b"}}, "query strings are not understood here"),
        ({"parameters": {"x": 1}}, "request parameter 'x' is not understood here"),
    ],
)
def test_what_it_can_say_beyond_the_tensor_is_refused_in_words_that_it_shows(guarded, options, message):
    with pytest.raises(exceptions.InferenceServerException, match=message):
        guarded.infer("digits", [input_of(DIGITS[:1])], **options)


def test_parameters_that_the_operator_allows_go_on_to_the_model_server():
    echo = EchoUpstream()
    with (
        echo.running() as url,
        before_echo(url, upstream={"parameters": ("priority",)}) as rig,
        triton(rig.url) as client,
    ):
        client.infer("digits", [input_of(DIGITS[:1])], priority=2)
    assert b'"parameters":{"priority":2}' in echo.seen[-1].wire


def test_refusals_and_challenges_are_told_in_words_and_a_proof_passes_as_a_header():
    with rigged(policy={"kind": "reject"}) as rig, triton(rig.url) as client:
        refused = [error for error in (_error(client, glyph[None]) for glyph in GLYPHS[:12]) if error is not None]
    assert {error.status() for error in refused} == {"403"}
    assert {error.message() for error in refused} == {"this query is not answered"}
    with rigged() as rig, triton(rig.url) as client:
        glyph, error = next((glyph[None], error) for glyph in GLYPHS if (error := _error(client, glyph[None])) is not None)
        assert error.status() == "402"
        challenge = json.loads(base64.b64decode(error.message().removeprefix(CHALLENGE_PREFIX)))
        result = client.infer("digits", [input_of(glyph)], headers={"Guard-Proof": header_of(proof_of(challenge))})
    assert result.as_numpy("logits").shape == (1, 10)


def _error(client: Any, queries: np.ndarray) -> Any:
    try:
        client.infer("digits", [input_of(queries)])
    except exceptions.InferenceServerException as error:
        return error
    return None


class Slow(DemoServer):
    """Answers inference when it is told to."""

    def __init__(self) -> None:
        super().__init__(DEMO / "victim.onnx")
        self.begun = 0
        self.patient = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            self.begun += 1
            while self.patient:
                await asyncio.sleep(0.005)
        await super().__call__(scope, receive, send)


def test_a_client_that_loses_patience_leaves_the_guard_as_it_was():
    slow = Slow()
    with rigged(slow, mode="shadow", canary={"enabled": False}) as rig:
        with triton(rig.url, network_timeout=0.3) as client, pytest.raises(Exception, match="timed out"):
            client.infer("digits", [input_of(DIGITS[:1])])
        assert slow.begun == 1
        slow.patient = False
        with triton(rig.url) as client:
            assert client.infer("digits", [input_of(DIGITS[:1])]).as_numpy("logits").shape == (1, 10)


# ---------------------------------------------------------------------- golden bodies


def test_a_golden_request_in_each_spelling_gets_one_golden_answer():
    raw = raw_batch(DIGIT, rows=2, seed=5)
    flat = json.dumps({"id": "7", "inputs": [tensor_of(raw, DIGIT)]}).encode()
    nested = json.dumps({"id": "7", "inputs": [tensor_of(raw, DIGIT, data=raw.tolist())], "outputs": [{"name": "logits"}]}).encode()
    text = json.dumps({"id": "7", "inputs": [{**tensor_of(raw, DIGIT), "data": None, "parameters": {"binary_data_size": raw.nbytes}}]})
    head = text.replace('"data": null, ', "").encode()
    logits = echo_of(raw)
    golden = {
        "model_name": "digits", "id": "7",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 10], "data": logits.ravel().tolist()}],
    }  # fmt: skip
    for binary in (True, False):
        echo = EchoUpstream(binary=binary)
        with echo.running() as url, before_echo(url) as rig:
            answers = [
                asked(rig.url, INFER, flat, []),
                asked(rig.url, INFER, nested, []),
                asked(rig.url, INFER, head + raw.tobytes(), [(LENGTH, str(len(head)))]),
            ]
            assert len({decision.digest for decision in rig.noted.decisions}) == 1
        assert [json.loads(answer.body) for answer in answers] == [golden] * 3
        assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
        assert all(np.array_equal(seen.decoded, raw) for seen in echo.seen)


def posted(url: str, path: str, document: Any) -> Any:
    request = urllib.request.Request(url + path, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as found:
        return json.loads(found.read())


ROWS = DIGITS[:2]
OF_DIALECT = {
    "tf-serving": (
        "/v1/models/digits:predict",
        [{"instances": ROWS.tolist()}, {"inputs": ROWS.tolist()}, {"signature_name": "serving_default", "instances": ROWS[:1].tolist()}],
    ),
    "plain-json": ("/predict", [{"input": ROWS.tolist()}, {"input": ROWS[:1].tolist()}]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["logits", "probs", "labels"])
@pytest.mark.parametrize("dialect", OF_DIALECT)
def test_other_dialects_and_kinds_of_answers_come_through_as_they_are(dialect, kind):
    path, documents = OF_DIALECT[dialect]
    echo = EchoUpstream(dialect, kind=kind)
    upstream = {"dialect": dialect, "output_kind": kind}
    with echo.running() as url, before_echo(url, upstream=upstream) as rig:
        for document in documents:
            assert posted(rig.url, path, document) == posted(url, path, document)
    assert {decision.outcome for decision in rig.noted.decisions} == {"allow"}
    assert [len(decision.row_scores) for decision in rig.noted.decisions] == [item.decoded.shape[0] for item in echo.seen[::2]]
    for ours, its in zip(echo.seen[::2], echo.seen[1::2], strict=True):
        assert np.array_equal(ours.decoded, its.decoded)


@pytest.mark.parametrize("kind", ["probs", "labels"])
def test_probabilities_and_labels_come_through_the_open_inference_protocol(kind):
    echo = EchoUpstream(kind=kind)
    with (
        echo.running() as url,
        before_echo(url, upstream={"output_kind": kind}) as rig,
        triton(rig.url) as client,
    ):
        found = client.infer("digits", [input_of(DIGITS[:4])]).as_numpy("logits")
    assert np.array_equal(found, echo_of(DIGITS[:4], kind))


@pytest.mark.parametrize("dialect", ["oip", "tf-serving", "plain-json"])
def test_clients_that_send_bytes_with_channels_last_get_what_they_would_get(dialect, tmp_path):
    contract = InputContract.images(1, 4, 4, dtype="UINT8", layout="NHWC")
    artifact = write_blur_artifact(tmp_path / "artefact", contract=contract)
    raw = raw_batch(contract, rows=3, seed=7)
    path, document = {
        "oip": (INFER, {"inputs": [tensor_of(raw, contract)], "outputs": [{"name": "logits"}]}),
        "tf-serving": ("/v1/models/digits:predict", {"instances": raw.tolist()}),
        "plain-json": ("/predict", {"input": raw.tolist()}),
    }[dialect]
    echo = EchoUpstream(dialect, dtype="UINT8", classes=3)
    with (
        echo.running() as url,
        before_echo(url, artifact=artifact, upstream={"dialect": dialect}) as rig,
    ):
        assert posted(rig.url, path, document) == posted(url, path, document)
    assert echo.seen[0].decoded.dtype == np.uint8
    assert np.array_equal(echo.seen[0].decoded, raw)
