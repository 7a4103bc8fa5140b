"""The guard in process: one victim pass, one score, one decision for each query. It is itself an Endpoint, so attacks run against it."""

from typing import Literal

import numpy as np

from sameguard.endpoint import Answers
from sameguard.errors import ConfigurationError
from sameguard.policies.base import Action, Allow, Policy
from sameguard.scoring.two_stage import TwoStageScorer
from sameguard.shapes import Flags
from sameguard.victim import BlackBox


class Guard:
    """Answers what the policy allows and withholds the rest (NaN probabilities, answered False).

    row_policy: `each` treats every row alone; `worst` treats a batch as its most suspicious row, as over HTTP, where one request has
    one status. Queries that stage A refuses are never sent to the victim. A calibrated scorer's canary queries are asked once, here: a
    victim that answers them otherwise than at calibration raises InvalidVictimError.
    """

    def __init__(self, victim: BlackBox, scorer: TwoStageScorer, policy: Policy, *, row_policy: Literal["each", "worst"] = "each") -> None:
        if row_policy not in ("each", "worst"):
            raise ConfigurationError(f"row_policy must be each or worst, got {row_policy!r}.")
        if victim.contract != scorer.contract:
            raise ConfigurationError(f"victim and scorer must share one input contract, got {victim.contract} and {scorer.contract}.")
        if victim.classes != scorer.classes:
            raise ConfigurationError(f"victim and scorer must have equally many classes, got {victim.classes} and {scorer.classes}.")
        calibration = getattr(scorer, "calibration", None)
        if calibration is not None:
            calibration.check_victim(victim)
        self.victim = victim
        self.scorer = scorer
        self.policy = policy
        self.row_policy = row_policy
        self.contract = victim.contract
        self.classes = victim.classes

    def query(self, queries: np.ndarray) -> Answers:
        """Answers to canonical queries; refused rows hold NaN. Raises InvalidQueryError, InvalidVictimError."""
        queries = self.contract.canonicalise(queries)
        probs = np.full((len(queries), self.classes), np.nan, np.float32)
        reconstruction = self.scorer.reconstruct(queries)
        stage_a = self.scorer.stage_a_score(reconstruction)
        passed = np.ones(len(queries), bool) if stage_a is None else self._allowed(self.policy.decide_stage_a(stage_a))
        asked = np.flatnonzero(passed)
        if len(asked) == 0:
            return Answers(probs, passed)
        answers = self.victim.answer(queries[asked])
        kept = reconstruction.take(asked)
        scores = self.scorer.combined_score(kept, self.scorer.deviation(kept, answers))
        allowed = self._allowed(self.policy.decide(scores))
        answered = np.zeros(len(queries), bool)
        answered[asked[allowed]] = True
        probs[asked[allowed]] = answers[allowed]
        return Answers(probs, answered)

    def _allowed(self, actions: list[Action]) -> Flags:
        allowed = np.array([isinstance(action, Allow) for action in actions])
        return np.full(len(allowed), allowed.all()) if self.row_policy == "worst" else allowed
