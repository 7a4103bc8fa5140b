"""Differential bypass: every body that two parsers could read differently is refused, or goes on as exactly what was scored."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import IMAGES, MODEL, UNHURRIED, as_upstream_reads, binary_body, json_body, model_of

from sameguard.contract import InputContract
from sameguard.protocol import BodyTooLargeError, InvalidRequestError, Limits, OpenInference, PlainJson, TfServing, WireError

UINT8 = InputContract.images(1, 2, 3, dtype="UINT8")
ZEROS = np.zeros((1, 1, 2, 3), np.float32)
TENSOR = {"name": "input", "shape": [1, 1, 2, 3], "datatype": "FP32", "data": [0.0] * 6}


def request_with(**changes: object) -> bytes:
    """A good request with its input changed; `...` takes a member away."""
    tensor = {name: value for name, value in {**TENSOR, **changes}.items() if value is not ...}
    return json.dumps({"inputs": [tensor]}).encode()


def numbers(text: str) -> bytes:
    """A good request whose first number is spelled like this."""
    return request_with(data=["@", 0, 0, 0, 0, 0]).replace(b'"@"', text.encode())


GOOD = request_with()

REFUSED = {
    # two readings of one text
    "repeated inputs": (GOOD[:-1] + b', "inputs": []}', "each key once"),
    "repeated inputs, escaped": (GOOD[:-1] + b', "\\u0069nputs": []}', "each key once"),
    "repeated data": (GOOD.replace(b'"data"', b'"data": [1,1,1,1,1,1], "data"'), "each key once"),
    "repeated shape in an input": (GOOD.replace(b'"name"', b'"shape": [1], "name"'), "each key once"),
    "repeated unknown key": (GOOD[:-1] + b', "x": 1, "x": 2}', "each key once"),
    "key in another case": (GOOD.replace(b'"inputs"', b'"Inputs"'), "no members besides .*, got 'Inputs'"),
    "key with a look-alike letter": (GOOD.replace(b'"data"', '"d\u0430ta"'.encode()), "no members besides"),
    "key with a trailing NUL": (GOOD.replace(b'"data"', b'"data\\u0000"'), "no members besides"),
    "extra member": (GOOD[:-1] + b', "model_version": "2"}', "no members besides"),
    "extra member of an input": (request_with(contents={"fp32_contents": [1]}), "no members besides"),
    "another model's name": (GOOD[:-1] + b', "model_name": "other"}', "model_name must be 'digits', as in the path, got 'other'"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "strict JSON"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "strict JSON"),
    "invalid UTF-8": (GOOD.replace(b"input", b"inp\xff", 1), "strict JSON"),
    "half a surrogate pair": (GOOD.replace(b'"FP32"', b'"\\ud800"'), "strict JSON"),
    "something behind the end": (GOOD + b"{}", "strict JSON"),
    "NUL behind the end": (GOOD + b"\0", "strict JSON"),
    "comment": (GOOD.replace(b"[0.0", b"[/**/0.0"), "strict JSON"),
    "trailing comma": (GOOD.replace(b"0.0]", b"0.0,]"), "strict JSON"),
    "single quotes": (GOOD.replace(b'"', b"'"), "strict JSON"),
    "empty body": (b"", "strict JSON"),
    "not an object": (b"[]", "request must be a JSON object, got a list"),
    "60 000 levels": (b'{"inputs":' + b"[" * 60_000 + b"]" * 60_000 + b"}", "at most 1124 lists|at most 10.. lists"),
    "1 100 objects deep": (b'{"a":' * 1100 + b"1" + b"}" * 1100, "at most 10.. objects"),
    "1 026 levels": (b'{"inputs":' + b"[" * 1026 + b"]" * 1026 + b"}", "at most 1024 levels deep"),
    # numbers
    "NaN": (numbers("NaN"), "strict JSON"),
    "Infinity": (numbers("-Infinity"), "strict JSON"),
    "1e999": (numbers("1e999"), "strict JSON"),
    "1e39, infinite as float32": (numbers("1e39"), "must be finite"),
    "out of range": (numbers("1.1"), r"must lie in \[0, 1\]"),
    "leading zero": (numbers("01"), "strict JSON"),
    "hexadecimal": (numbers("0x1"), "strict JSON"),
    "null": (numbers("null"), "must be all numbers"),
    "true": (numbers("true"), "must be all numbers"),
    "text": (numbers('"1"'), "must be all numbers"),
    "NaN as text": (numbers('"NaN"'), "must be all numbers"),
    "list in flat data": (numbers("[1]"), r"must have the shape \(1, 1, 2, 3\): lists of 1 at depth 1, got one of 6"),
    "object in flat data": (numbers('{"b64": "AAAA"}'), "must be all numbers"),
    "object behind a number": (numbers('0, {"b64": "AAAA"}'), "object where numbers belong"),
    "empty object in flat data": (numbers("{}"), "must be all numbers"),
    # shapes and sizes
    "shape past 2^63": (request_with(shape=[2**63, 1, 2, 3]), "batch must hold 1 to 4 rows, got 9223372036854775808"),
    "shape that overflows to its size": (request_with(shape=[2**62 + 1, 4, 2, 3]), "input shape must be"),
    "negative shape": (request_with(shape=[-1, 1, 2, 3]), "batch must hold 1 to 4 rows, got -1"),
    "no rows": (request_with(shape=[0, 1, 2, 3], data=[]), "batch must hold 1 to 4 rows, got 0"),
    "too many rows": (request_with(shape=[5, 1, 2, 3], data=[0] * 30), "batch must hold 1 to 4 rows, got 5"),
    "float shape": (request_with(shape=[1.0, 1, 2, 3]), "input shape must be .*, got a list"),
    "truth value in the shape": (request_with(shape=[True, 1, 2, 3]), "input shape must be"),
    "other shape of the same size": (request_with(shape=[1, 1, 3, 2]), r"input shape must be \[rows, 1, 2, 3\], got \[1, 1, 3, 2\]"),
    "no batch axis": (request_with(shape=[1, 2, 3]), "input shape must be"),
    "flattened": (request_with(shape=[1, 6]), "input shape must be"),
    "no shape": (request_with(shape=...), "input shape must be"),
    "too few values": (request_with(data=[0.0] * 5), "must hold as many values"),
    "too many values": (request_with(data=[0.0] * 7), "must hold as many values"),
    "ragged": (request_with(data=[[[[0, 0, 0], [0, 0, 0, 0]]]]), "lists of 3 at depth 4, got one of 4"),
    "nested otherwise": (request_with(data=[[0, 0, 0, 0, 0, 0]]), "nested data must have the shape"),
    "too deep": (request_with(data=[[[[[0], [0], [0]], [[0], [0], [0]]]]]), "must be all numbers"),
    "data is text": (request_with(data="000000"), "data must be a list, got '000000'"),
    "data is null": (request_with(data=None), "data must be a list, got None"),
    # names and types
    "no inputs": (b"{}", "must be a list of the one input 'input', got None"),
    "empty inputs": (b'{"inputs":[]}', "must be a list of the one input 'input', got 0 of them"),
    "two inputs": (json.dumps({"inputs": [TENSOR, TENSOR]}).encode(), "got 2 of them"),
    "extra input": (json.dumps({"inputs": [TENSOR, {**TENSOR, "name": "mask"}]}).encode(), "got 2 of them"),
    "inputs as an object": (json.dumps({"inputs": {"0": TENSOR}}).encode(), "got an object"),
    "input is text": (b'{"inputs":["x"]}', "input must be a JSON object, got 'x'"),
    "another input": (request_with(name="other"), "input name must be 'input', got 'other'"),
    "name in another normal form": (request_with(name="i\u0301nput"), "input name must be 'input'"),
    "another datatype": (request_with(datatype="FP64"), "input datatype must be FP32, got 'FP64'"),
    "datatype in another case": (request_with(datatype="fp32"), "input datatype must be FP32, got 'fp32'"),
    "no datatype": (request_with(datatype=...), "input datatype must be FP32, got None"),
    "list as datatype": (request_with(datatype=["FP32"]), "input datatype must be FP32, got a list"),
    # data elsewhere than in the body
    "data beside binary_data_size": (request_with(parameters={"binary_data_size": 24}), "either data or binary_data_size, got both"),
    "neither": (request_with(data=...), "either data or binary_data_size, got neither"),
    "binary_data_size without bytes": (request_with(data=..., parameters={"binary_data_size": 24}), "got 24 and 0 bytes there"),
    "shared memory": (
        request_with(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 24}),
        "input parameter 'shared_memory_region' is not understood",
    ),
    "content type of a codec": (request_with(parameters={"content_type": "base64"}), "input parameter 'content_type' is not understood"),
    "codec of the request": (GOOD[:-1] + b', "parameters": {"content_type": "np"}}', "request parameter 'content_type' is not understood"),
    "null as a parameter": (request_with(parameters={"binary_data_size": 24, "x": None}), "input parameter 'x' is not understood"),
    "null as a parameter of the request": (GOOD[:-1] + b', "parameters": {"x": null}}', "request parameter 'x' is not understood"),
    "null as a size": (
        request_with(data=..., parameters={"binary_data_size": None}),
        "either data or binary_data_size, got neither",
    ),
    "unknown parameter": (GOOD[:-1] + b', "parameters": {"sequence_id": 1}}', "request parameter 'sequence_id' is not understood"),
    "parameters as a list": (GOOD[:-1] + b', "parameters": []}', "request parameters must be a JSON object, got a list"),
    "binary_data_output as text": (GOOD[:-1] + b', "parameters": {"binary_data_output": "yes"}}', "must be true or false, got 'yes'"),
    # outputs
    "output not on the list": (GOOD[:-1] + b', "outputs": [{"name": "logits"}]}', "must be one of probs, each once, got 'logits'"),
    "output twice": (GOOD[:-1] + b', "outputs": [{"name": "probs"}, {"name": "probs"}]}', "each once, got 'probs'"),
    "outputs as an object": (GOOD[:-1] + b', "outputs": {}}', "request outputs must be a list, got an object"),
    "output to shared memory": (
        GOOD[:-1] + b', "outputs": [{"name": "probs", "parameters": {"shared_memory_region": "r"}}]}',
        "output parameter 'shared_memory_region' is not understood",
    ),
    "classification": (
        GOOD[:-1] + b', "outputs": [{"name": "probs", "parameters": {"classification": 3}}]}',
        "output parameter 'classification' is not understood",
    ),
    "extra member of an output": (GOOD[:-1] + b', "outputs": [{"name": "probs", "data": []}]}', "no members besides"),
    "id as a number": (GOOD[:-1] + b', "id": 7}', "request id must be a string of at most 256 characters, got 7"),
    "endless id": (GOOD[:-1] + b', "id": "' + b"x" * 300 + b'"}', "at most 256 characters"),
}


@pytest.mark.parametrize("body", [GOOD, numbers("-0.0"), numbers("1e-400"), numbers("0"), numbers("1.0000000000000000000001")])
def test_the_good_request_these_are_made_of_is_read(body):
    assert OpenInference(MODEL).parse_infer(body, {}).queries.shape == (1, 1, 2, 3)


@pytest.mark.parametrize(("body", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_what_two_parsers_could_read_differently_is_400(body, message):
    with pytest.raises(InvalidRequestError, match=message) as refused:
        OpenInference(MODEL).parse_infer(body, {})
    assert refused.value.status == 400
    assert len(refused.value.public_reason) < 400


BINARY, HEADER = binary_body(ZEROS, IMAGES)
JSON_LENGTH = int(HEADER["inference-header-content-length"])


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (BINARY[:-1], JSON_LENGTH, "got 24 and 23 bytes there"),
        (BINARY + b"\0", JSON_LENGTH, "got 24 and 25 bytes there"),
        (BINARY.replace(b"24", b"23"), JSON_LENGTH, "got 23 and 24 bytes there"),
        (BINARY.replace(b"24", b"-1"), JSON_LENGTH, "got -1 and 24 bytes there"),
        (BINARY.replace(b"24", b"24.0"), JSON_LENGTH + 2, r"got 24\.0 and 24 bytes there"),
        (BINARY.replace(b" 24", b'"24'), JSON_LENGTH, "strict JSON"),
        (BINARY, JSON_LENGTH - 1, "strict JSON"),
        (BINARY, JSON_LENGTH + 1, "strict JSON"),
        (BINARY, len(BINARY) + 1, "must be a whole number up to the body's"),
        (BINARY, -5, "must be a whole number"),
        (BINARY, f"+{JSON_LENGTH}", "must be a whole number"),
        (BINARY, f"0{JSON_LENGTH}", "must be a whole number"),
        (BINARY, f"{JSON_LENGTH}, {JSON_LENGTH}", "must be a whole number"),
        (BINARY, "1_0", "must be a whole number"),
        (BINARY, "\u0661", "must be a whole number"),
        (BINARY, "", "must be a whole number"),
        (BINARY, "9" * 5000, "must be a whole number"),
        (BINARY, 0, "a raw request must be one query of 24 bytes"),
        (bytes(48), 0, "a raw request must be one query of 24 bytes, got 48"),
        (GOOD + bytes(24), len(GOOD), "must end with its JSON part where the input has data, got 24 bytes more"),
        (binary_body(np.full((1, 1, 2, 3), np.nan), IMAGES)[0], JSON_LENGTH, "must be finite"),
        (binary_body(np.full((1, 1, 2, 3), np.inf), IMAGES)[0], JSON_LENGTH, "must be finite"),
        (binary_body(np.full((1, 1, 2, 3), -0.5), IMAGES)[0], JSON_LENGTH, r"must lie in \[0, 1\]"),
    ],
)
def test_binary_bodies_have_exactly_their_bytes_and_finite_values(body, length, message):
    with pytest.raises(InvalidRequestError, match=message):
        OpenInference(MODEL).parse_infer(body, {"inference-header-content-length": str(length)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("256", r"must lie in \[0, 255\]"),
        ("-1", r"must lie in \[0, 255\]"),
        ("18446744073709551616", "must be all whole numbers"),
        ("1.0", "must be all whole numbers"),
        ("1e2", "must be all whole numbers"),
        ("true", "must be all whole numbers"),
    ],
)
def test_bytes_in_json_are_whole_numbers_from_0_to_255(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        OpenInference(model_of(UINT8)).parse_infer(numbers(text).replace(b"FP32", b"UINT8"), {})


# ---------------------------------------------------------------------- size before memory


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs":[' + b"{}," * 30_000 + b"{}]}", "must hold at most 10.. values for this model"),
        (b'{"inputs":[' + b"0," * 60_000 + b"0]}", "must hold at most 10.. values for this model"),
        (b"[" * 100_000, "must hold at most 10.. lists for this model"),
        (b'{"a":' * 20_000, "must hold at most 10.. objects for this model"),
    ],
)
def test_more_values_than_the_model_can_take_are_refused_before_they_are_allocated(body, message):
    dialect = OpenInference(MODEL)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match=message):
            dialect.parse_infer(body, {})
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 2**20
    finally:
        tracemalloc.stop()


def test_gzip_bombs_and_large_bodies_are_413():
    bomb = gzip.compress(bytes(64 * 2**20))
    dialect = OpenInference(MODEL)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError, match=r"must inflate to at most 1[0-9]{5} bytes, got more") as refused:
            dialect.parse_infer(bomb, {"content-encoding": "gzip"})
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    with pytest.raises(BodyTooLargeError, match=f"body must have at most {MODEL.request_limits.body_bytes} bytes, got 200000"):
        dialect.parse_infer(b" " * 200_000, {})  # more than this small model can need
    with pytest.raises(BodyTooLargeError, match="body must have at most 100 bytes, got 101"):
        OpenInference(model_of(IMAGES, limits=Limits(body_bytes=100))).parse_infer(bytes(101), {})


# ---------------------------------------------------------------------- whatever comes


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text('aé":{}[],\\\u2028', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TENSOR, "inputs", "outputs", "parameters", "id"]), inner),
    max_leaves=12,
)


@UNHURRIED
@given(st.dictionaries(st.sampled_from([*TENSOR, "parameters"]), JSON), st.dictionaries(st.sampled_from(["outputs", "id", "x"]), JSON))
def test_any_change_to_a_request_is_refused_or_goes_on_as_scored(changes, members):
    dialect = OpenInference(MODEL)
    body = json.dumps({"inputs": [{**TENSOR, **changes}], **members}).encode()
    try:
        request = dialect.parse_infer(body, {})
    except WireError:
        return
    assert as_upstream_reads(dialect.build_infer(request), IMAGES).tobytes() == IMAGES.encode(request.queries).tobytes()


@UNHURRIED
@given(
    st.integers(0, len(BINARY) - 1),
    st.integers(0, 255),
    st.sampled_from([GOOD, BINARY]),
)
def test_any_flipped_byte_is_refused_or_goes_on_as_scored(at, byte, body):
    dialect = OpenInference(MODEL)
    at %= len(body)
    changed = body[:at] + bytes([byte]) + body[at + 1 :]
    try:
        request = dialect.parse_infer(changed, HEADER if body is BINARY else {})
    except WireError:
        return
    assert as_upstream_reads(dialect.build_infer(request), IMAGES).tobytes() == IMAGES.encode(request.queries).tobytes()


@UNHURRIED
@given(st.binary(max_size=200), st.sampled_from([{}, {"content-encoding": "gzip"}, {"inference-header-content-length": "9"}]))
def test_any_bytes_at_all_are_refused_with_a_reason(body, headers):
    for dialect in (OpenInference(MODEL), TfServing(MODEL), PlainJson(MODEL)):
        with pytest.raises(WireError):
            dialect.parse_infer(body, headers)


def test_id_and_encoding_are_not_part_of_the_question_and_parameters_are():
    dialect = OpenInference(model_of(IMAGES, parameters=("temperature",)))

    def digest(body: bytes) -> bytes:
        return dialect.parse_infer(body, {}).digest(dialect.model)

    plain = digest(json_body(ZEROS, IMAGES))
    assert digest(json_body(ZEROS, IMAGES, id="1")) == plain
    assert digest(json_body(ZEROS, IMAGES, parameters={"binary_data_output": True})) == plain
    assert digest(json_body(ZEROS, IMAGES, parameters={"temperature": 1})) != plain
