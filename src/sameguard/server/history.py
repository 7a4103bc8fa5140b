"""What the dashboard shows: the last hours in memory, bounded, gone with the process.

Counts are kept by the minute. Scores are a fair sample of each minute's single queries, so that a busy minute weighs no more than its share
of memory. Pictures are kept only of requests that were not simply allowed, only when asked for, small, and never written anywhere.
"""

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sameguard.server.decision import STAGES, Decision, Evidence
from sameguard.server.settings import AdminSettings
from sameguard.server.thumbnails import Thumbnails, thumbnails_of

MINUTES = 360
SAMPLE = 64  # scores of one minute, of each kind
LATENCIES = 1000  # last requests of each stage
LAST_SCORES = 4000  # of every verdict, for the histogram
TOTAL = "total"
MILD = ("", "allow")


@dataclass
class Minute:
    """counts: (outcome, verdict) -> requests. challenges: issued, valid, expired, ... -> number. scores: a sample of what was allowed.

    early: requests that stage A alone settled, which have no whole score.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    challenges: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    seen: int = 0
    early: int = 0


@dataclass(frozen=True, eq=False)
class Recent:
    """A request that the policy did not simply allow."""

    decision: Decision
    thumbnails: Thumbnails | None


@dataclass(frozen=True, eq=False)
class HistoryView:
    """A copy for a page. minutes: (start in Unix seconds, Minute), oldest first, without gaps. latencies: stage -> seconds of last requests."""

    minutes: list[tuple[int, Minute]]
    scores: np.ndarray
    latencies: Mapping[str, np.ndarray]
    recent: list[Recent]

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        return _sum(minute.counts for _, minute in self.minutes)

    @property
    def early(self) -> int:
        return sum(minute.early for _, minute in self.minutes)

    @property
    def challenges(self) -> Counter[str]:
        return _sum(minute.challenges for _, minute in self.minutes)


class History:
    """An Observer. clock: Unix seconds. Safe to read from another thread."""

    def __init__(self, settings: AdminSettings, *, clock: Callable[[], float] = time.time, seed: int = 0) -> None:
        self.settings = settings
        self.clock = clock
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._minutes: dict[int, Minute] = {}
        self._scores: deque[float] = deque(maxlen=LAST_SCORES)
        self._latencies: dict[str, deque[float]] = {stage: deque(maxlen=LATENCIES) for stage in (*STAGES, TOTAL)}
        self._recent: deque[Recent] = deque(maxlen=settings.recent)

    @property
    def wants_evidence(self) -> bool:
        return self.settings.thumbnails

    def observe(self, decision: Decision, evidence: Evidence | None) -> None:
        suspicious = decision.verdict not in MILD
        pictures = thumbnails_of(decision, evidence) if suspicious and self.settings.thumbnails and evidence is not None else None
        with self._lock:
            if suspicious and decision.cached:
                pictures = self._seen_before(decision)
            minute = self._minute()
            minute.counts[decision.outcome, decision.verdict] += 1
            minute.early += suspicious and math.isfinite(decision.stage_a_score) and not math.isfinite(decision.score)
            if decision.issued:
                minute.challenges["issued"] += 1
            if decision.proof:
                minute.challenges[decision.proof] += 1
            scores = decision.spread("whole")
            self._scores.extend(scores)
            if decision.verdict == "allow":
                self._sample(minute, scores)
            for stage, seconds in decision.seconds.items():
                if stage in self._latencies:
                    self._latencies[stage].append(seconds)
            if decision.seconds:
                self._latencies[TOTAL].append(sum(decision.seconds.values()))
            if suspicious:
                self._recent.append(Recent(decision, pictures))

    def view(self, minutes: int = MINUTES) -> HistoryView:
        """The last `minutes`, the one that has just begun included; recent requests newest first."""
        with self._lock:
            now = int(self.clock() // 60)
            kept = [(number * 60, _copied(self._minutes.get(number))) for number in range(now - min(minutes, MINUTES) + 1, now + 1)]
            latencies = {stage: np.array(values) for stage, values in self._latencies.items() if values}
            return HistoryView(kept, np.array(self._scores), latencies, list(self._recent)[::-1])

    def _seen_before(self, decision: Decision) -> Thumbnails | None:
        """Pictures of the same query, as long as its first refusal is shown: what the verdict cache refuses is not reconstructed again."""
        same = (other.thumbnails for other in reversed(self._recent) if other.decision.digest == decision.digest and other.thumbnails)
        return next(same, None)

    def _minute(self) -> Minute:
        """The present minute; what is older than the last hours goes, and so does what a clock that was set back left in the future."""
        number = int(self.clock() // 60)
        if number not in self._minutes:
            self._minutes = {old: kept for old, kept in self._minutes.items() if number - MINUTES < old < number}
            self._minutes[number] = Minute()
        return self._minutes[number]

    def _sample(self, minute: Minute, scores: tuple[float, ...]) -> None:
        """Every score of the minute is kept with equal probability (reservoir sampling)."""
        for score in scores:
            minute.seen += 1
            if len(minute.scores) < SAMPLE:
                minute.scores.append(score)
            elif (place := self._random.randrange(minute.seen)) < SAMPLE:
                minute.scores[place] = score


def _copied(minute: Minute | None) -> Minute:
    if minute is None:
        return Minute()
    return Minute(Counter(minute.counts), Counter(minute.challenges), list(minute.scores), minute.seen, minute.early)


def _sum(counters: Iterable[Counter]) -> Counter:
    total: Counter = Counter()
    for counter in counters:
        total.update(counter)
    return total
