"""The guard in process: one victim pass, one score, one decision for each query. It is itself an Endpoint, so attacks run against it.

It also plays the client that pays: a challenged query is answered, and what its proof would have cost is counted, not computed. How
challenges are issued, proved and redeemed is the server's.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sameguard.calibration import Calibration, Threshold, conformal_rank
from sameguard.endpoint import Answers
from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.policies.base import Action, Allow, Challenge, Coarsen, Policy, Refuse, TooCostly, action_of_batch
from sameguard.policies.coarsen import coarsened
from sameguard.policies.levels import BenignLevels
from sameguard.scoring.two_stage import SCORING_BATCH, TwoStageScorer
from sameguard.shapes import Queries
from sameguard.victim import BlackBox


class Guard:
    """Answers what the policy allows, in full or coarsened, and withholds the rest (NaN probabilities, answered False).

    row_policy: `each` treats every row alone; `worst` treats a batch as its most suspicious row, as over HTTP, where one request has
    one status; there a batch that is too costly is asked again in halves, as our client does. Queries that stage A refuses are never sent
    to the victim, those that it challenges or coarsens are not scored again. seed: of the numbers of tries, drawn as a server draws them.

    challenged: challenges so far. tries: key derivations that their proofs cost, see `policies.Pricing`. A calibrated scorer's canary
    queries are asked once, here: a victim that answers them otherwise than at calibration raises InvalidVictimError. Its policy's
    cut-offs must be its own calibration's, else ConfigurationError. Whatever the batch, reconstructions of few rows are held at a time.
    """

    def __init__(
        self,
        victim: BlackBox,
        scorer: TwoStageScorer,
        policy: Policy,
        *,
        row_policy: Literal["each", "worst"] = "each",
        seed: int = 0,
    ) -> None:
        if row_policy not in ("each", "worst"):
            raise ConfigurationError(f"row_policy must be each or worst, got {row_policy!r}.")
        if victim.contract != scorer.contract:
            raise ConfigurationError(f"victim and scorer must share one input contract, got {victim.contract} and {scorer.contract}.")
        if victim.classes != scorer.classes:
            raise ConfigurationError(f"victim and scorer must have equally many classes, got {victim.classes} and {scorer.classes}.")
        calibration = getattr(scorer, "calibration", None)
        if calibration is not None:
            _check_cut_offs(policy, calibration)
            calibration.check_victim(victim)
        self.victim = victim
        self.scorer = scorer
        self.policy = policy
        self.row_policy = row_policy
        self.contract = victim.contract
        self.classes = victim.classes
        self.challenged = 0
        self.tries = 0
        self._draw = np.random.default_rng(seed)

    def query(self, queries: np.ndarray) -> Answers:
        """Answers to canonical queries; refused rows hold NaN. Raises InvalidQueryError, InvalidVictimError."""
        queries = self.contract.canonicalise(queries)
        if self.row_policy == "worst" and len(queries) > SCORING_BATCH and self._refused_early(queries):
            return _released([Refuse()] * len(queries), self._unanswered(queries))
        judged = [self._judge(chunk) for chunk in _chunks(queries)]
        actions = [action for chunk, _ in judged for action in chunk]
        answers = np.concatenate([probs for _, probs in judged])
        if self.row_policy == "worst":
            action = action_of_batch(actions, getattr(self.policy, "largest_work", None))
            if isinstance(action, TooCostly) and len(queries) > 1:
                return self._in_halves(queries)
            self._pay([action])
            actions = [action] * len(queries)
        else:
            self._pay(actions)
        return _released(actions, answers)

    def _refused_early(self, queries: Queries) -> bool:
        """Whether stage A refuses any row of a large batch: then the victim is not asked about the others either.

        Their reconstructions are made again where it does not; keeping them would take memory in proportion to the batch.
        """
        for chunk in _chunks(queries):
            stage_a = self.scorer.stage_a_score(self.scorer.reconstruct(chunk))
            if stage_a is not None and any(isinstance(action, Refuse) for action in self.policy.decide_stage_a(stage_a)):
                return True
        return False

    def _judge(self, queries: Queries) -> tuple[list[Action], np.ndarray]:
        """The action for each row, and the victim's answers; NaN where it was not asked."""
        answers = self._unanswered(queries)
        reconstruction = self.scorer.reconstruct(queries)
        stage_a = self.scorer.stage_a_score(reconstruction)
        actions: list[Action] = [Allow()] * len(queries) if stage_a is None else list(self.policy.decide_stage_a(stage_a))
        refused = np.array([isinstance(action, Refuse) for action in actions])
        if self.row_policy == "worst" and refused.any():
            return actions, answers
        asked = np.flatnonzero(~refused)
        if len(asked):
            answers[asked] = self.victim.answer(queries[asked])
        open_rows = np.flatnonzero([isinstance(action, Allow) for action in actions])  # the others are settled
        if len(open_rows):
            kept = reconstruction.take(open_rows)
            scores = self.scorer.combined_score(kept, self.scorer.deviation(kept, answers[open_rows]))
            for row, action in zip(open_rows, self.policy.decide(scores), strict=True):
                actions[row] = action
        return actions, answers

    def _unanswered(self, queries: Queries) -> np.ndarray:
        return np.full((len(queries), self.classes), np.nan, np.float32)

    def _pay(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Challenge):
                self.challenged += 1
                self.tries += int(self._draw.integers(1, 2 * action.work, endpoint=True))

    def _in_halves(self, queries: Queries) -> Answers:
        middle = len(queries) // 2
        first, second = self.query(queries[:middle]), self.query(queries[middle:])
        return Answers(np.concatenate([first.probs, second.probs]), np.concatenate([first.answered, second.answered]))


def _chunks(queries: Queries) -> list[np.ndarray]:
    """Views of a few rows each: as many as the scorer's networks take in one pass."""
    return [queries[start : start + SCORING_BATCH] for start in range(0, len(queries), SCORING_BATCH)]


def _check_cut_offs(policy: Policy, calibration: Calibration) -> None:
    """Raises ConfigurationError where a cut-off of the policy comes from another calibration than the scorer's."""
    threshold, levels = getattr(policy, "threshold", None), getattr(policy, "benign_levels", None)
    given = levels.thresholds if isinstance(levels, BenignLevels) else (threshold,) if isinstance(threshold, Threshold) else ()
    for cut_off in given:
        if not _is_of(cut_off, calibration):
            raise ConfigurationError(
                f"policy must cut where the scorer's own calibration does, got {cut_off}, which is no such cut of its "
                f"{len(calibration.scores)} {'biased ' if calibration.biased else ''}benign scores: a promise holds for the artefact and the "
                "calibration that it was made with. Take scorer.calibration.threshold(rate), or give the policy scorer.calibration."
            )


def _is_of(cut_off: Threshold, calibration: Calibration) -> bool:
    """Whether the threshold is the k-th largest of these scores along a ranking that `statistics` fixed; NaN never is.

    What `Calibration.threshold` computes, without its interval: that needs scipy, and a guard in service may not have it.
    """
    scores, stage_a = calibration.scores, calibration.stage_a_scores
    try:
        k = conformal_rank(len(scores), cut_off.false_positive_rate)
    except CalibrationError:  # too few queries for such a rate, or it is no rate
        return False
    if (cut_off.n, cut_off.k, cut_off.biased) != (len(scores), k, calibration.biased):
        return False
    if cut_off.value == np.inf:  # stage A spends the whole budget
        return k <= len(stage_a) and _equal(np.sort(stage_a)[-k], cut_off.stage_a)
    if not (cut_off.stage_a == np.inf or _equal(calibration.statistics_stage_a, cut_off.stage_a)):
        return False
    early = ~(stage_a <= cut_off.stage_a) if len(stage_a) else np.zeros(len(scores), bool)
    return _equal(np.sort(np.where(early, np.inf, scores))[-k], cut_off.value)


def _equal(found: np.ndarray | float, wanted: float) -> bool:
    """Whether any is the wanted number, rounding of another processor aside."""
    return bool(np.isclose(found, wanted, rtol=1e-9, atol=0.0).any())


def _released(actions: Sequence[Action], answers: np.ndarray) -> Answers:
    probs = answers.copy()
    answered = np.array([isinstance(action, Allow | Coarsen | Challenge) for action in actions])
    probs[~answered] = np.nan
    for coarsening in {action for action in actions if isinstance(action, Coarsen)}:
        rows = [action == coarsening for action in actions]
        probs[rows] = coarsened(answers[rows], coarsening)
    return Answers(probs, answered)
