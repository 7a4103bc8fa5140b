"""PRADA (Juuti, Szyller, Marchal, Asokan, EuroS&P 2019): one account's queries, judged by how the distances between them are distributed.

Facts of algorithms.md 4.4: for each predicted class a growing set; the distance of a query to the nearest member of its set is pooled;
natural traffic pools a roughly normal distribution, queries made from one another do not. It is stateful and per account: its verdicts are
another unit than a score for each query, and many accounts (Sybils) undo it. The pool is never windowed. Left out: its response.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from sameguard.errors import CalibrationError, ConfigurationError, InvalidQueryError
from sameguard.shapes import Flags

TEST_EVERY = 10  # queries of the account
LEAST_OF_A_CLASS = 10  # distances before a class counts
LEAST_IN_ALL = 100  # distances that the test has to exceed
OUTLYING = 3.0  # standard deviations beyond which a distance is dropped
CHUNK = 256


class Prada:
    """One account. Alarm while W < threshold at its latest test, not latched: it may fall silent again.

    classes: of the victim. threshold: delta on the Shapiro-Wilk statistic W, in (0, 1]; see `calibrate_threshold`.
    """

    def __init__(self, classes: int, threshold: float) -> None:
        if classes < 2:
            raise ConfigurationError(f"classes must be at least 2, got {classes}.")
        if not 0.0 < threshold <= 1.0:
            raise ConfigurationError(f"threshold must be in (0, 1], the range of W, got {threshold}.")
        self.classes = classes
        self.threshold = threshold
        self.observed = 0
        self.alarm = False
        self.statistics: list[float] = []  # W of each test made so far; above 5,000 distances W itself is rough
        self._sets = [_GrowingSet() for _ in range(classes)]
        self._pools: list[list[float]] = [[] for _ in range(classes)]

    def observe(self, queries: np.ndarray, victim_probs: np.ndarray) -> Flags:
        """Takes the account's next queries, in order, and the victim's answers to them; the alarm's state after each, bool (batch,).

        The same verdicts whether queries come one by one or in batches. Raises InvalidQueryError for NaN, answers of another shape, or
        queries of another size than before.
        """
        flat = self._checked(queries, victim_probs)
        predicted = victim_probs.argmax(axis=1)
        alarms = np.empty(len(flat), bool)
        for start in range(0, len(flat), CHUNK):
            rows, names = flat[start : start + CHUNK], predicted[start : start + CHUNK]
            distances = np.empty(len(rows))
            for name in np.unique(names):  # a class's set depends on that class's queries alone
                distances[names == name] = self._sets[name].extend(rows[names == name])
            for offset, (name, distance) in enumerate(zip(names, distances, strict=True)):
                self._pool(int(name), float(distance))
                alarms[start + offset] = self.alarm
        return alarms

    def _pool(self, name: int, distance: float) -> None:
        if not np.isnan(distance):  # the first query of a class has no neighbour, and pools nothing
            self._pools[name].append(distance)
        self.observed += 1
        if self.observed % TEST_EVERY == 0:
            self._test()

    def _test(self) -> None:
        counted = [pool for pool in self._pools if len(pool) >= LEAST_OF_A_CLASS]
        pooled = np.concatenate(counted) if counted else np.empty(0)
        if len(pooled):
            pooled = pooled[np.abs(pooled - pooled.mean()) <= OUTLYING * pooled.std()]
        if len(pooled) <= LEAST_IN_ALL:
            self.alarm = False
            return
        from scipy.stats import shapiro  # here: it takes half a second, and only accounts with enough queries need it

        with warnings.catch_warnings():  # equal distances, or more than 5,000: W is given all the same
            warnings.simplefilter("ignore")
            self.statistics.append(float(shapiro(pooled).statistic))
        self.alarm = self.statistics[-1] < self.threshold

    def _checked(self, queries: np.ndarray, victim_probs: np.ndarray) -> np.ndarray:
        if victim_probs.shape != (len(queries), self.classes):
            raise InvalidQueryError(
                f"victim_probs must be ({len(queries)}, {self.classes}), one row per query and one column per class, got {victim_probs.shape}."
            )
        flat = np.asarray(queries).reshape(len(queries), math.prod(queries.shape[1:])).astype(np.float32)
        if not (np.isfinite(flat).all() and np.isfinite(victim_probs).all()):
            raise InvalidQueryError("queries and victim_probs must be finite, got NaN or infinity: a withheld answer names no class.")
        width = next((known.images.shape[1] for known in self._sets if len(known.images)), flat.shape[1])
        if flat.shape[1] != width:
            raise InvalidQueryError(f"queries must have {width} values each, as this account's earlier ones, got {flat.shape[1]}.")
        return flat


class _GrowingSet:
    """The images of one predicted class that later ones are measured against, and the distance beyond which an image joins them."""

    def __init__(self) -> None:
        self.images = np.empty((0, 0), np.float32)
        self.limit = 0.0
        self._count, self._sum, self._squares = 0, 0.0, 0.0  # of the distances at which members joined

    def extend(self, rows: np.ndarray) -> np.ndarray:
        """Distance of each row to its nearest member at its turn, NaN for the very first; rows that are far enough join."""
        known = cdist(rows, self.images).min(axis=1) if len(self.images) else np.full(len(rows), np.inf)
        among = cdist(rows, rows)
        joined: list[int] = []
        distances = np.empty(len(rows))
        for index in range(len(rows)):
            distance = min(known[index], among[index, joined].min(initial=np.inf))
            if np.isinf(distance):  # the first: it joins at distance 0
                distances[index] = np.nan
                self._join(0.0)
                joined.append(index)
                continue
            distances[index] = distance
            if distance > self.limit:
                self._join(distance)
                joined.append(index)
        self.images = np.concatenate([self.images, rows[joined]]) if len(self.images) else rows[joined]
        return distances

    def _join(self, distance: float) -> None:
        self._count, self._sum, self._squares = self._count + 1, self._sum + distance, self._squares + distance**2
        mean = self._sum / self._count
        self.limit = max(self.limit, mean - max(self._squares / self._count - mean**2, 0.0) ** 0.5)


# ---------------------------------------------------------------------- thresholds and Sybils


def calibrate_threshold(benign_streams: Iterable[tuple[np.ndarray, np.ndarray]], classes: int, *, false_alarm_rate: float = 0.0) -> float:
    """The largest delta at which at most this share of benign users ever alarms, by streams of (queries, victim_probs), one per user.

    It holds for users like these and streams no longer than theirs. Raises CalibrationError without any stream that reaches a test.
    """
    if not 0.0 <= false_alarm_rate < 1.0:
        raise ConfigurationError(f"false_alarm_rate must be in [0, 1), got {false_alarm_rate}.")
    lowest, tested = [], 0
    for queries, victim_probs in benign_streams:
        account = Prada(classes, threshold=1.0)
        account.observe(queries, victim_probs)
        tested += bool(account.statistics)
        lowest.append(min(account.statistics, default=1.0))
    if not tested:
        raise CalibrationError(
            f"the threshold needs a benign user with more than {LEAST_IN_ALL} pooled distances, got none in {len(lowest)}: give longer streams."
        )
    return sorted(lowest)[int(false_alarm_rate * len(lowest))]


class AccountAlarms(NamedTuple):
    """accounts: among whom the queries were dealt. alarmed_accounts, alarmed_queries: shares of accounts that ever alarmed, and of
    queries after which the account's alarm was on."""

    accounts: int
    alarmed_accounts: float
    alarmed_queries: float


def alarm_rates(
    queries: np.ndarray, victim_probs: np.ndarray, classes: int, threshold: float, accounts: Sequence[int] = (1, 5, 50, 400)
) -> list[AccountAlarms]:
    """What remains of the alarm where a thief deals the same queries round robin to several accounts: the Sybil column."""
    if len(queries) == 0 or min(accounts, default=0) < 1:
        raise ConfigurationError(f"alarm rates need at least 1 query and accounts of at least 1, got {len(queries)} and {tuple(accounts)}.")
    rates = []
    for number in accounts:
        flags = [
            Prada(classes, threshold).observe(queries[first::number], victim_probs[first::number])
            for first in range(min(number, len(queries)))  # more accounts than queries: the rest never ask
        ]
        rates.append(AccountAlarms(number, float(np.mean([flag.any() for flag in flags])), float(np.concatenate(flags).mean())))
    return rates
