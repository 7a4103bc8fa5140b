"""What becomes of one request while it goes through the guard; at its end, the decision that observers are told of."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sameguard.policies import Challenge
from sameguard.server.decision import Decision, Evidence
from sameguard.server.verdicts import Verdict


class Trace:
    """Filled in on the way, see `Decision`. detail: for the log only. issued: whether a new challenge was made for it."""

    def __init__(self, model: str, artifact: str) -> None:
        self.time = time.time()
        self.request_id = secrets.token_hex(12)
        self.model = model
        self.artifact = artifact
        self.principal = ""
        self.digest = ""
        self.rows = 0
        self.outcome = ""
        self.verdict = ""
        self.status = 0
        self.reason = ""
        self.detail = ""
        self.enforced = False
        self.stage_a_score = self.score = float("nan")
        self.level = self.work = 0
        self.proof = ""
        self.cached = False
        self.degraded = ""
        self.issued = False
        self.seconds: dict[str, float] = {}
        self.row_stage_a_scores: tuple[float, ...] = ()
        self.row_scores: tuple[float, ...] = ()
        self.evidence: Evidence | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def judged(self, verdict: str, found: Verdict) -> None:
        """Also what a challenge would cost, where none is sent: shadow mode shows the price before anybody pays it."""
        self.verdict = verdict
        if isinstance(found.action, Challenge):
            self.level, self.work = found.action.level, found.action.work
        self.stage_a_score, self.score = found.stage_a_score, found.score

    def decision(self) -> Decision:
        return Decision(
            self.time,
            self.request_id,
            self.principal,
            self.model,
            self.artifact,
            self.digest,
            self.rows,
            self.outcome,
            self.verdict,
            self.status,
            reason=self.reason,
            enforced=self.enforced,
            stage_a_score=self.stage_a_score,
            score=self.score,
            level=self.level,
            work=self.work,
            issued=self.issued,
            proof=self.proof,
            cached=self.cached,
            degraded=self.degraded,
            seconds=self.seconds,
            row_stage_a_scores=self.row_stage_a_scores,
            row_scores=self.row_scores,
        )
