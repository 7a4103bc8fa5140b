"""The real tritonclient: its bytes are read as they are, and it reads ours."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import CLASSES, UNHURRIED, answer_body, model_of, random_probs

from sameguard.contract import InputContract
from sameguard.protocol import InferResponse, InvalidRequestError, OpenInference

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

NUMPY = {"FP32": np.float32, "UINT8": np.uint8}


def asked_by_triton(
    raw: np.ndarray, dtype: str, *, binary: bool, outputs: list | None = None, **options: object
) -> tuple[bytes, dict[str, str]]:
    tensor = http.InferInput("input", list(raw.shape), dtype)
    tensor.set_data_from_numpy(raw.astype(NUMPY[dtype]), binary_data=binary)
    body, json_length = http.InferenceServerClient.generate_request_body([tensor], outputs=outputs, **options)
    return body, {} if json_length is None else {"inference-header-content-length": str(json_length)}


def read_by_triton(message) -> "http.InferResult":
    length = message.headers.get("inference-header-content-length")
    return http.InferenceServerClient.parse_response_body(message.body, header_length=None if length is None else int(length))


@UNHURRIED
@given(
    st.integers(1, 4),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.sampled_from(["FP32", "UINT8"]),
    st.booleans(),
)
def test_its_requests_are_read_and_our_answers_are_read_by_it(rows, seed, binary_input, binary_output, dtype, binary_upstream):
    contract = InputContract.images(1, 2, 3, dtype=dtype, layout="NHWC")
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 2, 3, 1)).astype(np.uint8)
    raw = pixels if dtype == "UINT8" else pixels.astype(np.float32) / np.float32(255)
    outputs = None if binary_output is None else [http.InferRequestedOutput("probs", binary_data=binary_output)]
    dialect = OpenInference(model_of(contract, binary_tensors=binary_upstream))
    request = dialect.parse_infer(*asked_by_triton(raw, dtype, binary=binary_input, outputs=outputs, request_id="42"))
    assert np.array_equal(contract.encode(request.queries), raw)
    assert request.id == "42"
    probs = random_probs(rows, seed)
    answer = dialect.build_infer_response(dialect.parse_infer_response(*answer_body(probs, binary=binary_upstream), request), request)
    assert ("inference-header-content-length" in answer.headers) == (binary_output is not False)  # binary unless it says no
    result = read_by_triton(answer)
    assert result.as_numpy("probs").tobytes() == probs.tobytes()
    assert result.as_numpy("probs").shape == (rows, CLASSES)
    assert result.get_response()["id"] == "42"


def test_its_compressed_requests_are_inflated_before_they_are_split():
    raw = np.full((2, 1, 2, 3), 0.0, np.float32)
    body, headers = asked_by_triton(raw, "FP32", binary=True)
    request = OpenInference(model_of(InputContract.images(1, 2, 3))).parse_infer(
        gzip.compress(body), {**headers, "content-encoding": "gzip"}
    )
    assert np.array_equal(request.queries, raw)


def test_our_requests_are_what_it_would_have_sent():
    contract = InputContract.images(1, 2, 3)
    dialect = OpenInference(model_of(contract, binary_tensors=True))
    raw = np.full((2, 1, 2, 3), 128 / 255, np.float32)
    body, headers = asked_by_triton(raw, "FP32", binary=True, outputs=[http.InferRequestedOutput("probs")])
    sent = dialect.build_infer(dialect.parse_infer(body, headers))
    ours, its = int(sent.headers["inference-header-content-length"]), int(headers["inference-header-content-length"])
    assert sent.body[ours:] == body[its:]
    assert json.loads(sent.body[:ours]) == json.loads(body[:its])


def test_text_outputs_are_read_by_it_in_either_encoding():
    dialect = OpenInference(model_of(InputContract.images(1, 2, 3), outputs=("words",)))
    scored = {"name": "probs", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 1]}
    text = json.dumps({"outputs": [scored, {"name": "words", "datatype": "BYTES", "shape": [2], "data": ["häst", ""]}]}).encode()
    for binary in (True, False):
        outputs = [http.InferRequestedOutput("words", binary_data=binary)]
        request = dialect.parse_infer(*asked_by_triton(np.zeros((1, 1, 2, 3)), "FP32", binary=True, outputs=outputs))
        response = dialect.parse_infer_response(text, {}, request)
        assert isinstance(response, InferResponse)
        found = read_by_triton(dialect.build_infer_response(response, request)).as_numpy("words")
        assert [word if isinstance(word, str) else word.decode() for word in found.tolist()] == ["häst", ""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_id": 7}, "request parameter 'sequence_id' is not understood"),
        ({"priority": 1}, "request parameter 'priority' is not understood"),
        ({"timeout": 5}, "request parameter 'timeout' is not understood"),
        ({"parameters": {"content_type": "str"}}, "request parameter 'content_type' is not understood"),
        ({"outputs": [http.InferRequestedOutput("probs", class_count=2)]}, "output parameter 'classification' is not understood"),
        ({"outputs": [http.InferRequestedOutput("logits")]}, "must be one of probs"),
    ],
)
def test_what_it_can_ask_beyond_the_tensor_is_refused_by_name(options, message):
    with pytest.raises(InvalidRequestError, match=message):
        OpenInference(model_of(InputContract.images(1, 2, 3))).parse_infer(
            *asked_by_triton(np.zeros((1, 1, 2, 3)), "FP32", binary=True, **options)
        )


def test_its_shared_memory_requests_are_refused():
    tensor = http.InferInput("input", [1, 1, 2, 3], "FP32")
    tensor.set_shared_memory("region", 24)
    body, json_length = http.InferenceServerClient.generate_request_body([tensor])
    assert json_length is None
    with pytest.raises(InvalidRequestError, match="input parameter 'shared_memory_region' is not understood"):
        OpenInference(model_of(InputContract.images(1, 2, 3))).parse_infer(body, {})


def test_allowed_parameters_of_its_own_go_on():
    dialect = OpenInference(model_of(InputContract.images(1, 2, 3), parameters=("temperature", "priority")))
    body, headers = asked_by_triton(np.zeros((1, 1, 2, 3)), "FP32", binary=True, priority=3, parameters={"temperature": 0.5})
    assert dialect.parse_infer(body, headers).parameters == {"temperature": 0.5, "priority": 3}
