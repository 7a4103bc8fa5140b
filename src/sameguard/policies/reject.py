"""Refuse what the threshold flags."""

from sameguard.calibration import Threshold
from sameguard.policies.base import Action, Allow, Refuse
from sameguard.shapes import Scores


class Reject:
    """Allow up to the threshold, refuse beyond; what compares false (NaN) is refused."""

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]:
        return [Allow() if score <= self.threshold.stage_a else Refuse() for score in stage_a_scores]

    def decide(self, scores: Scores) -> list[Action]:
        return [Allow() if score <= self.threshold.value else Refuse() for score in scores]
