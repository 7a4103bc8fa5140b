"""TensorFlow Serving and KServe v1: rows and columns, bare and named, answered the way they were asked."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import IMAGES, MODEL, NUMPY, QUESTIONS, UNHURRIED, asked, model_of, random_probs

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError
from sameguard.protocol import (
    Dialect,
    InferRequest,
    InvalidRequestError,
    InvalidResponseError,
    ModelMetadata,
    TensorSpec,
    TfServing,
    UnsupportedMediaError,
    ask,
)

ROWS = np.zeros((2, 1, 2, 3)).tolist()
TWO = InferRequest(np.zeros((2, 1, 2, 3), np.float32))
TWO_COLUMNS = InferRequest(TWO.queries, columnar=True)


@UNHURRIED
@given(QUESTIONS, st.booleans(), st.booleans(), st.booleans())
def test_every_spelling_gives_the_canonical_array_and_that_array_goes_on(question, columnar, named, compressed):
    contract, queries = asked(question)
    dialect = TfServing(model_of(contract))
    data = contract.encode(queries).tolist()
    if columnar:
        document = {"inputs": {contract.name: data} if named else data}
    else:
        document = {"instances": [{contract.name: row} for row in data] if named else data, "signature_name": "serving_default"}
    body = json.dumps(document).encode()
    request = dialect.parse_infer(gzip.compress(body) if compressed else body, {"content-encoding": "gzip"} if compressed else {})
    assert np.array_equal(request.queries, queries)
    assert request.columnar == columnar
    (received,) = json.loads(dialect.build_infer(request).body).values()
    assert np.array(received).astype(NUMPY[contract.dtype]).tobytes() == contract.encode(queries).tobytes()
    assert np.shape(received) == (len(queries), *contract.raw_shape)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "either instances or inputs, got neither"),
        ({"instances": ROWS, "inputs": ROWS}, "either instances or inputs, got both"),
        ({"instances": ROWS, "signature_name": "embed"}, "signature_name must be 'serving_default' or absent, got 'embed'"),
        ({"instances": ROWS, "parameters": {}}, "no members besides inputs, instances, signature_name, got 'parameters'"),
        ([ROWS], "request must be a JSON object, got a list"),
        ({"instances": []}, "batch must hold 1 to 4 rows, got 0"),
        ({"instances": ROWS * 3}, "batch must hold 1 to 4 rows, got 6"),
        ({"instances": {"input": ROWS}}, "input must be a list of rows, got an object"),
        ({"instances": [{"b64": "AAAA"}]}, "no members besides input, got 'b64'"),
        ({"instances": [[{"b64": "AAAA"}]]}, "object where numbers belong"),
        ({"instances": [{"input": {"b64": "AAAA"}}]}, "must hold as many values as the shape"),
        ({"instances": [{"input": ROWS[0], "mask": ROWS[0]}]}, "no members besides input, got 'mask'"),
        ({"instances": [{"input": ROWS[0]}, ROWS[1]]}, "instance must be a JSON object, got a list"),
        ({"instances": [ROWS[0], {"input": ROWS[1]}]}, "object where numbers belong"),
        ({"instances": [{"other": ROWS[0]}]}, "no members besides input, got 'other'"),
        ({"instances": [{}]}, "must hold as many values as the shape"),
        ({"instances": [[[0.5]]]}, "nested data must have the shape"),
        ({"instances": [0.5]}, "must hold as many values"),
        ({"instances": ["aaa"]}, "must hold as many values"),
        ({"inputs": {"input": ROWS, "mask": ROWS}}, "no members besides input, got 'mask'"),
        ({"inputs": {}}, "input must be a list of rows, got None"),
        ({"inputs": "AAAA"}, "input must be a list of rows, got 'AAAA'"),
        ({"inputs": {"b64": "AAAA"}}, "no members besides input, got 'b64'"),
        ({"instances": [[[[2.0, 0, 0], [0, 0, 0]]]]}, r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_not_understood_is_refused(document, message):
    with pytest.raises(InvalidRequestError, match=message):
        TfServing(MODEL).parse_infer(json.dumps(document).encode(), {})


def test_repeated_keys_are_refused_in_named_rows_too():
    zeros = json.dumps(ROWS[0]).encode()
    for body in (
        b'{"instances": [%b], "instances": [%b]}' % (zeros, zeros),
        b'{"instances": [{"input": %b, "input": %b}]}' % (zeros, zeros),
    ):
        with pytest.raises(InvalidRequestError, match="each key once"):
            TfServing(MODEL).parse_infer(body, {})


def test_binary_bodies_are_not_spoken():
    with pytest.raises(UnsupportedMediaError, match="must be application/json"):
        TfServing(MODEL).parse_infer(b"", {"content-type": "application/octet-stream"})


# ---------------------------------------------------------------------- answers


@UNHURRIED
@given(st.integers(1, 4), st.integers(0, 99), st.booleans(), st.booleans())
def test_answers_pass_number_for_number_in_the_layout_they_came_in(rows, seed, columnar, named):
    model = model_of(IMAGES, outputs=("label",))
    dialect = TfServing(model)
    request = InferRequest(np.zeros((rows, 1, 2, 3), np.float32), columnar=columnar)
    probs = random_probs(rows, seed).astype(np.float64).tolist()
    columns = {"probs": probs, "label": list(range(rows))}
    if columnar:
        answer = {"outputs": columns if named else probs}
    else:
        answer = {
            "predictions": [{name: columns[name][row] for name in columns} for row in range(rows)] if named else probs,
        }
    response = dialect.parse_infer_response(json.dumps(answer).encode(), {}, request)
    assert np.allclose(response.probs, probs, atol=1e-6)
    assert json.loads(dialect.build_infer_response(response, request).body) == answer


def test_outputs_that_are_not_on_the_list_stay_behind_and_the_rest_keeps_its_names():
    answer = {"predictions": [{"probs": [0.0, 0.0, 1.0], "features": [4.0]}, {"probs": [1.0, 0.0, 0.0], "features": [5.0]}], "model": "x"}
    response = TfServing(MODEL).parse_infer_response(json.dumps(answer).encode(), {}, TWO)
    assert json.loads(TfServing(MODEL).build_infer_response(response, TWO).body) == {
        "predictions": [{"probs": [0.0, 0.0, 1.0]}, {"probs": [1.0, 0.0, 0.0]}]
    }


def test_text_labels_truth_values_and_whole_numbers_keep_their_json_types():
    model = model_of(IMAGES, outputs=("word", "sure", "rank"))
    rows = [
        {"probs": [1, 0, 0], "word": "noll", "sure": True, "rank": [1, 2]},
        {"probs": [0, 1, 0], "word": "ett", "sure": False, "rank": [2, 1]},
    ]
    response = TfServing(model).parse_infer_response(json.dumps({"predictions": rows}).encode(), {}, TWO)
    assert TfServing(model).build_infer_response(response, TWO).body == json.dumps({"predictions": rows}, separators=(",", ":")).encode()


def test_labels_are_read_as_one_hot_rows():
    model = model_of(IMAGES, output_kind="labels")
    for predictions in ([2, 0], [[2], [0]]):
        response = TfServing(model).parse_infer_response(json.dumps({"predictions": predictions}).encode(), {}, TWO)
        assert response.probs.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_coarsened_answer_of_whole_numbers_may_become_fractions():
    response = TfServing(MODEL).parse_infer_response(b'{"predictions": [[1, 0, 0], [0, 1, 0]]}', {}, TWO)
    coarse = response.replaced("probs", np.full((2, 3), 0.25, np.float32))
    assert json.loads(TfServing(MODEL).build_infer_response(coarse, TWO).body) == {"predictions": [[0.25] * 3] * 2}
    kept = response.replaced("probs", np.array([[0, 0, 1], [0, 1, 0]], np.float32))
    assert TfServing(MODEL).build_infer_response(kept, TWO).body == b'{"predictions":[[0,0,1],[0,1,0]]}'


@pytest.mark.parametrize(
    ("body", "request_", "message"),
    [
        (b'{"outputs": [[1, 0, 0], [0, 1, 0]]}', TWO, "must be a JSON object with predictions, got an object"),
        (b'{"predictions": [[1, 0, 0], [0, 1, 0]]}', TWO_COLUMNS, "must be a JSON object with outputs"),
        (b'["predictions"]', TWO, "must be a JSON object with predictions, got a list"),
        (b'{"predictions": [[1, 0, 0]]}', TWO, "must hold 2 rows of output 'probs'"),
        (b'{"predictions": [[1, 0, 0], [0, 1]]}', TWO, "nested data must have the shape"),
        (b'{"predictions": [[1, 0], [0, 1]]}', TWO, r"must return shape \(2, 3\)"),
        (b'{"predictions": []}', TWO, "must hold 2 rows"),
        (b'{"predictions": {"probs": [[1, 0, 0], [0, 1, 0]]}}', TWO, "must be a list of rows, got an object"),
        (b'{"predictions": [{"probs": [1, 0, 0]}, {"other": [0, 1, 0]}]}', TWO, "must name the same outputs in every row"),
        (b'{"predictions": [{"other": [1, 0, 0]}, {"other": [0, 1, 0]}]}', TWO, r"must hold 2 rows of output 'probs', got \['other'\]"),
        (b'{"predictions": [[1, "x", 0], [0, 1, 0]]}', TWO, "must be numbers, strings or truth values of one kind"),
        (b'{"predictions": [[NaN, 0, 0], [0, 1, 0]]}', TWO, "strict JSON"),
        (b'{"predictions": [[0.5, 0, 0], [0, 1, 0]]}', TWO, "must return probabilities that sum to 1"),
        (b'{"outputs": {"probs": 1}}', TWO_COLUMNS, "must be a list of rows, got 1"),
        (b'{"outputs": ' + b"[" * 900 + b"]" * 900 + b"}", TWO_COLUMNS, "must be numbers, strings or truth values|must have the shape"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(body, request_, message):
    with pytest.raises(InvalidResponseError, match=message):
        TfServing(MODEL).parse_infer_response(body, {}, request_)


# ---------------------------------------------------------------------- around it


def test_the_metadata_of_a_saved_model_is_read():
    def shape(*sides: int) -> dict:
        return {"dim": [{"size": str(side), "name": ""} for side in sides], "unknown_rank": False}

    signature = {
        "inputs": {"input": {"dtype": "DT_FLOAT", "tensor_shape": shape(-1, 2, 3, 1), "name": "serving_default_input:0"}},
        "outputs": {"probs": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [], "unknown_rank": True}, "name": "StatefulPartitionedCall:0"}},
        "method_name": "tensorflow/serving/predict",
    }
    body = {
        "model_spec": {"name": "digits", "signature_name": "", "version": "3"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }
    assert TfServing(MODEL).parse_metadata(json.dumps(body).encode()) == ModelMetadata(
        "digits", ("3",), (TensorSpec("input", "FP32", (-1, 2, 3, 1)),), (TensorSpec("probs", "FP32", None),)
    )
    assert TfServing(MODEL).parse_metadata(b'{"name": "digits", "ready": true}') == ModelMetadata("digits")
    assert TfServing(MODEL).parse_extensions(b"{}") == frozenset()
    for broken in (b"[]", b"{}", b"<", b'{"model_spec": {"name": "x"}, "metadata": {"signature_def": 1}}'):
        with pytest.raises(InvalidResponseError, match="model metadata must give a name and its signature"):
            TfServing(MODEL).parse_metadata(broken)


def test_a_client_and_a_server_of_ours_understand_each_other():
    contract = InputContract.images(3, 2, 2, dtype="UINT8", layout="NHWC")
    model = model_of(contract)
    dialect = TfServing(model)
    assert isinstance(dialect, Dialect)
    queries = contract.decode(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
    sent = dialect.build_infer(ask(queries, model))
    request = dialect.parse_infer(sent.body, sent.headers)
    assert np.array_equal(request.queries, queries)
    response = dialect.parse_infer_response(b'{"predictions": [[0.5, 0.5, 0], [0, 0.25, 0.75]]}', {}, request)
    answer = dialect.build_infer_response(response, request)
    assert dialect.parse_infer_response(answer.body, answer.headers, ask(queries, model)).probs.tolist() == [[0.5, 0.5, 0], [0, 0.25, 0.75]]


def test_there_are_no_parameters_to_allow():
    with pytest.raises(ConfigurationError, match=r"tf-serving requests have no parameters, got \['temperature'\]"):
        TfServing(model_of(IMAGES, parameters=("temperature",)))
