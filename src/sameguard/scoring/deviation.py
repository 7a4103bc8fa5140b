"""Deviation of the auxiliary model's answer from the victim's (the second term of Eq. 6), in float64, per query.

A victim that gives labels only has one-hot rows: `disagreement` is then 1 - p_A of the answered class, `kl` its negative logarithm.
"""

import numpy as np

from sameguard.shapes import Probs, Scores


def deviations(victim_probs: Probs, auxiliary_logits: np.ndarray) -> dict[str, Scores]:
    """All three deviations, float64 (batch,), higher = more suspicious.

    victim_probs: (batch, classes). auxiliary_logits: (batch, passes, classes), one pass for the `full` view; means over the passes.

    deviation_squared: sum_k (p_V,k - p_A,k)², in [0, 2] (the paper's).
    deviation_kl: sum_k p_V,k (log p_V,k - log p_A,k), nats, 0 log 0 = 0 (the release takes the mean over classes: a factor 1/K).
    deviation_disagreement: 1 - sum_k p_V,k p_A,k: the chance that two labels drawn from the two answers differ (algorithms.md 2.8).
    """
    victim = victim_probs.astype(np.float64)[:, None, :]
    log_auxiliary = _log_softmax(auxiliary_logits.astype(np.float64))
    auxiliary = np.exp(log_auxiliary)
    log_victim = np.log(victim, out=np.zeros_like(victim), where=victim > 0)
    squared = ((victim - auxiliary) ** 2).sum(axis=2)
    kl = (victim * (log_victim - log_auxiliary)).sum(axis=2)
    # 1 - sum p q loses all digits where both answers are sure; sum_k p_k (sum of the other q) keeps them
    others = _sums_of_others(auxiliary)
    disagreement = (victim * others).sum(axis=2)
    return {
        "deviation_squared": squared.mean(axis=1),
        "deviation_kl": np.maximum(kl, 0.0).mean(axis=1),
        "deviation_disagreement": disagreement.mean(axis=1),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _sums_of_others(probs: np.ndarray) -> np.ndarray:
    """For each class the sum of all other classes' probabilities, by prefix and suffix sums (no subtraction, so no cancellation)."""
    zero = np.zeros_like(probs[..., :1])
    before = np.concatenate([zero, np.cumsum(probs[..., :-1], axis=-1)], axis=-1)
    after = np.concatenate([np.cumsum(probs[..., :0:-1], axis=-1)[..., ::-1], zero], axis=-1)
    return before + after
