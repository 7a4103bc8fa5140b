"""A thief's own copy of SAME, as the callables that attacks take: what it finds suspicious, and how its autoencoder paints a query."""

from collections.abc import Callable

import numpy as np

from sameguard.data.transforms import quantise
from sameguard.errors import NotFittedError
from sameguard.scoring import TwoStageScorer

AT_ONCE = 512


def own_score(scorer: TwoStageScorer) -> Callable[[np.ndarray], np.ndarray]:
    """Suspicion of each query. Asking the victim about every candidate would cost queries: the auxiliary model stands in for it.

    Raises NotFittedError before calibration.
    """
    if scorer.combination is None:
        raise NotFittedError("a thief's copy of the detector must be calibrated to rank queries, got one that is not: sameguard calibrate.")

    def score(queries: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(queries), AT_ONCE):
            reconstruction = scorer.reconstruct(queries[start : start + AT_ONCE])
            own = scorer.auxiliary_probs(reconstruction)
            parts.append(scorer.combined_score(reconstruction, scorer.deviation(reconstruction, own)))
        return np.concatenate(parts)

    return score


def own_picture(scorer: TwoStageScorer) -> Callable[[np.ndarray], np.ndarray]:
    """Full-view reconstructions, on the contract's grid; where the copy has masked views alone, the mean of its passes."""

    def picture(queries: np.ndarray) -> np.ndarray:
        views = [scorer.reconstruct(queries[start : start + AT_ONCE]).views for start in range(0, len(queries), AT_ONCE)]
        painted = np.concatenate([view["full"] if "full" in view else view["masked"].mean(axis=1) for view in views])
        return quantise(painted) if scorer.contract.grid == "8bit" else painted

    return picture
