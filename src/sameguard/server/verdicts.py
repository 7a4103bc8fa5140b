"""Verdicts on queries that were judged a moment ago: the same question gets the same answer, and costs no second scoring.

The key holds the principal, so that nobody learns from the time of an answer what somebody else asked.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sameguard.policies import Action
from sameguard.server.proofs import IssuedChallenge
from sameguard.server.settings import CacheSettings

Key = tuple[str, bytes, str]  # principal, query digest, artefact digest


@dataclass
class Verdict:
    """What a policy said of one request. stage_a_score, score: of its most suspicious row. issued: a challenge that is still unspent."""

    action: Action
    stage_a_score: float
    score: float
    until: float = 0.0
    issued: IssuedChallenge | None = None


class VerdictCache:
    """Bounded, forgets the least recently used. clock: seconds, monotonic."""

    def __init__(self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = settings.seconds
        self.entries = settings.entries
        self.clock = clock
        self._verdicts: OrderedDict[Key, Verdict] = OrderedDict()

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: Key) -> Verdict | None:
        found = self._verdicts.get(key)
        if found is None:
            return None
        if found.until < self.clock():
            del self._verdicts[key]
            return None
        self._verdicts.move_to_end(key)
        return found

    def put(self, key: Key, verdict: Verdict) -> None:
        if self.seconds == 0.0:
            return
        verdict.until = self.clock() + self.seconds
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self.entries:
            self._verdicts.popitem(last=False)
