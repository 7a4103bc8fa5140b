"""All detection metrics of one pair of score sets, and their bootstrap intervals, fast enough for a table of hundreds of cells.

The metrics depend on the order of the scores alone, so a resample is a count for each distinct score: one sort for all resamples. The
values are those of `metrics`, to rounding (a test compares them).
"""

from typing import Any, NamedTuple

import numpy as np

from sameguard.evaluation.metrics import aupr_trapezoid, auroc, average_precision, fpr_at_tpr, tpr_at_fpr

RESAMPLED = ("auroc", "average_precision", "fpr95")


class Curve(NamedTuple):
    """Cumulative counts of malicious and benign queries from the highest distinct score downwards."""

    hits: np.ndarray
    alarms: np.ndarray

    def auroc(self) -> float:
        hits, alarms = np.concatenate([[0], self.hits]), np.concatenate([[0], self.alarms])
        area = ((hits[1:] + hits[:-1]) / 2 * np.diff(alarms)).sum()
        return float(area / (hits[-1] * alarms[-1]))

    def average_precision(self) -> float:
        steps = np.diff(self.hits, prepend=0)
        flagged = np.maximum(self.hits + self.alarms, 1)
        return float((steps * self.hits / flagged).sum() / self.hits[-1])

    def fpr_at(self, tpr: float) -> float:
        reached = np.argmax(self.hits >= tpr * self.hits[-1] - 1e-9)
        return float(self.alarms[reached] / self.alarms[-1])


def cell(benign: np.ndarray, malicious: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Metrics of one cell of a table as JSON: values in [0, 1], 95 % intervals, and how many queries of either kind they rest on.

    largest_tie: the largest share of the malicious queries that have one and the same score.
    """
    values = {
        "auroc": auroc(benign, malicious), "average_precision": average_precision(benign, malicious),
        "aupr_trapezoid": aupr_trapezoid(benign, malicious), "fpr95": fpr_at_tpr(benign, malicious, 0.95),
        "fpr90": fpr_at_tpr(benign, malicious, 0.90), "tpr_at_1_percent": tpr_at_fpr(benign, malicious, 0.01),
    }  # fmt: skip
    intervals = resampled_intervals(benign, malicious, resamples=resamples, seed=seed)
    rounded = {name: round(value, 5) for name, value in values.items()}
    return {
        **rounded,
        "largest_tie": round(float(np.unique(malicious, return_counts=True)[1].max() / len(malicious)), 5),
        "n_pos": len(malicious),
        "n_neg": len(benign),
        "intervals": {name: [round(end, 4) for end in ends] for name, ends in intervals.items()},
    }


def resampled_intervals(
    benign: np.ndarray, malicious: np.ndarray, *, resamples: int, seed: int = 0, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of AUROC, average precision and FPR95 over resamples of both groups, each by itself."""
    levels, place = np.unique(np.concatenate([benign, malicious]), return_inverse=True)
    place = len(levels) - 1 - place  # the highest score first
    below, above = place[: len(benign)], place[len(benign) :]
    draw = np.random.default_rng(seed)
    values = np.empty((resamples, len(RESAMPLED)))
    for row in values:
        curve = _curve(above[draw.integers(0, len(above), len(above))], below[draw.integers(0, len(below), len(below))], len(levels))
        row[:] = curve.auroc(), curve.average_precision(), curve.fpr_at(0.95)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(RESAMPLED)}


def curve_of(benign: np.ndarray, malicious: np.ndarray) -> Curve:
    """The ROC curve as counts."""
    levels, place = np.unique(np.concatenate([benign, malicious]), return_inverse=True)
    place = len(levels) - 1 - place
    return _curve(place[len(benign) :], place[: len(benign)], len(levels))


def _curve(above: np.ndarray, below: np.ndarray, levels: int) -> Curve:
    return Curve(np.cumsum(np.bincount(above, minlength=levels)), np.cumsum(np.bincount(below, minlength=levels)))
