"""Coarsen: who looks suspicious learns less from each answer. It costs the victim's usefulness nothing where only the top class is used."""

import re

import numpy as np

from sameguard.calibration import Threshold
from sameguard.errors import ConfigurationError
from sameguard.policies.base import Action, Allow, Coarsen, Refuse
from sameguard.shapes import Probs, Scores

ROUNDED = re.compile(r"rounded\(([1-6])\)")


class CoarseAnswers:
    """Full answers up to the threshold, coarsened ones beyond. What compares false with everything (NaN) is refused."""

    def __init__(self, threshold: Threshold, coarsening: Coarsen | None = None) -> None:
        self.threshold = threshold
        self.coarsening = coarsening or Coarsen()

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]:
        return [self._action(score, self.threshold.stage_a) for score in stage_a_scores]

    def decide(self, scores: Scores) -> list[Action]:
        return [self._action(score, self.threshold.value) for score in scores]

    def _action(self, score: float, cut_off: float) -> Action:
        if score <= cut_off:
            return Allow()
        return Refuse() if np.isnan(score) else self.coarsening


def coarsened(probs: Probs, coarsening: Coarsen) -> Probs:
    """Probabilities (batch, classes) that tell less and still sum to 1: one-hot of the top class, or whole multiples of 10^-decimals.

    Each class is rounded down, and the units that are then missing go to those that lost most, so no class moves by a whole unit and none
    overtakes another; classes closer than a unit may tie.
    """
    if coarsening.decimals is None:
        return np.eye(probs.shape[1], dtype=np.float32)[probs.argmax(axis=1)]
    units = 10**coarsening.decimals
    exact = probs.astype(np.float64) / probs.sum(axis=1, keepdims=True, dtype=np.float64) * units
    whole = np.floor(exact)
    missing = np.rint(units - whole.sum(axis=1)).astype(np.int64)
    rank = np.argsort(np.argsort(whole - exact, axis=1, kind="stable"), axis=1)  # 0 for the class that lost most
    whole += rank < missing[:, None]
    return (whole / units).astype(np.float32)


def parse_coarsening(text: str) -> Coarsen:
    """The coarsening that a setting names: top1, or rounded(k) with k from 1 to 6 decimals. Raises ConfigurationError for anything else."""
    if text == "top1":
        return Coarsen()
    found = ROUNDED.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"coarsening must be top1 or rounded(k) with k from 1 to 6, got {text!r}.")
    return Coarsen(int(found[1]))
