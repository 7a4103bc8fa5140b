"""Bodies cut into halves and answers joined, without a model contract: the same rows in the same order, or not at all."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_guard import MODEL

from sameguard.client.batch import Batch
from sameguard.protocol import InferResponse, OpenInference, Tensor, TfServing, ask, read_headers
from stand_ins import CLASSES, linear_victim, noise_images

MOST = 10**7
INFER = "/v2/models/digits/infer"
PREDICT = "/v1/models/digits:predict"
WIDE = replace(MODEL, max_rows=64)


def pairs(headers):
    return list(headers.items())


def read(message, path=INFER):
    return Batch.read(path, pairs(message.headers), message.body, MOST)


def parts(batch):
    """The batch in single rows."""
    return [batch] if batch.rows == 1 else [part for half in batch.halves() for part in parts(half)]


def parsed(dialect, batch):
    headers, body = batch.message()
    return dialect.parse_infer(body, read_headers((name.encode(), value.encode()) for name, value in headers))


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize("binary", [True, False])
@given(rows=st.integers(2, 20))
def test_the_rows_of_all_parts_are_those_of_the_whole_in_their_order(binary, rows):
    dialect = OpenInference(replace(WIDE, binary_tensors=binary))
    queries = noise_images(rows)
    request = replace(ask(queries, dialect.model), id="7")
    batch = read(dialect.build_infer(request))
    found = [parsed(dialect, part) for part in parts(batch)]
    np.testing.assert_array_equal(np.concatenate([part.queries for part in found]), queries)
    assert {(len(part.queries), part.outputs) for part in found} == {(1, ("probs",))}


@pytest.mark.parametrize("columnar", [False, True])
@given(rows=st.integers(2, 9))
def test_tf_serving_is_cut_as_well(columnar, rows):
    dialect = TfServing(WIDE)
    queries = noise_images(rows)
    batch = read(dialect.build_infer(replace(ask(queries, WIDE), columnar=columnar)), PREDICT)
    found = [parsed(dialect, part) for part in parts(batch)]
    np.testing.assert_array_equal(np.concatenate([part.queries for part in found]), queries)
    assert all(part.columnar == columnar for part in found)


def test_named_columns_nested_data_and_compressed_bodies_are_cut():
    queries = noise_images(4)
    named = json.dumps({"inputs": {"input": queries.tolist()}, "signature_name": "serving_default"}).encode()
    halves = Batch.read(PREDICT, [], named, MOST).halves()
    np.testing.assert_array_equal(parsed(TfServing(WIDE), halves[1]).queries, queries[2:])
    nested = {"id": "a", "inputs": [{"name": "input", "datatype": "FP32", "shape": [4, 1, 4, 4], "data": queries.tolist()}]}
    body = gzip.compress(json.dumps(nested).encode())
    first, _ = Batch.read(INFER, [("Content-Encoding", "gzip"), ("X-Key", "k"), ("Guard-Proof", "p")], body, MOST).halves()
    np.testing.assert_array_equal(parsed(OpenInference(WIDE), first).queries, queries[:2])
    headers, _ = first.message()
    assert headers == [("X-Key", "k"), ("accept-encoding", "identity"), ("content-type", "application/json")]


def tensor(**changes):
    return {"name": "input", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0], **changes}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"input": [[1.0], [2.0]]}),
        ("/v2/models/digits/infer?x=1", {"inputs": [tensor()]}),
        (INFER, {"inputs": [tensor(shape=[1, 4])]}),
        (INFER, {"inputs": [tensor(shape=[4, 2])]}),
        (INFER, {"inputs": [tensor(shape=[0, 2], data=[])]}),
        (INFER, {"inputs": [tensor(shape=["2", 2])]}),
        (INFER, {"inputs": [tensor(shape=[])]}),
        (INFER, {"inputs": [tensor(), tensor(name="other", shape=[1, 4])]}),
        (INFER, {"inputs": [tensor(data="abcd")]}),
        (INFER, {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}]}),
        (INFER, {"inputs": []}),
        (INFER, {"inputs": 7}),
        (INFER, [1, 2]),
        (PREDICT, {"instances": [[1.0]]}),
        (PREDICT, {"instances": [[1.0], [2.0]], "inputs": [[1.0], [2.0]]}),
        (PREDICT, {"inputs": {"a": [1.0, 2.0], "b": [1.0]}}),
        (PREDICT, {"inputs": {}}),
        (PREDICT, {"instances": "ab"}),
    ],
)
def test_what_is_not_plainly_a_batch_is_none(path, body):
    assert Batch.read(path, [], json.dumps(body).encode(), MOST) is None


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"inputs": [], "inputs": []}', b" " * (MOST + 1)])
def test_what_cannot_be_read_is_none(body):
    assert Batch.read(INFER, [], body, MOST) is None


def test_binary_strings_and_bytes_too_many_are_not_cut():
    for datatype, tail in (("BYTES", b"\1\0\0\0a\1\0\0\0b"), ("UINT8", b"0123456789?")):
        text = json.dumps({"inputs": [tensor(datatype=datatype, shape=[2], parameters={"binary_data_size": 10})]}).encode()
        text = text.replace(b', "data": [1.0, 2.0, 3.0, 4.0]', b"")
        assert Batch.read(INFER, [("inference-header-content-length", str(len(text)))], text + tail, MOST) is None


# ---------------------------------------------------------------------- answers


def answered(dialect, batch, whole, columnar=False):
    """What a server says to each half, and to the whole."""
    said = []
    for part in (*batch.halves(), batch):
        request = parsed(dialect, part)
        request = replace(request, binary_outputs=whole.binary_outputs)
        probs = linear_victim().query(request.queries).probs
        response = InferResponse((Tensor("probs", "FP32", probs),), probs, "digits")
        said.append(dialect.build_infer_response(response, request))
    return said


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [2, 5])
def test_answers_to_the_halves_become_the_answer_to_the_whole_byte_for_byte(binary, rows):
    dialect = OpenInference(replace(WIDE, binary_tensors=binary))
    request = ask(noise_images(rows), dialect.model)
    batch = read(dialect.build_infer(request))
    first, second, whole = answered(dialect, batch, request)
    headers, body = batch.joined([(pairs(part.headers), part.body) for part in (first, second)], MOST)
    assert (dict(headers), body) == (whole.headers, whole.body)


@pytest.mark.parametrize("columnar", [False, True])
def test_answers_of_tf_serving_are_joined_as_well(columnar):
    dialect = TfServing(WIDE)
    request = replace(ask(noise_images(5), WIDE), columnar=columnar)
    batch = read(dialect.build_infer(request), PREDICT)
    first, second, whole = answered(dialect, batch, request)
    headers, body = batch.joined([(pairs(part.headers), part.body) for part in (first, second)], MOST)
    assert (dict(headers), body) == (whole.headers, whole.body)


def test_named_columns_of_answers_are_joined():
    batch = Batch.read(PREDICT, [], json.dumps({"inputs": [[1.0], [2.0], [3.0]]}).encode(), MOST)
    said = [{"outputs": {"a": [1], "b": [[1, 1]]}}, {"outputs": {"a": [2, 3], "b": [[2, 2], [3, 3]]}}]
    _, body = batch.joined([([], json.dumps(document).encode()) for document in said], MOST)
    assert json.loads(body) == {"outputs": {"a": [1, 2, 3], "b": [[1, 1], [2, 2], [3, 3]]}}


ONE_ROW = {"outputs": [{"name": "probs", "datatype": "FP32", "shape": [1, CLASSES], "data": [0.2, 0.3, 0.5]}]}


def changed(**changes):
    return {"outputs": [{**ONE_ROW["outputs"][0], **changes}]}


@pytest.mark.parametrize(
    "second",
    [
        changed(name="logits"),
        changed(datatype="FP64"),
        changed(shape=[1, 1, CLASSES]),
        changed(shape=[CLASSES]),
        changed(data=[[0.2, 0.3, 0.5]]),
        {"outputs": []},
        {"outputs": [*ONE_ROW["outputs"], *ONE_ROW["outputs"]]},
        {"error": "no"},
        7,
    ],
)
def test_answers_that_do_not_fit_together_are_not_joined(second):
    batch = Batch.read(INFER, [], json.dumps({"inputs": [tensor()]}).encode(), MOST)
    first = ([], json.dumps(ONE_ROW).encode())
    assert batch.joined([first, first], MOST) is not None
    assert batch.joined([first, ([], json.dumps(second).encode())], MOST) is None


@pytest.mark.parametrize("second", [{"predictions": [1, 2]}, {"predictions": {"a": [1]}}, {"outputs": [1]}, {"predictions": 1}])
def test_nor_are_other_columns(second):
    batch = Batch.read(PREDICT, [], json.dumps({"instances": [[1.0], [2.0]]}).encode(), MOST)
    first = ([], b'{"predictions": [1]}')
    assert batch.joined([first, first], MOST) is not None
    assert batch.joined([first, ([], json.dumps(second).encode())], MOST) is None
