"""The ledger: what was answered once is answered again without asking, and nothing is lost or mixed up when a run dies."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint, MeteredEndpoint
from sameguard.errors import InvalidDataError
from sameguard.ledger import Ledger
from stand_ins import CLASSES, IMAGES, EchoEndpoint, linear_victim, noise_images, smooth_images


class Counting:
    """Counts the rows that reach the inner endpoint, and dies once it was asked `limit` of them."""

    def __init__(self, endpoint, limit=10**9):
        self.endpoint, self.limit = endpoint, limit
        self.contract, self.classes = endpoint.contract, endpoint.classes
        self.rows = 0

    def query(self, queries):
        if self.rows + len(queries) > self.limit:
            raise ConnectionError("the endpoint is gone")
        self.rows += len(queries)
        return self.endpoint.query(queries)


def in_batches(endpoint, queries, size):
    parts = [endpoint.query(queries[start : start + size]) for start in range(0, len(queries), size)]
    return np.concatenate([part.probs for part in parts]), np.concatenate([part.answered for part in parts])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attack" / "answers.ledger"


@pytest.fixture
def queries():
    return np.concatenate([smooth_images(30), noise_images(30)])


def test_a_ledger_is_an_endpoint_and_gives_what_the_victim_gives(path, queries):
    victim = linear_victim()
    ledger = Ledger(victim, path)
    assert isinstance(ledger, Endpoint)
    assert ledger.remaining is None
    assert Ledger(MeteredEndpoint(victim, budget=5), path).remaining == 5
    probs, answered = in_batches(ledger, queries, 16)
    np.testing.assert_array_equal(probs, victim.query(queries).probs)
    assert answered.all()
    assert ledger.replayed == ledger.recorded == 0


def test_a_second_run_asks_nothing_and_a_longer_one_asks_only_what_is_new(path, queries):
    first = Counting(linear_victim())
    expected, _ = in_batches(Ledger(first, path), queries[:40], 16)
    second = Counting(linear_victim())
    ledger = Ledger(second, path)
    found, _ = in_batches(ledger, queries, 7)  # other batches, the same order
    assert ledger.replayed == ledger.recorded == 40
    assert second.rows == 20
    np.testing.assert_array_equal(found[:40], expected)
    third = Counting(linear_victim())
    again, _ = in_batches(Ledger(third, path), queries, 60)
    assert third.rows == 0
    np.testing.assert_array_equal(again, found)


def test_refusals_are_recorded_as_such(path, queries):
    guarded = EchoEndpoint(IMAGES, CLASSES)
    probs, answered = in_batches(Ledger(guarded, path), queries, 16)
    assert 0 < answered.sum() < len(queries)
    silent = Counting(guarded, limit=0)
    replayed_probs, replayed_answered = in_batches(Ledger(silent, path), queries, 16)
    np.testing.assert_array_equal(answered, replayed_answered)
    np.testing.assert_array_equal(probs, replayed_probs)
    assert np.isnan(replayed_probs[~answered]).all()


def test_a_run_that_died_goes_on_and_the_meter_counts_replayed_queries(path, queries):
    dying = MeteredEndpoint(Ledger(Counting(linear_victim(), limit=40), path), budget=60)
    with pytest.raises(ConnectionError, match="gone"):
        in_batches(dying, queries, 16)
    inner = Counting(linear_victim())
    meter = MeteredEndpoint(Ledger(inner, path), budget=60)
    probs, _ = in_batches(meter, queries, 16)
    assert meter.remaining == 0
    assert inner.rows == 60 - 32
    np.testing.assert_array_equal(probs, linear_victim().query(queries).probs)


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_batch_cut_off_by_a_crash_is_dropped_and_asked_again(path, queries, cut):
    in_batches(Ledger(linear_victim(), path), queries, 16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    inner = Counting(linear_victim())
    ledger = Ledger(inner, path)
    assert ledger.recorded == 48
    in_batches(ledger, queries, 16)
    assert inner.rows == 12
    assert path.read_bytes() == whole


def test_a_file_cut_off_in_its_first_bytes_starts_anew(path, queries):
    in_batches(Ledger(linear_victim(), path), queries, 16)
    path.write_bytes(path.read_bytes()[:10])
    inner = Counting(linear_victim())
    in_batches(Ledger(inner, path), queries, 16)
    assert inner.rows == len(queries)
    assert Ledger(linear_victim(), path).recorded == len(queries)


def test_another_query_in_a_recorded_place_is_refused_before_anything_is_asked(path, queries):
    in_batches(Ledger(linear_victim(), path), queries, 16)
    inner = Counting(linear_victim())
    ledger = Ledger(inner, path)
    ledger.query(queries[:10])
    with pytest.raises(InvalidDataError, match=r"another query in place 12 of 60.*delete it to start again"):
        ledger.query(queries[[10, 12, 13]])
    assert inner.rows == 0


def test_damage_before_the_end_is_named(path, queries):
    in_batches(Ledger(linear_victim(), path), queries, 16)
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidDataError, match=r"damaged batch at byte 51: delete it"):
        Ledger(linear_victim(), path)


def test_a_file_of_another_endpoint_or_kind_is_refused(path, queries):
    in_batches(Ledger(linear_victim(), path), queries, 16)
    other = EchoEndpoint(InputContract.images(1, 8, 8))
    with pytest.raises(InvalidDataError, match="another contract or number of classes"):
        Ledger(other, path)
    path.write_bytes(b"row,score\n" * 10)
    with pytest.raises(InvalidDataError, match="a file of another kind"):
        Ledger(linear_victim(), path)


def test_a_full_disk_leaves_whole_batches_only(path, queries, monkeypatch):
    ledger = Ledger(linear_victim(), path)
    ledger.query(queries[:16])
    before = path.read_bytes()
    import resource
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, old[1]))
    try:
        with pytest.raises(OSError, match=r"full|large"):
            ledger.query(queries[16:32])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    ledger.query(queries[16:32])
    assert Ledger(linear_victim(), path).recorded == 32
