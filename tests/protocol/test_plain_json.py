"""Plain JSON by two pointers: one value in, one value out, nothing beside the input that is not understood."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import IMAGES, NUMPY, QUESTIONS, UNHURRIED, asked, model_of, random_probs

from sameguard.errors import ConfigurationError
from sameguard.protocol import Dialect, InferRequest, InvalidRequestError, InvalidResponseError, PlainJson, PlainJsonPaths, ask
from sameguard.protocol.json_pointer import JsonPointer

POINTERS = st.sampled_from(["", "/input", "/inputs/0/data", "/a~1b/c~0d", "/0/0", "/x/0"])


def plain(contract=IMAGES, *, parameters: tuple[str, ...] = (), **paths: object) -> PlainJson:
    return PlainJson(model_of(contract, parameters=parameters, plain_json=PlainJsonPaths(**paths)))


@UNHURRIED
@given(QUESTIONS, POINTERS)
def test_the_value_at_the_pointer_is_the_canonical_array_and_goes_on(question, pointer):
    contract, queries = asked(question)
    dialect = plain(contract, tensor=pointer)
    document = JsonPointer(pointer).build(contract.encode(queries).tolist())
    request = dialect.parse_infer(json.dumps(document).encode(), {})
    assert np.array_equal(request.queries, queries)
    received = JsonPointer(pointer).get(json.loads(dialect.build_infer(request).body))
    assert np.array(received).astype(NUMPY[contract.dtype]).tobytes() == contract.encode(queries).tobytes()
    assert np.shape(received) == (len(queries), *contract.raw_shape)


def test_servers_of_single_queries_get_no_batch_axis():
    dialect = plain(tensor="/image", probs="/output/probs", batched=False)
    body = json.dumps({"image": np.full((1, 2, 3), 1.0).tolist()}).encode()
    request = dialect.parse_infer(body, {})
    assert request.queries.shape == (1, 1, 2, 3)
    assert json.loads(dialect.build_infer(request).body) == json.loads(body)
    answer = {"output": {"probs": [0.25, 0.25, 0.5]}, "took": 3}
    response = dialect.parse_infer_response(json.dumps(answer).encode(), {}, request)
    assert response.probs.tolist() == [[0.25, 0.25, 0.5]]
    assert json.loads(dialect.build_infer_response(response, request).body) == answer
    coarse = response.replaced("probs", np.array([[0, 0, 1.0]], np.float32))
    assert json.loads(dialect.build_infer_response(coarse, request).body) == {"output": {"probs": [0, 0, 1]}}
    with pytest.raises(InvalidRequestError, match="batch must hold 1 row where the model server takes single queries, got 2"):
        dialect.build_infer(InferRequest(np.zeros((2, 1, 2, 3), np.float32)))


def test_allowed_parameters_stand_beside_the_input():
    dialect = plain(parameters=("temperature", "language"))
    body = json.dumps({"temperature": 0.5, "input": np.zeros((1, 1, 2, 3)).tolist()}).encode()
    request = dialect.parse_infer(body, {})
    assert request.parameters == {"temperature": 0.5}
    assert json.loads(dialect.build_infer(request).body) == json.loads(body)
    with pytest.raises(InvalidRequestError, match="parameter temperature must be a string, a number, true or false, got a list"):
        dialect.parse_infer(body.replace(b"0.5", b"[1]"), {})


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        (b'{"input": [], "top_k": 5}', "/input", "must hold its input at '/input' and nothing that is not understood"),
        (b'{"in": {"data": [], "scale": 2}}', "/in/data", "nothing that is not understood"),
        (b'{"in": {"data": []}, "x": 1}', "/in/data", "nothing that is not understood"),
        (b'{"in": [{"data": []}, {"data": []}]}', "/in/0/data", "nothing that is not understood"),
        (b'{"in": {"0": {"data": []}}}', "/in/0/data", "must have a value at /in/0/data, got none"),
        (b'{"in": []}', "/in/0", "must have a value at /in/0, got none"),
        (b"{}", "/input", "must have a value at /input, got none"),
        (b"[]", "/input", "must have a value at /input, got none"),
        (b'{"input": "AAAA"}', "/input", "input must be a list of numbers, got 'AAAA'"),
        (b'{"input": {"b64": "AAAA"}}', "/input", "input must be a list of numbers, got an object"),
        (b'{"input": []}', "/input", "batch must hold 1 to 4 rows, got 0"),
        (b'{"input": [[[[0, 0]]]]}', "/input", "nested data must have the shape"),
        (b'{"input": [], "input": []}', "/input", "each key once"),
    ],
)
def test_what_is_not_understood_is_refused(body, pointer, message):
    with pytest.raises(InvalidRequestError, match=message):
        plain(tensor=pointer).parse_infer(body, {})


@UNHURRIED
@given(st.integers(1, 4), st.integers(0, 99), POINTERS)
def test_answers_pass_whole(rows, seed, pointer):
    dialect = plain(probs=pointer)
    request = InferRequest(np.zeros((rows, 1, 2, 3), np.float32))
    probs = random_probs(rows, seed).astype(np.float64)
    answer = JsonPointer(pointer).build(probs.tolist())
    if isinstance(answer, dict):
        answer["boxes"] = [[{"x": 1, "why": None}], 2]
    response = dialect.parse_infer_response(json.dumps(answer).encode(), {}, request)
    assert np.allclose(response.probs, probs, atol=1e-6)
    assert json.loads(dialect.build_infer_response(response, request).body) == answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "strict JSON"),
        (b'{"probs": [[1, 0, 0]], "probs": [[0, 1, 0]]}', "each key once"),
        (b'{"boxes": [1, [{"x": 1, "x": 2}]], "probs": [[1, 0, 0]]}', "each key once"),
        (b"{}", "must have a value at /probs, got none"),
        (b'{"probs": {"cat": 1}}', "must be numbers, strings or truth values of one kind"),
        (b'{"probs": 1}', r"must return shape \(1, 3\), one row per query and one column per class, got \(\)"),
        (b'{"probs": [1, 0, 0]}', r"must return shape \(1, 3\)"),
        (b'{"probs": [[1, 0, 1]]}', "must return probabilities that sum to 1"),
        (b'{"probs": [["1", "0", "0"]]}', "must return numbers"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(body, message):
    with pytest.raises(InvalidResponseError, match=message):
        plain().parse_infer_response(body, {}, InferRequest(np.zeros((1, 1, 2, 3), np.float32)))


def test_a_client_and_a_server_of_ours_understand_each_other():
    dialect = plain(infer="/v1/classify", health="/livez")
    assert isinstance(dialect, Dialect)
    assert (dialect.infer_path, dialect.ready_path, dialect.metadata_path) == ("/v1/classify", "/livez", None)
    question = ask(np.zeros((2, 1, 2, 3), np.float32), dialect.model)
    sent = dialect.build_infer(question)
    request = dialect.parse_infer(sent.body, sent.headers)
    response = dialect.parse_infer_response(b'{"probs": [[1, 0, 0], [0, 1, 0]]}', {}, request)
    assert response.probs.tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(ConfigurationError, match="plain-json servers have no metadata to check"):
        dialect.parse_metadata(b"{}")
    assert dialect.parse_extensions(b"{}") == frozenset()


@pytest.mark.parametrize("pointer", ["input", "/a~2", "/a~", "/in/1", "/in/-"])
def test_pointers_that_no_body_can_be_built_from_are_refused(pointer):
    with pytest.raises(ConfigurationError, match="JSON pointer m"):
        plain(tensor=pointer)


def test_settings_that_contradict_the_pointers_are_refused():
    with pytest.raises(ConfigurationError, match="plain-json parameters need a body that is an object, got tensor pointer ''"):
        plain(tensor="", parameters=("temperature",))
    with pytest.raises(ConfigurationError, match="need a body that is an object"):
        plain(tensor="/temperature", parameters=("temperature",))
    with pytest.raises(ConfigurationError, match=r"plain-json answers pass whole, got outputs \['label'\]"):
        PlainJson(model_of(IMAGES, outputs=("label",)))
