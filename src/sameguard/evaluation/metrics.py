"""Metrics of detection and of extraction, on scikit-learn (conventions: algorithms.md section 1).

Higher score = more suspicious, and the positive class is malicious: every detection metric takes the benign scores first, then the
malicious ones. They depend on the order of the scores alone, infinite ones included; NaN has no order and raises. None of them
interpolates between operating points, except `aupr_trapezoid`, which is there for comparison with the paper.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import nn

from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import predict_logits
from sameguard.shapes import Queries
from sameguard.victim import BlackBox

BenignScores = Float[np.ndarray, "benign"]
MaliciousScores = Float[np.ndarray, "malicious"]
TrueLabels = Int[np.ndarray, "labels"]  # a length of its own: a mismatch is the user's error, not a broken invariant
Metric = Callable[[np.ndarray, np.ndarray], float]

# ---------------------------------------------------------------------- detection


def auroc(benign: BenignScores, malicious: MaliciousScores) -> float:
    """Probability that a malicious query scores above a benign one, ties counted half (Mann-Whitney); a constant score gives 0.5."""
    return float(roc_auc_score(*_ranked(benign, malicious)))


def average_precision(benign: BenignScores, malicious: MaliciousScores) -> float:
    """Sum of (R_i - R_(i-1)) P_i, without interpolation. A random score gives the prevalence: print n_pos and n_neg beside it."""
    return float(average_precision_score(*_ranked(benign, malicious)))


def aupr_trapezoid(benign: BenignScores, malicious: MaliciousScores) -> float:
    """Area under the precision-recall curve by the trapezoid, as the paper's release computes it: optimistic, for comparison only."""
    precision, recall, _ = precision_recall_curve(*_ranked(benign, malicious))
    return float(auc(recall, precision))


def fpr_at_tpr(benign: BenignScores, malicious: MaliciousScores, tpr: float = 0.95) -> float:
    """Share of benign queries flagged at the highest threshold that flags at least `tpr` of the malicious ones: a step, no interpolation."""
    _check_rate("tpr", tpr)
    false_rates, true_rates, _ = roc_curve(*_ranked(benign, malicious), drop_intermediate=False)
    return float(false_rates[np.argmax(true_rates >= tpr)])


def tpr_at_fpr(benign: BenignScores, malicious: MaliciousScores, fpr: float = 0.01) -> float:
    """Largest share of malicious queries flagged at any threshold that flags at most `fpr` of the benign ones."""
    _check_rate("fpr", fpr)
    false_rates, true_rates, _ = roc_curve(*_ranked(benign, malicious), drop_intermediate=False)
    return float(true_rates[false_rates <= fpr].max())


def _ranked(benign: np.ndarray, malicious: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 where malicious, and the rank of each score (equal scores share one), so that infinite scores are as good as any."""
    for name, scores in (("benign", benign), ("malicious", malicious)):
        if len(scores) == 0:
            raise InvalidDataError(f"{name} scores must be at least 1, got 0: a detection metric compares two groups.")
        if np.isnan(scores).any():
            raise InvalidDataError(
                f"{name} scores must not be NaN, got {int(np.isnan(scores).sum())} of {len(scores)}: they cannot be ranked."
            )
    _, ranks = np.unique(np.concatenate([benign, malicious]), return_inverse=True)
    return np.repeat([0, 1], [len(benign), len(malicious)]), ranks.astype(np.float64)


def _check_rate(name: str, rate: float) -> None:
    if not 0.0 < rate <= 1.0:
        raise ConfigurationError(f"{name} must be in (0, 1], got {rate}.")


# ---------------------------------------------------------------------- extraction


def accuracy(model: nn.Module | BlackBox, inputs: Queries, labels: TrueLabels) -> float:
    """Share of canonical inputs on which the model (substitute or victim) names the true class."""
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise InvalidDataError(
            f"accuracy needs one label for each input and at least 1, got {len(inputs)} inputs and {len(labels)} labels."
        )
    return float(np.mean(_classes(model, inputs) == labels))


def fidelity(substitute: nn.Module | BlackBox, victim: BlackBox, inputs: Queries) -> float:
    """Share of inputs on which substitute and victim name the same class, right or wrong; both see the canonical input."""
    queries = victim.contract.canonicalise(inputs)
    return float(np.mean(_classes(substitute, queries) == _classes(victim, queries)))


def _classes(model: nn.Module | BlackBox, inputs: np.ndarray) -> np.ndarray:
    if isinstance(model, BlackBox):
        return model.answer(model.contract.canonicalise(inputs)).argmax(axis=1)
    return predict_logits(model, inputs).argmax(axis=1)


# ---------------------------------------------------------------------- uncertainty


def bootstrap_intervals(
    metrics: Mapping[str, Metric],
    benign: BenignScores,
    malicious: MaliciousScores,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each metric over resamples of both groups, each resampled by itself, the same ones for all metrics.

    It covers the choice of queries only: neither another fit nor another seed of the attack.
    """
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"resamples must be at least 1 and confidence in (0, 1), got {resamples} and {confidence}.")
    generator = np.random.default_rng(seed)
    values = np.empty((resamples, len(metrics)))
    for row in values:
        drawn = (generator.choice(benign, len(benign)), generator.choice(malicious, len(malicious)))
        row[:] = [metric(*drawn) for metric in metrics.values()]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(metrics)}


def bootstrap_interval(
    metric: Metric,
    benign: BenignScores,
    malicious: MaliciousScores,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """`bootstrap_intervals` of one metric."""
    found = bootstrap_intervals({"metric": metric}, benign, malicious, resamples=resamples, confidence=confidence, seed=seed)
    return found["metric"]
