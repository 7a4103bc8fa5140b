"""Everything about scores that needs numpy alone: terms of a query, deviation of answers, and how they become one number."""

from sameguard.scoring.combination import Combination, ScoreConfig, Typicality, combination_for
from sameguard.scoring.deviation import deviations
from sameguard.scoring.texture import Terms, texture_terms
from sameguard.scoring.two_stage import Reconstruction, TwoStageScorer

__all__ = [
    "Combination",
    "Reconstruction",
    "ScoreConfig",
    "Terms",
    "TwoStageScorer",
    "Typicality",
    "combination_for",
    "deviations",
    "texture_terms",
]
