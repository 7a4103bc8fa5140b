"""Calibrations made of chosen scores, so that every rank is known by hand."""

import numpy as np

from sameguard.calibration import Calibration


def calibration_of(
    scores: np.ndarray, stage_a_scores: np.ndarray | None = None, statistics_stage_a: np.ndarray | None = None
) -> Calibration:
    """What calibrate() would leave behind for benign queries with these scores."""
    nothing = np.empty(0)
    return Calibration(
        scores=np.asarray(scores, np.float64),
        stage_a_scores=nothing if stage_a_scores is None else stage_a_scores,
        statistics_stage_a=nothing if statistics_stage_a is None else np.sort(statistics_stage_a),
        digests={"statistics": np.empty(0, np.uint64), "calibration": np.empty(0, np.uint64)},
        agreement=1.0,
        biased=False,
        canary_queries=nothing,
        canary_probs=nothing,
    )


def one_to(n: int) -> Calibration:
    """Scores 1, 2, ... n: the p-value of a score s, not above n, is (n + 2 - ceil(s)) / (n + 1)."""
    return calibration_of(np.random.default_rng(0).permutation(np.arange(1.0, n + 1)))


def two_stages(n: int = 2000, seed: int = 0) -> Calibration:
    """Normal scores for both stages, unrelated to each other."""
    rng = np.random.default_rng(seed)
    return calibration_of(rng.normal(size=n), rng.normal(size=n), rng.normal(size=n))


def benign_queries(rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Further scores and stage-A scores of the kind that `two_stages` was calibrated on."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=rows), rng.normal(size=rows)
