"""Open Inference Protocol: every spelling gives the canonical array, what goes on is that array, answers pass tensor for tensor."""

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import (
    CLASSES,
    IMAGES,
    MODEL,
    QUESTIONS,
    UNHURRIED,
    answer_body,
    as_upstream_reads,
    asked,
    binary_body,
    json_body,
    model_of,
    random_probs,
    spellings,
)

from sameguard.contract import InputContract
from sameguard.protocol import (
    Dialect,
    InferRequest,
    InvalidRequestError,
    InvalidResponseError,
    OpenInference,
    UnsupportedMediaError,
    ask,
)

HALF = np.full((2, 1, 2, 3), 128 / 255, np.float32)


# ---------------------------------------------------------------------- requests


@UNHURRIED
@given(QUESTIONS)
def test_every_spelling_of_a_question_gives_the_same_canonical_array_and_digest(question):
    contract, queries = asked(question)
    model = model_of(contract)
    requests = [OpenInference(model).parse_infer(body, headers) for body, headers in spellings(contract.encode(queries), contract)]
    for request in requests:
        assert request.queries.dtype == np.float32
        assert np.array_equal(request.queries, queries)
    assert len({request.digest(model) for request in requests}) == 1


@UNHURRIED
@given(QUESTIONS, st.booleans(), st.integers(0, 5))
def test_what_a_model_server_decodes_is_what_was_scored(question, binary, spelling):
    contract, queries = asked(question)
    dialect = OpenInference(model_of(contract, binary_tensors=binary))
    request = dialect.parse_infer(*spellings(contract.encode(queries), contract)[spelling])
    received = as_upstream_reads(dialect.build_infer(request), contract)
    assert received.shape == (len(queries), *contract.raw_shape)
    assert received.tobytes() == contract.encode(request.queries).tobytes()
    assert np.array_equal(contract.decode(received), request.queries) or contract.grid == "none"


@UNHURRIED
@given(QUESTIONS, st.booleans())
def test_a_built_request_is_read_back_as_it_was(question, binary):
    contract, queries = asked(question)
    model = model_of(contract, binary_tensors=binary, parameters=("temperature",))
    dialect = OpenInference(model)
    sent = dialect.build_infer(InferRequest(queries, parameters={"temperature": 0.5}, outputs=("probs",)))
    request = dialect.parse_infer(sent.body, sent.headers)
    assert np.array_equal(request.queries, queries)
    assert (request.parameters, request.outputs) == ({"temperature": 0.5}, ("probs",))
    assert request.binary_outputs == (frozenset({"probs"}) if binary else frozenset())


def test_nothing_of_the_clients_bytes_goes_on():
    dialect = OpenInference(model_of(IMAGES, parameters=("temperature",)))
    body = json_body(
        HALF, IMAGES, nested=True, id="secret-id", model_name="digits", parameters={"temperature": 1, "binary_data_output": True}
    )
    sent = dialect.build_infer(dialect.parse_infer(body.replace(b": ", b" :  "), {}))
    document = json.loads(sent.body)
    assert b"secret-id" not in sent.body
    assert document.keys() == {"inputs", "outputs", "parameters"}
    assert document["parameters"] == {"temperature": 1}
    assert document["outputs"] == [{"name": "probs"}]
    assert sent.headers == {"content-type": "application/json"}


def test_the_raw_request_of_header_length_0_is_one_query_with_binary_answers():
    contract = InputContract.images(1, 2, 3, dtype="UINT8", layout="NHWC")
    model = model_of(contract, outputs=("embedding",))
    request = OpenInference(model).parse_infer(bytes(range(6)), {"inference-header-content-length": "0"})
    assert np.array_equal(request.queries, (np.arange(6, dtype=np.float32) / np.float32(255)).reshape(1, 1, 2, 3))
    assert request.outputs == ("probs", "embedding")
    assert request.binary_outputs == {"probs", "embedding"}


def test_clients_that_normalise_land_a_hair_outside_and_are_clipped():
    contract = InputContract.images(1, 2, 3, mean=(0.5,), std=(0.25,))
    dialect = OpenInference(model_of(contract))
    outside = np.full((1, 1, 2, 3), (1.0 + 0.4 / 255 - 0.5) / 0.25)
    assert (dialect.parse_infer(json_body(outside, contract), {}).queries == 1.0).all()
    with pytest.raises(InvalidRequestError, match=r"must lie in \[0, 1\] after decoding"):
        dialect.parse_infer(json_body(outside + 0.2 / 255 / 0.25, contract), {})


def test_minus_zero_and_denormals_are_the_zero_that_goes_on():
    dialect = OpenInference(MODEL)
    zeros = dialect.parse_infer(json_body(np.zeros((1, 1, 2, 3)), IMAGES), {})
    for body in (json_body(np.full((1, 1, 2, 3), -0.0), IMAGES), json_body(np.full((1, 1, 2, 3), 1e-310), IMAGES)):
        request = dialect.parse_infer(body, {})
        assert request.digest(MODEL) == zeros.digest(MODEL)
        assert as_upstream_reads(dialect.build_infer(request), IMAGES).tobytes() == bytes(24)


@pytest.mark.parametrize(
    ("members", "outputs", "binary"),
    [
        ({}, ("probs", "embedding"), set()),
        ({"outputs": []}, ("probs", "embedding"), set()),
        ({"outputs": None, "parameters": None, "id": None}, ("probs", "embedding"), set()),
        ({"parameters": {"binary_data_output": True}}, ("probs", "embedding"), {"probs", "embedding"}),
        ({"outputs": [{"name": "embedding"}]}, ("embedding",), set()),
        ({"outputs": [{"name": "probs", "parameters": {"binary_data": True}}, {"name": "embedding"}]}, ("probs", "embedding"), {"probs"}),
        (
            {"parameters": {"binary_data_output": True}, "outputs": [{"name": "probs", "parameters": {"binary_data": False}}]},
            ("probs",),
            set(),
        ),
    ],
)
def test_which_outputs_are_wanted_and_how(members, outputs, binary):
    dialect = OpenInference(model_of(IMAGES, outputs=("embedding",)))
    request = dialect.parse_infer(json_body(HALF, IMAGES, **members), {})
    assert (request.outputs, request.binary_outputs) == (outputs, frozenset(binary))


def test_the_scored_output_is_always_asked_for_and_handed_out_only_on_demand():
    dialect = OpenInference(model_of(IMAGES, outputs=("embedding",)))
    request = dialect.parse_infer(json_body(HALF, IMAGES, outputs=[{"name": "embedding"}]), {})
    assert json.loads(dialect.build_infer(request).body)["outputs"] == [{"name": "embedding"}, {"name": "probs"}]
    both = [
        {"name": "embedding", "datatype": "FP32", "shape": [2, 1], "data": [5, 6]},
        {"name": "probs", "datatype": "FP32", "shape": [2, 3], "data": [1, 0, 0, 0, 1, 0]},
    ]
    response = dialect.parse_infer_response(json.dumps({"model_name": "digits", "outputs": both}).encode(), {}, request)
    assert [out["name"] for out in json.loads(dialect.build_infer_response(response, request).body)["outputs"]] == ["embedding"]


@pytest.mark.parametrize("content_type", [None, "application/json", "Application/JSON; charset=UTF-8"])
def test_media_types_of_json_or_none_at_all_are_read(content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    assert len(OpenInference(MODEL).parse_infer(json_body(HALF, IMAGES), headers).queries) == 2


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type must be application/json, or absent"),
        ({"content-type": "application/octet-stream"}, "Content-Type must be application/json, or absent"),
        ({"content-type": "application/json; charset=utf-16"}, "charset must be utf-8, got 'utf-16'"),
        ({"content-encoding": "br"}, "Content-Encoding must be gzip, deflate or identity, got 'br'"),
        ({"content-encoding": "gzip, gzip"}, "Content-Encoding must be"),
    ],
)
def test_other_explicit_types_and_encodings_are_415(headers, message):
    with pytest.raises(UnsupportedMediaError, match=message) as refused:
        OpenInference(MODEL).parse_infer(json_body(HALF, IMAGES), headers)
    assert refused.value.status == 415


def test_with_deflate_and_gzip_the_header_length_counts_the_inflated_json():
    body, headers = binary_body(HALF, IMAGES)
    for encoding, compressed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        request = OpenInference(MODEL).parse_infer(compressed, {**headers, "content-encoding": encoding})
        assert np.array_equal(request.queries, HALF)


# ---------------------------------------------------------------------- answers


@UNHURRIED
@given(st.integers(1, 4), st.integers(0, 99), st.booleans(), st.booleans())
def test_an_answer_passes_tensor_for_tensor_in_either_encoding(rows, seed, binary_upstream, binary_client):
    dialect = OpenInference(MODEL)
    probs = random_probs(rows, seed)
    request = InferRequest(
        np.zeros((rows, 1, 2, 3), np.float32), outputs=("probs",), binary_outputs=frozenset({"probs"} if binary_client else ())
    )
    response = dialect.parse_infer_response(*answer_body(probs, binary=binary_upstream), request)
    assert np.allclose(response.probs, probs, atol=1e-6)
    answer = dialect.build_infer_response(response, request)
    assert ("inference-header-content-length" in answer.headers) == binary_client
    again = dialect.parse_infer_response(answer.body, answer.headers, request)
    assert again.tensor("probs").array.tobytes() == probs.tobytes()
    assert again.tensor("probs").array.shape == probs.shape


def test_names_versions_parameters_and_other_tensors_come_through():
    model = model_of(IMAGES, outputs=("words", "flags", "count", "half"))
    dialect = OpenInference(model)
    outputs = [
        {"name": "probs", "datatype": "FP64", "shape": [2, 3], "data": [[1, 0, 0], [0.1, 0.2, 0.7]], "parameters": {"unit": "share"}},
        {"name": "words", "datatype": "BYTES", "shape": [2, 1], "data": ["häst", ""]},
        {"name": "flags", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "count", "datatype": "INT64", "shape": [1, 2], "data": [2**62, -1]},
        {"name": "half", "datatype": "FP16", "shape": [1], "data": [0.5]},
        {"name": "internal", "datatype": "FP32", "shape": [1], "data": [4]},
    ]
    body = {"model_name": "digits", "model_version": "3", "id": "x", "parameters": {"trace": 5, "deep": []}, "outputs": outputs}
    request = InferRequest(np.zeros((2, 1, 2, 3), np.float32), id="mine")
    response = dialect.parse_infer_response(json.dumps(body).encode(), {}, request)
    answer = json.loads(dialect.build_infer_response(response, request).body)
    assert (answer["model_version"], answer["id"], answer["parameters"]) == ("3", "mine", {"trace": 5})
    assert [(out["name"], out["datatype"], out["shape"], out["data"]) for out in answer["outputs"]] == [
        ("probs", "FP64", [2, 3], [1.0, 0.0, 0.0, 0.1, 0.2, 0.7]),
        ("words", "BYTES", [2, 1], ["häst", ""]),
        ("flags", "BOOL", [2], [True, False]),
        ("count", "INT64", [1, 2], [2**62, -1]),
        ("half", "FP16", [1], [0.5]),
    ]
    assert answer["outputs"][0]["parameters"] == {"unit": "share"}
    binary = InferRequest(request.queries, binary_outputs=frozenset(model.allowed_outputs))
    written = dialect.build_infer_response(response, binary)
    again = dialect.parse_infer_response(written.body, written.headers, binary)
    assert again.id == "x"  # the model server's own, where the client gave none
    for tensor in response.tensors:
        assert np.array_equal(again.tensor(tensor.name).array, tensor.array)
        assert again.tensor(tensor.name).array.dtype == tensor.array.dtype


def test_answers_with_nulls_for_what_is_not_there_are_read():
    nulls = {"model_version": None, "id": None, "parameters": None}
    output = {"name": "probs", "datatype": "FP32", "shape": [1, 3], "parameters": None, "data": [0, 1, 0]}
    request = InferRequest(np.zeros((1, 1, 2, 3), np.float32))
    response = OpenInference(MODEL).parse_infer_response(json.dumps({"outputs": [output], **nulls}).encode(), {}, request)
    assert json.loads(OpenInference(MODEL).build_infer_response(response, request).body).keys() == {"model_name", "outputs"}


def test_binary_outputs_are_found_behind_those_that_are_not_handed_out():
    body = {
        "outputs": [
            {"name": "internal", "datatype": "BF16", "shape": [2], "parameters": {"binary_data_size": 4}},
            {"name": "probs", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
        ]
    }
    text = json.dumps(body).encode()
    content = b"abcd" + np.array([0, 0, 1], "<f4").tobytes()
    request = InferRequest(np.zeros((1, 1, 2, 3), np.float32))
    response = OpenInference(MODEL).parse_infer_response(text + content, {"inference-header-content-length": str(len(text))}, request)
    assert response.probs.tolist() == [[0.0, 0.0, 1.0]]


def test_logits_become_probabilities_and_labels_one_hot_rows_for_the_scorer_only():
    request = InferRequest(np.zeros((2, 1, 2, 3), np.float32))
    logits = OpenInference(model_of(IMAGES, output_kind="logits"))
    response = logits.parse_infer_response(*answer_body(np.array([[0.0, 0.0, 0.0], [9.0, 0.0, -9.0]], np.float32)), request)
    assert np.allclose(response.probs[0], 1 / 3)
    assert json.loads(logits.build_infer_response(response, request).body)["outputs"][0]["data"] == [0, 0, 0, 9, 0, -9]
    labels = OpenInference(model_of(IMAGES, output_kind="labels"))
    body = json.dumps({"outputs": [{"name": "probs", "datatype": "INT64", "shape": [2], "data": [2, 0]}]}).encode()
    assert labels.parse_infer_response(body, {}, request).probs.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_coarsened_answer_holds_nothing_but_the_coarse_output():
    dialect = OpenInference(model_of(IMAGES, outputs=("embedding",)))
    request = InferRequest(np.zeros((1, 1, 2, 3), np.float32))
    outputs = [
        {"name": "probs", "datatype": "FP32", "shape": [1, 3], "data": [0.2, 0.3, 0.5]},
        {"name": "embedding", "datatype": "FP32", "shape": [1], "data": [7]},
    ]
    body = json.dumps({"outputs": outputs, "parameters": {"entropy": 1.03}}).encode()
    coarse = dialect.parse_infer_response(body, {}, request).replaced("probs", np.array([[0.0, 0.0, 1.0]], np.float32))
    answer = json.loads(dialect.build_infer_response(coarse, request).body)
    assert answer["outputs"] == [{"name": "probs", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 0.0, 1.0]}]
    assert "parameters" not in answer
    with pytest.raises(ValueError, match="must be as many"):
        coarse.replaced("probs", np.zeros((2, 3), np.float32))
    with pytest.raises(InvalidResponseError, match="must hold output 'embedding'"):
        coarse.tensor("embedding")


def probs_output(**changes: object) -> bytes:
    output = {"name": "probs", "datatype": "FP32", "shape": [2, 3], "data": [1, 0, 0, 0, 1, 0], **changes}
    return json.dumps({"outputs": [{name: value for name, value in output.items() if value is not ...}]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "strict JSON"),
        (b"[]", "must be a JSON object with a list of outputs, got a list"),
        (b'{"outputs":{}}', "must be a JSON object with a list of outputs"),
        (b'{"outputs":[],"outputs":[]}', "each key once"),
        (b'{"outputs":[1]}', "must be objects with a name, got 1"),
        (b'{"outputs":[]}', r"must hold output 'probs' and each output once, got \[\]"),
        (probs_output(name="other"), "must hold output 'probs'"),
        (probs_output(datatype="FP8"), "must have one of the datatypes .*, got 'FP8'"),
        (probs_output(datatype=["FP32"]), "must have one of the datatypes .*, got a list"),
        (probs_output(shape=[2, -3]), "must have a shape of at most 8 whole numbers"),
        (probs_output(shape=[0, 2**63]), "must have a shape of at most 8 whole numbers"),
        (probs_output(shape=[2, 4]), "must hold as many values as the shape"),
        (probs_output(shape=[]), "must be all numbers"),
        (probs_output(data=...), "data must be a list, got None"),
        (probs_output(data=[True, 0, 0, 0, 1, 0]), "must be all numbers"),
        (probs_output(data=["1", "0", "0", "0", "1", "0"]), "must be all numbers"),
        (probs_output(datatype="UINT8", data=[256, 0, 0, 0, 1, 0]), r"must lie in \[0, 255\]"),
        (probs_output(datatype="UINT8", data=[1.0, 0, 0, 0, 1, 0]), "must be all whole numbers"),
        (probs_output(data=[1e39, 0, 0, 0, 1, 0]), "must return finite probs"),
        (probs_output(data=[2, 0, 0, 0, 1, 0]), "must return probabilities that sum to 1"),
        (probs_output(shape=[3, 2]), r"must return shape \(2, 3\)"),
        (probs_output(datatype="BYTES", data=list("abcdef")), "must return numbers"),
        (probs_output(parameters={"binary_data_size": 24}), "must be followed by its 24 bytes, got 0"),
        (probs_output(parameters={"binary_data_size": -1}), "must be followed by its -1 bytes"),
    ],
)
def test_answers_that_are_not_what_was_declared_are_502_and_tell_the_client_nothing(body, message):
    request = InferRequest(np.zeros((2, 1, 2, 3), np.float32))
    with pytest.raises(InvalidResponseError, match=message) as refused:
        OpenInference(MODEL).parse_infer_response(body, {}, request)
    assert refused.value.status == 502
    assert refused.value.public_reason == "the model server's answer cannot be used: ask its operator"


@pytest.mark.parametrize(("cut", "message"), [(-1, "must be followed by its 24 bytes, got 23"), (None, "got 2 bytes more")])
def test_binary_answers_must_have_exactly_their_bytes(cut, message):
    body, headers = answer_body(random_probs(2), binary=True)
    with pytest.raises(InvalidResponseError, match=message):
        OpenInference(MODEL).parse_infer_response(
            body[:cut] if cut else body + b"xx", headers, InferRequest(np.zeros((2, 1, 2, 3), np.float32))
        )


def test_what_json_cannot_carry_is_not_turned_into_null():
    model = model_of(IMAGES, outputs=("extra",))
    text = json.dumps(
        {
            "outputs": [
                {"name": "probs", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 1]},
                {"name": "extra", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            ]
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(text))}
    request = InferRequest(np.zeros((1, 1, 2, 3), np.float32))
    response = OpenInference(model).parse_infer_response(text + np.array([np.nan], "<f4").tobytes(), headers, request)
    with pytest.raises(InvalidResponseError, match="must be finite to be written as JSON"):
        OpenInference(model).build_infer_response(response, request)


# ---------------------------------------------------------------------- the client's side


@pytest.mark.parametrize("binary", [False, True])
def test_a_client_and_a_server_of_ours_understand_each_other(binary):
    model = model_of(IMAGES, binary_tensors=binary, outputs=("embedding",))
    dialect = OpenInference(model)
    assert isinstance(dialect, Dialect)
    question = ask(HALF, model, id="9")
    sent = dialect.build_infer(question)
    received = dialect.parse_infer(sent.body, sent.headers)
    assert np.array_equal(received.queries, HALF)
    assert received.outputs == ("probs",)
    probs = random_probs(2)
    held = dialect.parse_infer_response(*answer_body(probs, binary=binary), received)
    answer = dialect.build_infer_response(held, received)
    assert ("inference-header-content-length" in answer.headers) == binary
    assert np.allclose(dialect.parse_infer_response(answer.body, answer.headers, question).probs, probs, atol=1e-6)
    assert held.probs.shape == (2, CLASSES)
