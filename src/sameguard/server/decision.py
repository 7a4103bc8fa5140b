"""What the guard did with one inference request: the record that audit log, metrics and dashboard are made from.

Nothing of it reaches a client. Whoever observes decisions must return at once: a slow disk or page may lose records, never delay an answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from sameguard.shapes import Queries

ACTIONS = ("allow", "coarsen", "challenge", "too-costly", "refuse")  # of a policy, from mild to severe
OUTCOMES = (
    *ACTIONS,
    "failed",
    "denied",
)  # failed: no answer for a reason that is not the query's; denied: not understood, too large, too often
STAGES = ("body", "parse", "proof", "queue", "stage_a", "upstream", "stage_b", "challenge", "respond")


@dataclass(frozen=True)
class Decision:
    """One inference request. time: Unix seconds at its arrival. principal: digest of who asked, never the key or address itself.

    outcome: what the client got. verdict: what the policy said, "" where it was not asked; in shadow mode, and for principals outside the
    roll-out, the outcome is `allow` whatever the verdict. reason: why there is no answer, for operators (`queue-full`, `upstream-timeout`,
    `scorer-failed`, `quota`, `input-invalid` ...), "" otherwise. stage_a_score, score: of the most suspicious row, NaN where unknown.
    level, work: of the challenge, also of one that was not sent, in shadow mode. issued: it is a new one, not the last one again. proof: ""
    where none was sent, else valid, expired, invalid, mismatch or replayed. seconds: by stage. row_stage_a_scores, row_scores: of every row
    that was scored, for distributions: a batch's worst row says nothing of how single queries are spread. requests: how many this record
    stands for, see `server.denials`.
    """

    time: float
    request_id: str
    principal: str
    model: str
    artifact: str
    digest: str
    rows: int
    outcome: str
    verdict: str
    status: int
    reason: str = ""
    enforced: bool = False
    stage_a_score: float = float("nan")
    score: float = float("nan")
    level: int = 0
    work: int = 0
    issued: bool = False
    proof: str = ""
    cached: bool = False
    degraded: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    row_stage_a_scores: tuple[float, ...] = ()
    row_scores: tuple[float, ...] = ()
    requests: int = 1

    def spread(self, part: str) -> tuple[float, ...]:
        """Scores that count in a distribution of single queries; part: stage_a or whole. Nothing for what was judged before."""
        if self.cached:
            return ()
        rows, worst = (self.row_stage_a_scores, self.stage_a_score) if part == "stage_a" else (self.row_scores, self.score)
        return tuple(score for score in (rows or ((worst,) if self.rows == 1 else ())) if math.isfinite(score))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was judged: canonical queries (rows, *input) and view -> reconstructions; only kept by who was asked to keep it."""

    queries: Queries
    views: Mapping[str, np.ndarray]


@runtime_checkable
class Observer(Protocol):
    """Somebody who is told of every decision, on the event loop. evidence: of requests that reached the scorer."""

    def observe(self, decision: Decision, evidence: Evidence | None) -> None: ...
