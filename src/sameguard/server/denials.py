"""Requests without a verdict in the logs: of each principal so many a minute get a line, the rest is told in one line with its number.

What is not understood, fails, or comes with a proof that does not count costs its sender nothing. A line for each would let anybody rotate
away the records that matter. Metrics and the dashboard count every request; what was answered, refused or charged always has a line.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence

from sameguard.server.decision import Decision, Evidence, Observer

MINUTE_SECONDS = 60.0
MOST_LINES = 1000  # of a minute, of all principals: who has many names has no more lines


class Denials:
    """Stands before logs. a_minute: lines of one principal. clock: seconds, monotonic. Call `flush` now and then, and at the end."""

    def __init__(self, logs: Sequence[Observer], a_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.logs = tuple(logs)
        self.a_minute = a_minute
        self.clock = clock
        self._ends = clock() + MINUTE_SECONDS
        self._lines: Counter[str] = Counter()
        self._counted: dict[tuple[str, str], Decision] = {}  # principal, reason -> the last one, with their number

    def observe(self, decision: Decision, evidence: Evidence | None) -> bool:
        """Hands the decision to the logs, or counts it. Whether it has a line of its own."""
        self.flush()
        cheap = decision.outcome in ("denied", "failed") or decision.reason.startswith("proof-")
        if cheap and not self._has_line(decision.principal):
            self._count(decision)
            return False
        for log in self.logs:
            log.observe(decision, evidence)
        return True

    def flush(self, *, now: bool = False) -> None:
        """Tells what was counted, once its minute is over; or now."""
        if not now and self.clock() < self._ends:
            return
        self._ends = self.clock() + MINUTE_SECONDS
        counted, self._counted = self._counted, {}
        self._lines.clear()
        for decision in counted.values():
            for log in self.logs:
                log.observe(decision, None)

    def _has_line(self, principal: str) -> bool:
        if self._lines[principal] >= self.a_minute or self._lines.total() >= max(MOST_LINES, self.a_minute):
            return False
        self._lines[principal] += 1
        return True

    def _count(self, decision: Decision) -> None:
        """Under its principal where that one has had lines, so that no more names are kept than lines were written."""
        principal = decision.principal if self._lines[decision.principal] else ""
        before = self._counted.get((principal, decision.reason))
        requests, rows = (before.requests, before.rows) if before else (0, 0)
        self._counted[principal, decision.reason] = dataclasses.replace(
            decision, principal=principal, digest="", requests=requests + 1, rows=rows + decision.rows
        )
