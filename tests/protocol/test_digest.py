"""The canonical digest: equal exactly for equal questions."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import UNHURRIED

from sameguard.protocol import canonical_digest

QUERIES = np.array([[[[0.0, 1.0]]]], np.float32)
QUESTION = {
    "model": "digits",
    "version": "3",
    "name": "input",
    "datatype": "FP32",
    "queries": QUERIES,
    "parameters": {"a": 1},
    "outputs": ("probs",),
}


def test_the_digest_is_sha_256_over_length_framed_slots():
    def slot(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content

    count = struct.pack("<Q", 1)
    values = [b"sameguard query 1", b"digits", b"=3", count, b"input", b"FP32", struct.pack("<4Q", 1, 1, 1, 2), struct.pack("<2f", 0, 1)]
    values += [count, b"a", b"1", count, b"probs"]
    assert canonical_digest(**QUESTION) == hashlib.sha256(b"".join(map(slot, values))).digest()


OTHER = {
    "model": ["digit", "digits3"],
    "version": [None, "", "=3", "33"],
    "name": ["inpu", "inputFP32"],
    "datatype": ["UINT8"],
    "queries": [QUERIES[:, :, :, ::-1], QUERIES.reshape(1, 1, 2, 1), QUERIES.reshape(2, 1, 1, 1), QUERIES + np.float32(1e-3)],
    "parameters": [{}, {"a": True}, {"a": 1.0}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 1}],
    "outputs": [(), ("probs", "logits"), ("prob",)],
}


def test_every_part_of_the_question_counts_and_so_does_the_type_of_a_parameter():
    digests = [canonical_digest(**QUESTION)]
    digests += [canonical_digest(**{**QUESTION, part: value}) for part, values in OTHER.items() for value in values]
    assert len(set(digests)) == len(digests)


def test_order_sign_of_zero_and_memory_layout_do_not_count():
    question = {**QUESTION, "parameters": {"a": 1, "b": 0.0}, "outputs": ("x", "probs")}
    same = {**question, "parameters": {"b": -0.0, "a": 1}, "outputs": ("probs", "x", "x"), "queries": np.asfortranarray(QUERIES)}
    assert canonical_digest(**question) == canonical_digest(**same)
    assert canonical_digest(**{**question, "queries": QUERIES * np.float32(-0.0) + QUERIES}) == canonical_digest(**question)
    negative = QUERIES.copy()
    negative[0, 0, 0, 0] = -0.0
    assert canonical_digest(**{**question, "queries": negative}) == canonical_digest(**question)


@UNHURRIED
@given(st.lists(st.text(max_size=3), min_size=2, max_size=2), st.lists(st.text(max_size=3), min_size=2, max_size=2))
def test_moving_letters_between_neighbouring_slots_changes_the_digest(left, right):
    digests = [canonical_digest(model, None, name, "FP32", QUERIES, {}, ()) for model, name in (left, right)]
    assert (digests[0] == digests[1]) == (left == right)


@pytest.mark.parametrize("version", [None, "1"])
def test_a_digest_has_32_bytes(version):
    assert len(canonical_digest("m", version, "x", "FP32", QUERIES, {}, ())) == 32
