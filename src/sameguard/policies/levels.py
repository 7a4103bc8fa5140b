"""How far into the benign tail a query lies, in a few steps (serving.md 4.6).

A query's p-value is (1 + benign calibration queries ranked at or above it) / (n + 1), and its level the number of cut points that it does
not exceed. Few levels, so that a price does not give the score away. Both stages share one ranking, fixed before calibration: what stage A
flags stands above everything else. So each level keeps its rate over both stages, and stage A never charges less than stage B would.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sameguard.calibration import Calibration, Threshold, beta_interval, conformal_rank
from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.shapes import Labels, Scores

CUT_POINTS = (0.05, 0.03, 0.02, 0.01)  # the last is twice stage A's share of the first: stage B reaches every level
MOST_LEVELS = 6  # more would tell the score


@dataclass(frozen=True)
class LevelDescription:
    """A level as `sameguard show` prints it.

    benign_share: at most this share of benign queries reaches the level. interval: where its realised rate lies with 95 % probability.
    action: what happens there. work: mean tries. expected_seconds, worst_seconds: of an honest client on one core. None where unpaid.
    """

    level: int
    benign_share: float
    interval: tuple[float, float]
    action: str
    work: int | None = None
    expected_seconds: float | None = None
    worst_seconds: float | None = None


class BenignLevels:
    """Level 0 is ordinary traffic, level i what exceeds the i-th cut point's threshold; NaN is at the last level.

    cut_points: decreasing benign p-values. Raises ConfigurationError for other cut points, CalibrationError where the calibration has too
    few queries for them.
    """

    def __init__(self, calibration: Calibration, cut_points: Sequence[float] = CUT_POINTS) -> None:
        rates = tuple(float(rate) for rate in cut_points)
        falling = all(after < before for before, after in zip((1.0, *rates), (*rates, 0.0), strict=True))
        if not falling or not 1 <= len(rates) <= MOST_LEVELS:
            raise ConfigurationError(
                f"cut points must be 1 to {MOST_LEVELS} benign p-values in (0, 1), each below the one before it, got {rates}."
            )
        self.thresholds = _thresholds(calibration, rates)
        self._values = np.array([threshold.value for threshold in self.thresholds])
        self._stage_a = np.array([threshold.stage_a for threshold in self.thresholds])

    def __len__(self) -> int:
        return len(self.thresholds)

    def levels(self, scores: Scores) -> Labels:
        """Level of each query by its whole score, (batch,)."""
        return (~(scores[:, None] <= self._values)).sum(axis=1)

    def stage_a_levels(self, stage_a_scores: Scores) -> Labels:
        """Level of each query by what it alone tells, (batch,): 0, or no less than stage B could give."""
        return (~(stage_a_scores[:, None] <= self._stage_a)).sum(axis=1)


def _thresholds(calibration: Calibration, rates: tuple[float, ...]) -> tuple[Threshold, ...]:
    """One threshold for each rate along one ranking, the first one's: its stage-A cut-off serves them all."""
    try:
        first = calibration.threshold(rates[0])
        ranks = [conformal_rank(len(calibration.scores), rate) for rate in rates]
    except CalibrationError as error:
        raise CalibrationError(f"cut points {rates}: {error}") from error
    early = np.zeros(first.n, bool)
    if len(calibration.stage_a_scores):
        # where stage A alone spends the whole budget (value infinite), nothing is ranked by its score
        early = np.full(first.n, True) if np.isinf(first.value) else ~(calibration.stage_a_scores <= first.stage_a)
    ranked_early = np.sort(calibration.stage_a_scores[early]) if early.any() else np.empty(0)
    ranked_late = np.sort(calibration.scores[~early])
    made = []
    for rate, k in zip(rates, ranks, strict=True):
        within_stage_a = k <= len(ranked_early)
        value = np.inf if within_stage_a else float(ranked_late[len(ranked_early) - k])
        stage_a = float(ranked_early[-k]) if within_stage_a else first.stage_a
        made.append(Threshold(value, stage_a, rate, first.n, k, beta_interval(k, first.n), first.biased))
    return tuple(made)
