"""A model behind a URL as an Endpoint: the same answers as in process, refusals as refusals, and no answer lost when the server dies."""

import asyncio
import gc
import gzip
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from stub_guard import MODEL, Sleeps, StubGuard, die_half_way, problem, respond, served

from sameguard.client import (
    AnswerBook,
    CallTooCostlyError,
    ClientConfig,
    EndpointUnavailableError,
    InvalidChallengeError,
    RemoteEndpoint,
    RemoteVictim,
    SolveLimits,
    UnexpectedAnswerError,
)
from sameguard.endpoint import Endpoint, MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidQueryError, InvalidVictimError
from sameguard.ledger import Ledger
from sameguard.victim import BlackBox
from stand_ins import CLASSES, IMAGES, linear_victim, smooth_images

SMOOTH = smooth_images(20)
MIXED = np.where(np.arange(20)[:, None, None, None] % 5 == 3, np.float32(1), SMOOTH)  # rows 3, 8, 13 and 18 are white, which is suspicious
WHITE = np.arange(20) % 5 == 3


@pytest.fixture
def guard():
    return StubGuard()


@pytest.fixture
def url(guard):
    with served(guard) as url:
        yield url


@pytest.fixture
def reach(url):
    """Makes endpoints of the guard, and closes them."""
    made = []

    def make(**more):
        model, config = more.pop("model", MODEL), ClientConfig(**more.pop("config", {}))
        made.append(RemoteEndpoint(more.pop("url", url), model, sleep=Sleeps(), config=config, **more))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("binary", [False, True])
def test_it_is_an_endpoint_and_gives_what_the_victim_gives_bit_by_bit(guard, reach, binary):
    endpoint = reach(model=replace(MODEL, binary_tensors=binary))
    assert isinstance(endpoint, Endpoint)
    found = endpoint.query(SMOOTH)
    expected = linear_victim().query(SMOOTH)
    np.testing.assert_allclose(found.probs, expected.probs, rtol=0, atol=1e-7)
    assert found.answered.all()
    assert guard.batches == [8, 8, 4]
    assert ("inference-header-content-length" in guard.heard[0].headers) == binary
    assert (endpoint.rows.sent, endpoint.rows.answered, endpoint.traffic.requests) == (20, 20, 3)


def test_each_batch_pays_for_its_suspicious_rows(guard, reach):
    endpoint = reach()
    assert endpoint.query(MIXED).answered.all()
    assert guard.batches == [8, 8, 8, 8, 4, 4]
    assert endpoint.traffic.challenges == 3
    assert endpoint.traffic.tries > 0
    assert endpoint.traffic.cpu_seconds > 0


def test_who_does_not_pay_is_refused(guard, reach):
    endpoint = reach(config={"solve": False}, batch_rows=1)
    found = endpoint.query(MIXED)
    np.testing.assert_array_equal(found.answered, ~WHITE)
    assert np.isnan(found.probs[WHITE]).all()
    assert np.isfinite(found.probs[~WHITE]).all()
    assert (endpoint.rows.refused, endpoint.rows.unpaid, endpoint.rows.answered) == (4, 4, 16)


def test_one_refused_row_does_not_cost_the_others_of_its_batch_their_answers_unless_told_so(guard, reach):
    guard.suspicion = "reject"
    split = reach()
    found = split.query(MIXED)
    np.testing.assert_array_equal(found.answered, ~WHITE)
    np.testing.assert_allclose(found.probs[~WHITE], linear_victim().query(MIXED[~WHITE]).probs, atol=1e-7)
    assert (split.rows.refused, split.rows.splits) == (4, 3 + 5 + 2)
    guard.heard.clear()
    whole = reach(split_refused=False).query(MIXED)
    np.testing.assert_array_equal(whole.answered, np.zeros(20, bool))
    assert guard.batches == [8, 8, 4]


@pytest.mark.parametrize("split", [True, False])
def test_neither_does_a_row_that_is_not_paid_for(reach, split):
    endpoint = reach(config={"solve": False}, split_refused=split)
    np.testing.assert_array_equal(endpoint.query(MIXED).answered, ~WHITE if split else np.zeros(20, bool))
    assert endpoint.rows.unpaid == (4 if split else 20)


def test_a_call_ends_where_all_its_challenges_together_take_too_long(guard, reach):
    guard.work = 2**26
    endpoint = reach(config={"solving": SolveLimits(max_seconds=0.01, call_seconds=0.025)})
    with pytest.raises(CallTooCostlyError, match=r"challenges of one call must be solved within 0.025 s in all, got .* and 0 solved"):
        endpoint.query(MIXED)
    assert 1 <= endpoint.traffic.unsolved <= 3  # a busy machine is over its time sooner
    assert endpoint.query(SMOOTH).answered.all()  # another call, another purse


def test_a_batch_that_is_too_costly_is_split_and_its_order_kept(guard, reach):
    guard.costly_rows = 1
    queries = np.where(np.isin(np.arange(8), (0, 1, 6))[:, None, None, None], np.float32(1), SMOOTH[:8])
    endpoint = reach()
    found = endpoint.query(queries)
    assert found.answered.all()
    np.testing.assert_allclose(found.probs, linear_victim().query(queries).probs, atol=1e-7)
    assert [rows for rows in guard.batches if rows < 8] == [4, 2, 1, 1, 1, 1, 2, 4, 4]
    assert endpoint.batch_rows == 8  # other batches may be cheaper


def test_a_single_row_that_is_too_costly_is_refused(guard, reach):
    guard.costly_rows = 0
    np.testing.assert_array_equal(reach().query(MIXED[:4]).answered, ~WHITE[:4])


def test_a_batch_of_too_many_bytes_is_split_and_later_ones_are_smaller(guard, reach):
    endpoint = reach(model=replace(MODEL, binary_tensors=True))
    endpoint.query(SMOOTH[:1])
    guard.largest_body = len(guard.heard.pop().body) + 2 * SMOOTH[0].nbytes + 5  # three rows
    assert endpoint.query(SMOOTH).answered.all()
    assert guard.batches == [0, 0, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2, 2]
    assert endpoint.batch_rows == 2
    guard.largest_body = 10
    with pytest.raises(UnexpectedAnswerError, match="must answer with probabilities, got status 413"):
        endpoint.query(SMOOTH)


def test_a_price_that_takes_too_long_is_halved_with_the_batch_and_then_refused(guard, reach):
    guard.work = 2**26
    endpoint = reach(config={"solving": SolveLimits(max_seconds=0.005)})
    np.testing.assert_array_equal(endpoint.query(MIXED[:8]).answered, ~WHITE[:8])
    assert (endpoint.rows.unpaid, endpoint.traffic.unsolved) == (1, 4)


def test_a_hostile_challenge_stops_the_run(guard, reach):
    guard.faults.append(problem("proof-of-work-required", 402, challenge={"parameters": {}}))
    with pytest.raises(InvalidChallengeError, match="must be an object of parameters and signature"):
        reach().query(SMOOTH)


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (
            problem("not-found", 404),
            UnexpectedAnswerError,
            "got status 404: not-found, about not-found: check the model's name, 'digits', "
            r"and the dialect, oip \(tf-serving or plain-json\?\)",
        ),
        (respond(401, {}, b'{"error": "no such key"}'), UnexpectedAnswerError, "got status 401: no such key"),
        (respond(403, {}, b"denied"), UnexpectedAnswerError, "got status 403: denied"),
        (respond(301, {"location": "/x"}), UnexpectedAnswerError, "redirects are not followed"),
        (respond(400, {}, b"x" * 900), UnexpectedAnswerError, "got status 400: x+"),
        (respond(200, {}, b"{}"), InvalidVictimError, "cannot be used: answer must be a JSON object with a list of outputs"),
        (respond(200, {"content-encoding": "gzip"}, b"{}"), InvalidVictimError, "cannot be used"),
    ],
)
def test_other_answers_stop_the_run_with_what_the_server_said(guard, reach, fault, error, sentence):
    guard.faults.append(fault)
    with pytest.raises(error, match=sentence):
        reach().query(SMOOTH)
    assert len(guard.heard) == 1


def test_an_answer_is_bounded_as_it_comes_and_once_inflated(guard, reach):
    for headers, body in (({}, b" " * 5000), ({"content-encoding": "gzip"}, gzip.compress(b" " * 5000))):
        guard.faults.append(respond(200, headers, body))
        with pytest.raises((UnexpectedAnswerError, InvalidVictimError), match=r"must (have|inflate to) at most (1,000|1000) bytes"):
            reach(config={"response_bytes": 1000}).query(SMOOTH[:1])


@pytest.mark.parametrize("value", ["NaN", "1e999", "0.9"])
def test_answers_that_are_no_probabilities_are_no_answers(guard, reach, value):
    output = f'{{"name": "probs", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.5, {value}]}}'
    guard.faults.append(respond(200, {}, f'{{"model_name": "digits", "outputs": [{output}]}}'.encode()))
    with pytest.raises(InvalidVictimError, match=r"answer of http.* cannot be used"):
        reach().query(SMOOTH[:1])


def test_binary_nan_is_seen_as_well(guard, reach):
    guard.victim.answer = lambda queries: np.full((len(queries), CLASSES), np.nan, np.float32)
    with pytest.raises(InvalidVictimError, match="must return finite probs, got NaN or infinity in 1 rows"):
        reach(model=replace(MODEL, binary_tensors=True)).query(SMOOTH[:1])


def test_queries_outside_the_contract_are_not_sent(guard, reach):
    with pytest.raises(InvalidQueryError, match="query values must be finite"):
        reach().query(np.full((1, 1, 4, 4), np.nan, np.float32))
    assert guard.heard == []


def test_a_server_that_stays_overloaded_ends_the_run_with_what_it_said(guard, reach):
    guard.faults.extend([problem("unavailable")] * 2)
    with pytest.raises(EndpointUnavailableError, match=r"got status 503: unavailable, about unavailable at the last of 2 attempts.*ledger"):
        reach(config={"attempts": 2}).query(SMOOTH)


# ---------------------------------------------------------------------- runs that go on


def test_a_run_that_died_goes_on_from_its_ledger_and_asks_only_what_is_new(guard, reach, tmp_path):
    def in_fours(endpoint, queries):
        parts = [endpoint.query(queries[start : start + 4]) for start in range(0, len(queries), 4)]
        return np.concatenate([part.probs for part in parts])

    guard.faults.extend([None, None, die_half_way])
    first = MeteredEndpoint(Ledger(reach(config={"attempts": 1}), tmp_path / "run.ledger"), budget=20)
    with pytest.raises(EndpointUnavailableError, match="What a ledger holds is kept"):
        in_fours(first, SMOOTH)
    assert first.used == 12
    guard.heard.clear()
    again = MeteredEndpoint(Ledger(reach(), tmp_path / "run.ledger"), budget=20)
    np.testing.assert_allclose(in_fours(again, SMOOTH), linear_victim().query(SMOOTH).probs, atol=1e-7)
    assert again.used == 20
    assert guard.batches == [4, 4, 4]


def test_a_book_gives_each_answer_once_in_any_order_and_after_a_death(guard, reach, tmp_path):
    expected = linear_victim().query(SMOOTH).probs
    book = AnswerBook(reach(), tmp_path / "book.ledger")
    np.testing.assert_allclose(book.query(SMOOTH[[0, 1, 0, 2]]).probs, expected[[0, 1, 0, 2]], atol=1e-7)
    assert guard.batches == [3]
    again = AnswerBook(reach(), tmp_path / "book.ledger")
    np.testing.assert_allclose(again.query(SMOOTH[[5, 2, 1, 6, 0]]).probs, expected[[5, 2, 1, 6, 0]], atol=1e-7)
    assert guard.batches == [3, 2]
    assert again.query(SMOOTH[:3]).answered.all()
    assert (guard.batches, again.replayed, book.replayed) == ([3, 2], 6, 1)


# ---------------------------------------------------------------------- as a victim


@pytest.mark.parametrize("kind", ["probs", "logits", "labels"])
def test_a_victim_over_http_declares_what_the_server_gives_and_answers_probabilities(guard, url, kind):
    local = linear_victim()
    width = 1 if kind == "labels" else CLASSES
    values = {
        "probs": lambda raw: local.answer(raw),
        "logits": lambda raw: local.predict(raw),
        "labels": lambda raw: local.predict(raw).argmax(axis=1)[:, None].astype(np.float32),
    }[kind]
    guard.victim.answer = lambda queries: values(queries)
    guard.metadata["outputs"][0]["shape"] = [-1, width]
    with RemoteEndpoint.discover(url, "digits", IMAGES, CLASSES, output_kind=kind, max_rows=8) as endpoint:
        victim = RemoteVictim(endpoint)
        assert isinstance(victim, BlackBox)
        assert (victim.output, victim.batch_size, victim.name) == (kind, 8, f"{url} (digits)")
        expected = BlackBox(values, IMAGES, classes=CLASSES, output=kind).query(SMOOTH).probs
        np.testing.assert_allclose(victim.query(SMOOTH).probs, expected, atol=1e-6)
        np.testing.assert_allclose(victim.predict(IMAGES.encode(SMOOTH[:2])), expected[:2], atol=1e-6)


@pytest.mark.parametrize("suspicion", ["reject", "challenge"])
def test_a_guard_is_no_victim_to_fit_on(guard, reach, suspicion):
    guard.suspicion = suspicion
    victim = RemoteVictim(reach(config={"solve": False}))
    with pytest.raises(InvalidVictimError, match=r"must answer every query, got 1 of 8 refused: this is a guard"):
        victim.answer(MIXED)


# ---------------------------------------------------------------------- discovery


def test_names_classes_and_encoding_are_what_the_server_tells(guard, url):
    with RemoteEndpoint.discover(url, "digits", IMAGES, max_rows=8) as endpoint:
        assert (endpoint.model.output, endpoint.classes, endpoint.model.binary_tensors) == ("probs", 3, True)
        assert endpoint.query(SMOOTH).answered.all()
    guard.extensions = []
    with RemoteEndpoint.discover(url, "digits", IMAGES, 3, max_rows=8) as endpoint:
        assert not endpoint.model.binary_tensors


@pytest.mark.parametrize(
    ("change", "more", "sentence"),
    [
        ({"name": "cifar"}, {}, "upstream model must be 'digits', got 'cifar'"),
        ({"inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 1, 4, 4]}]}, {}, "must be FP32, got UINT8"),
        ({}, {"output": "scores", "classes": 3}, "must have an output 'scores', got"),
        ({}, {"output": "scores"}, "must have an output 'scores', got"),
        ({"outputs": []}, {}, "does not tell the number of classes of output 'output': give classes"),
    ],
)
def test_another_model_than_the_contracts_is_refused_before_any_query(guard, url, change, more, sentence):
    guard.metadata.update(change)
    with pytest.raises(ConfigurationError, match=sentence):
        RemoteEndpoint.discover(url, "digits", IMAGES, **more)
    assert guard.heard == []


def test_a_server_without_metadata_is_taken_at_its_word_where_classes_are_given(guard, url):
    guard.metadata = None
    with pytest.raises(
        ConfigurationError, match=r"classes of model 'digits', got no metadata.*dialect \(tf-serving or plain-json\?\), or give"
    ):
        RemoteEndpoint.discover(url, "digits", IMAGES)
    with RemoteEndpoint.discover(url, "digits", IMAGES, 3, output="probs", max_rows=8) as endpoint:
        assert endpoint.query(SMOOTH).answered.all()


def test_metadata_that_cannot_be_read_or_had_are_an_error(guard, url):
    guard.metadata = {"inputs": 7}
    with pytest.raises(
        InvalidVictimError, match=r"metadata at .*/v2/models/digits cannot be read: model metadata must give.*Check the dialect, oip"
    ):
        RemoteEndpoint.discover(url, "digits", IMAGES)

    guard.metadata = {"name": "x" * 2**20}
    with pytest.raises(UnexpectedAnswerError, match=r"digits must have at most 1,048,576 bytes, got [0-9,]+ and more"):
        RemoteEndpoint.discover(url, "digits", IMAGES)

    async def broken(scope, receive, send):
        await respond(500, {}, json.dumps({"error": "out of memory"}).encode())(receive, send)

    with served(broken) as other, pytest.raises(UnexpectedAnswerError, match="got status 500: out of memory"):
        RemoteEndpoint.discover(other, "digits", IMAGES)


# ---------------------------------------------------------------------- other dialects


def answering(reply):
    """A server that answers each JSON body with reply(body)."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        document = reply(scope["path"], json.loads(body) if body else None)
        await respond(200 if document else 404, {}, json.dumps(document).encode())(receive, send)

    return app


def probs_of(instances):
    return linear_victim().answer(IMAGES.canonicalise(np.array(instances, np.float32))).tolist()


def test_tf_serving_and_plain_json_are_spoken(reach):
    def tf_serving(path, body):
        return {"predictions": probs_of(body["instances"])} if path == "/v1/models/digits:predict" else None

    def plain(path, body):
        return {"probs": probs_of([body["input"]])[0]} if path == "/predict" else None

    expected = linear_victim().query(SMOOTH).probs
    with served(answering(tf_serving)) as url:
        found = reach(url=url, dialect="tf-serving").query(SMOOTH)
        np.testing.assert_allclose(found.probs, expected, atol=1e-7)
    with served(answering(plain)) as url:
        single = replace(MODEL, plain_json=replace(MODEL.plain_json, batched=False))
        endpoint = reach(url=url, dialect="plain-json", model=single)
        assert endpoint.batch_rows == 1
        np.testing.assert_allclose(endpoint.query(SMOOTH[:3]).probs, expected[:3], atol=1e-7)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"dialect": "grpc"}, "dialect must be one of oip, tf-serving, plain-json, got 'grpc'"),
        ({"batch_rows": 9}, r"batch_rows must be in \[1, 8\]"),
        ({"batch_rows": 0}, r"batch_rows must be in \[1, 8\]"),
        ({"url": "localhost"}, "url must be http://host"),
    ],
)
def test_settings_that_cannot_be_are_refused(reach, more, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        reach(**more)


# ---------------------------------------------------------------------- the thread behind it


def test_it_works_where_an_event_loop_runs_already_as_in_a_notebook(reach):
    async def cell():
        return reach().query(SMOOTH)

    assert asyncio.run(cell()).answered.all()


def test_a_closed_endpoint_says_so_and_one_that_is_dropped_leaves_no_thread(reach, url):
    endpoint = reach()
    endpoint.query(SMOOTH)
    endpoint.close()
    endpoint.close()
    with pytest.raises(RuntimeError, match="endpoint must be open to be asked, got one that is closed"):
        endpoint.query(SMOOTH)
    before = threading.active_count()
    dropped = RemoteEndpoint(url, MODEL)
    dropped.query(SMOOTH)
    del dropped
    gc.collect()
    assert threading.active_count() <= before
