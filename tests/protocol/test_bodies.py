"""Bodies before they are understood: strict JSON, bounded inflation, headers that say things once."""

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import UNHURRIED

from sameguard.contract import InputContract
from sameguard.protocol import (
    BodyTooLargeError,
    InvalidRequestError,
    Limits,
    ModelContract,
    UnsupportedMediaError,
    inflate,
    read_headers,
    travelling_headers,
)
from sameguard.protocol.dialect import checked_rows
from sameguard.protocol.inflate import FREE_BYTES
from sameguard.protocol.json_reading import JsonBudget, read_json, write_json
from sameguard.protocol.tensors import array_from_bytes, array_from_json

WIDE = JsonBudget(10**6, 10**6, 10**6)
KEYS = st.text('ab":\\{[é,', max_size=3)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)

# ---------------------------------------------------------------------- JSON


@UNHURRIED
@given(DOCUMENTS, st.booleans())
def test_any_document_without_repeated_keys_is_read_as_the_standard_library_reads_it(document, ascii_only):
    assert read_json(json.dumps(document, ensure_ascii=ascii_only).encode()) == document
    assert read_json(write_json(document)) == document


@UNHURRIED
@given(st.dictionaries(KEYS, st.integers(), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_a_repeated_key_is_refused_wherever_it_is_and_however_it_is_spelled(members, which, depth, escaped):
    name = list(members)[which % len(members)]
    spelled = '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"' if escaped else json.dumps(name)
    text = json.dumps(members)[:-1] + f" , {spelled} : 1 }}"
    for _ in range(depth):
        text = f'{{"in": [{text}]}}'
    for budget in (None, WIDE):
        with pytest.raises(InvalidRequestError, match="must give each key once"):
            read_json(text.encode(), budget)


@UNHURRIED
@given(DOCUMENTS, st.binary(min_size=1, max_size=3), st.integers(0, 50))
def test_a_damaged_document_is_refused_or_reads_as_some_document(document, noise, at):
    text = json.dumps(document).encode()
    try:
        found = read_json(text[:at] + noise + text[at:])
    except InvalidRequestError:
        return
    assert read_json(write_json(found)) == found


def test_objects_in_lists_of_lists_are_read_in_answers_and_refused_in_requests():
    for text in (b'[[{"a": 1}]]', b'[1, {"a": 1}]'):
        assert read_json(text) == json.loads(text)
        with pytest.raises(InvalidRequestError, match="an object where numbers belong"):
            read_json(text, WIDE)
    assert read_json(b'[{"a": 1}, {"a": 2}]', WIDE) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"[0,0,0,0]", "at most 2 values"), (b"[[],[]]", "at most 2 lists"), (b'{"a":{},"b":{}}', "at most 2 objects")],
)
def test_a_document_past_its_budget_is_refused_unread(text, message):
    with pytest.raises(InvalidRequestError, match=f"JSON must hold {message} for this model, got [0-9]+: send fewer rows"):
        read_json(text, JsonBudget(2, 2, 2))


# ---------------------------------------------------------------------- inflation

LIMITS = Limits(body_bytes=2**20, inflate_ratio=100)


@UNHURRIED
@given(st.binary(max_size=3000), st.integers(1, 9))
def test_compressed_bodies_come_back_as_they_were(content, level):
    assert inflate(gzip.compress(content, level), "gzip", LIMITS) == content
    assert inflate(zlib.compress(content, level), " Deflate ", LIMITS) == content
    assert inflate(content, "", LIMITS) == content
    assert inflate(content, "identity", LIMITS) == content


def test_large_bodies_are_inflated_across_pieces():
    content = bytes(range(256)) * 3900
    assert inflate(zlib.compress(content, 0), "deflate", Limits(2**21)) == content
    assert inflate(gzip.compress(content), "gzip", Limits(2**21, 1000)) == content


@pytest.mark.parametrize("size", [FREE_BYTES, 2**20])
def test_the_limits_themselves_are_allowed_and_one_byte_more_is_not(size):
    limits = Limits(size, 10_000)
    assert len(inflate(gzip.compress(bytes(size)), "gzip", limits)) == size
    with pytest.raises(BodyTooLargeError, match=f"must inflate to at most {size} bytes, got more"):
        inflate(gzip.compress(bytes(size + 1)), "gzip", limits)


def test_the_ratio_counts_beyond_what_is_free():
    assert len(inflate(gzip.compress(bytes(FREE_BYTES)), "gzip", Limits(2**20, 1))) == FREE_BYTES
    with pytest.raises(BodyTooLargeError, match=f"at most {FREE_BYTES} bytes"):
        inflate(gzip.compress(bytes(FREE_BYTES + 1)), "gzip", Limits(2**20, 1))


def test_broken_cut_or_continued_streams_are_refused():
    whole = gzip.compress(b"hello" * 100)
    for body, message in [
        (b"plain", "must be valid gzip"),
        (whole[:-1], "must be complete gzip"),
        (whole[:12], "must be complete gzip"),
        (b"", "must be complete gzip"),
        (whole[:-8] + bytes(8), "must be valid gzip"),
        (whole + b"x", "must be one gzip stream"),
        (whole + whole, "must be one gzip stream"),
        (whole + bytes(200_000), "must be one gzip stream"),
    ]:
        with pytest.raises(InvalidRequestError, match=message):
            inflate(body, "gzip", LIMITS)
    with pytest.raises(InvalidRequestError, match="must be valid deflate"):
        inflate(zlib.compress(b"hello", wbits=-15), "deflate", LIMITS)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "x-gzip", "gzip,gzip", "gzip, identity"])
def test_other_encodings_are_415(encoding):
    with pytest.raises(UnsupportedMediaError, match="Content-Encoding must be gzip, deflate or identity"):
        inflate(b"", encoding, LIMITS)


# ---------------------------------------------------------------------- headers


def test_names_are_lower_case_and_repeats_joined():
    raw = [(b"Accept", b" a "), (b"ACCEPT", b"b"), (b"X-Name", "\xe9".encode("latin-1"))]
    assert read_headers(raw) == {"accept": "a, b", "x-name": "\xe9"}


@pytest.mark.parametrize(
    "name",
    ["content-type", "content-encoding", "content-length", "transfer-encoding", "host", "inference-header-content-length", "guard-proof"],
)
def test_what_says_how_a_body_is_read_comes_once(name):
    with pytest.raises(InvalidRequestError, match=f"header {name} must be given once"):
        read_headers([(name.encode(), b"1"), (name.upper().encode(), b"1")])


def test_the_end_of_a_body_is_said_in_one_way():
    with pytest.raises(InvalidRequestError, match="must have Content-Length or Transfer-Encoding, got both"):
        read_headers([(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")])


@pytest.mark.parametrize(
    "pair", [(b"a b", b""), (b"", b""), (b"a:", b""), (b"a\xff", b""), (b"a", b"x\ny: z"), (b"a", b"\0"), (b"a", b"\x7f")]
)
def test_names_that_are_no_tokens_and_values_with_control_characters_are_refused(pair):
    with pytest.raises(InvalidRequestError, match="header names must be tokens and values printable"):
        read_headers([pair])


def test_only_listed_headers_travel_on():
    sent = {
        "host": "a",
        "content-type": "application/json",
        "content-length": "5",
        "accept-encoding": "gzip",
        "guard-proof": "p",
        "guard-pass": "p",
        "connection": "keep-alive, X-Tenant",
        "te": "trailers",
        "x-original-url": "/v2/repository/index",
        "x-http-method-override": "DELETE",
        "inference-header-content-length": "5",
        "authorization": "Bearer x",
        "x-forwarded-for": "10.0.0.1",
        "x-tenant": "7",
        "x-team": "blue",
        "traceparent": "00-1-2-01",
        "x-request-id": "r",
    }
    plain = {"traceparent": "00-1-2-01", "x-request-id": "r"}
    assert travelling_headers(sent) == plain
    assert travelling_headers(sent, also=("X-Team", "X-Tenant", "Guard-Pass", "Content-Type")) == plain | {"x-team": "blue"}
    assert travelling_headers(sent, trusted_peer=True, authorization=True) == plain | {
        "authorization": "Bearer x",
        "x-forwarded-for": "10.0.0.1",
    }


@pytest.mark.parametrize(
    ("data", "datatype", "sentence"),
    [
        ([1, "a", None], "FP32", "must be all numbers, got null and strings among them"),
        ([-1, 300, 0], "UINT8", r"must lie in \[0, 255\], got -1 to 300"),
        ([[1], 2, 3], "FP32", "lists of 1 at depth 2, got a value that is no list"),
    ],
)
def test_a_refusal_of_data_names_what_was_found(data, datatype, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        array_from_json(data, (3, 1), datatype)


@pytest.mark.parametrize(
    ("content", "datatype", "sentence"),
    [
        (b"\0\1\7", "BOOL", "must be bytes 0 and 1, got 7"),
        (b"\5\0\0\0abc", "BYTES", "got a string of 5 bytes where 3 are left"),
    ],
)
def test_a_refusal_of_bytes_names_what_was_found(content, datatype, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        array_from_bytes(content, (3,), datatype)


@pytest.mark.parametrize(("rows", "remedy"), [(0, "send at least one"), ("3", "send at least one"), (9, "send fewer rows at once")])
def test_a_batch_of_another_size_is_told_what_to_do(rows, remedy):
    model = ModelContract("m", InputContract.images(1, 2, 3), 3, max_rows=8)
    with pytest.raises(InvalidRequestError, match=f"batch must hold 1 to 8 rows, got {rows!r}: {remedy}"):
        checked_rows(rows, model)
