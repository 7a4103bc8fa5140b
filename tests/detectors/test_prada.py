"""PRADA: against a naive account, on distances that are normal or bimodal by construction, and dealt to Sybils."""

import numpy as np
import pytest
from scipy.stats import norm, shapiro

from sameguard.detectors import Prada
from sameguard.detectors.prada import AccountAlarms, alarm_rates, calibrate_threshold
from sameguard.errors import CalibrationError, ConfigurationError, InvalidQueryError


def answers(classes, names):
    return np.eye(classes, dtype=np.float32)[names]


def star(distances, classes=2):
    """A first query at the origin and one along an axis of its own at each distance, all of class 0: these are the pooled distances."""
    queries = np.concatenate([np.zeros((1, len(distances))), np.diag(distances)]).astype(np.float32)
    return queries, answers(classes, np.zeros(len(queries), np.int64))


def normal_distances(count, spread=0.5, seed=0):
    return np.random.default_rng(seed).permutation(5.0 + spread * norm.ppf((np.arange(count) + 0.5) / count))


def bimodal_distances(count, seed=0):
    return np.random.default_rng(seed).choice([4.0, 6.0], count) + np.random.default_rng(seed).uniform(-0.01, 0.01, count)


class NaiveAccount:
    """The same facts, one query at a time, with lists."""

    def __init__(self, classes, threshold):
        self.threshold = threshold
        self.growing, self.distances, self.limits, self.pools = ([[] for _ in range(classes)] for _ in range(4))
        self.seen, self.alarm, self.statistics = 0, False, []

    def take(self, query, name):
        if not self.growing[name]:
            self.growing[name], self.distances[name], self.limits[name] = [query], [0.0], 0.0
        else:
            distance = min(float(np.sqrt(((query - member) ** 2).sum())) for member in self.growing[name])
            self.pools[name].append(distance)
            if distance > self.limits[name]:
                self.growing[name].append(query)
                self.distances[name].append(distance)
                self.limits[name] = max(self.limits[name], np.mean(self.distances[name]) - np.std(self.distances[name]))
        self.seen += 1
        if self.seen % 10 == 0:
            pooled = np.array([distance for pool in self.pools if len(pool) >= 10 for distance in pool])
            pooled = pooled[np.abs(pooled - pooled.mean()) <= 3 * pooled.std()] if len(pooled) else pooled
            self.alarm = len(pooled) > 100 and shapiro(pooled).statistic < self.threshold
            if len(pooled) > 100:
                self.statistics.append(shapiro(pooled).statistic)
        return self.alarm


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(5)
    return rng.random((420, 1, 3, 3), dtype=np.float32), answers(3, rng.choice(3, 420, p=[0.7, 0.28, 0.02]))


def test_it_agrees_with_a_naive_account_query_by_query(stream):
    queries, probs = stream
    naive = NaiveAccount(3, threshold=0.985)
    by_hand = [naive.take(query.reshape(-1).astype(np.float64), name) for query, name in zip(queries, probs.argmax(axis=1), strict=True)]
    account = Prada(3, threshold=0.985)
    np.testing.assert_array_equal(account.observe(queries, probs), by_hand)
    np.testing.assert_allclose(account.statistics, naive.statistics, rtol=1e-9)
    assert 0 < sum(by_hand) < len(by_hand)  # the comparison means something


def test_the_verdicts_are_the_same_however_the_queries_are_batched(stream):
    queries, probs = stream
    whole = Prada(3, 0.985).observe(queries, probs)
    for size in (1, 7, 256):
        account = Prada(3, 0.985)
        parts = [account.observe(queries[start : start + size], probs[start : start + size]) for start in range(0, len(queries), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert Prada(3, 0.985).observe(queries[:0], probs[:0]).shape == (0,)


def test_normal_distances_are_silent_and_bimodal_ones_alarm():
    silent = Prada(2, 0.95)
    assert not silent.observe(*star(normal_distances(250))).any()
    assert min(silent.statistics) > 0.95
    loud = Prada(2, 0.95)
    alarms = loud.observe(*star(bimodal_distances(250)))
    assert not alarms[:100].any()  # a test needs more than 100 distances
    assert alarms[110:].all()
    assert max(loud.statistics) < 0.8


def test_the_alarm_is_not_latched():
    alarms = Prada(2, 0.95).observe(*star(np.concatenate([bimodal_distances(120), normal_distances(480, spread=1.0)])))
    assert alarms[119]
    assert not alarms[-1]


def test_the_first_query_of_a_class_pools_nothing_and_a_class_counts_from_ten_distances_on():
    rng = np.random.default_rng(0)
    queries = rng.random((11 * 11, 20), dtype=np.float32)
    names = np.tile(np.arange(11), 11)  # 11 classes in turn
    account = Prada(11, 0.95)
    account.observe(queries[:110], answers(11, names[:110]))
    assert account.statistics == []  # 10 queries of each class: 9 distances
    account.observe(queries[110:], answers(11, names[110:]))
    account.observe(queries[:9], answers(11, names[:9]))  # to the next multiple of ten
    assert len(account.statistics) == 1


def test_distances_beyond_three_deviations_are_dropped_before_the_test():
    few_far = np.concatenate([normal_distances(200), [60.0, 70.0]])
    assert not Prada(2, 0.95).observe(*star(few_far)).any()


def test_a_user_who_sends_one_image_over_and_over_is_silent():
    queries = np.ones((200, 4), np.float32)
    assert not Prada(2, 0.95).observe(queries, answers(2, np.zeros(200, np.int64))).any()


def test_a_threshold_calibrated_on_benign_users_alarms_for_the_share_that_was_allowed():
    users = [star(normal_distances(150, seed=seed)) for seed in range(4)] + [star(bimodal_distances(150))]
    strict, lax = calibrate_threshold(users, 2), calibrate_threshold(users, 2, false_alarm_rate=0.2)
    assert strict < 0.8 < lax < 1.0
    for threshold, allowed in ((strict, 0), (lax, 1)):
        assert sum(bool(Prada(2, threshold).observe(*user).any()) for user in users) == allowed


def test_dealing_the_queries_to_many_accounts_silences_it():
    queries, probs = star(bimodal_distances(300))
    one, two, many, idle = alarm_rates(queries, probs, 2, 0.95, accounts=(1, 2, 50, 400))
    assert one == AccountAlarms(1, 1.0, pytest.approx(191 / 301, abs=0.05))
    assert two.alarmed_accounts == 1.0
    assert two.alarmed_queries < one.alarmed_queries
    assert many == AccountAlarms(50, 0.0, 0.0)
    assert idle == AccountAlarms(400, 0.0, 0.0)


def test_impossible_uses_are_refused():
    queries, probs = star(normal_distances(20))
    with pytest.raises(ConfigurationError, match="classes must be at least 2, got 1"):
        Prada(1, 0.9)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"threshold must be in \(0, 1\], the range of W"):
            Prada(2, threshold)
    account = Prada(2, 0.95)
    with pytest.raises(InvalidQueryError, match=r"victim_probs must be \(21, 2\)"):
        account.observe(queries, probs[:3])
    withheld = probs.copy()
    withheld[3] = np.nan
    with pytest.raises(InvalidQueryError, match="a withheld answer names no class"):
        account.observe(queries, withheld)
    account.observe(queries, probs)
    with pytest.raises(InvalidQueryError, match="must have 20 values each, as this account's earlier ones, got 19"):
        account.observe(queries[:, :19], probs)
    with pytest.raises(CalibrationError, match="more than 100 pooled distances, got none in 1"):
        calibrate_threshold([(queries, probs)], 2)
    with pytest.raises(ConfigurationError, match=r"false_alarm_rate must be in \[0, 1\), got 1"):
        calibrate_threshold([(queries, probs)], 2, false_alarm_rate=1.0)
    with pytest.raises(ConfigurationError, match=r"accounts of at least 1, got 21 and \(0,\)"):
        alarm_rates(queries, probs, 2, 0.95, accounts=(0,))
