"""Which numbers no ROC curve can produce together: a check for tables, the paper's and ours (algorithms.md section 6).

A ROC curve is a non-decreasing step function; written as FPR(R) over recall R, AUROC = 1 - integral of FPR(R), and average precision is
the integral of R / (R + c FPR(R)) with c = (1 - prevalence) / prevalence. Known points FPR(.95), FPR(.90) bound FPR(R) from both sides;
the area that AUROC demands costs least precision at the highest recall and, as the integrand is convex in FPR, in one step: filling it
from the top down gives the largest average precision. What exceeds that cannot be right under that prevalence. Equal scores are one step
of the curve, at whose end precision is read: average precision may then exceed the integral, by a few times the largest step, so cells
with blocks of equal scores are judged leniently or not at all (`TIES`).
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from sameguard.errors import ConfigurationError

TOLERANCE = 0.001  # rounding of printed numbers
TIES = 10.0


class _Segment(NamedTuple):
    """Recall from `low` to `high`, where FPR lies between `least` and `most`."""

    low: float
    high: float
    least: float
    most: float

    @property
    def width(self) -> float:
        return self.high - self.low


def auroc_range(rates: Mapping[float, float]) -> tuple[float, float]:
    """Lowest and highest AUROC of any curve whose FPR at these TPRs is as given. rates: TPR -> FPR."""
    segments = _segments(rates)
    return 1.0 - sum(part.width * part.most for part in segments), 1.0 - sum(part.width * part.least for part in segments)


def largest_average_precision(auroc: float, prevalence: float, rates: Mapping[float, float] | None = None) -> float:
    """The largest average precision of any ROC curve with this AUROC and these FPRs (TPR -> FPR), at this share of malicious queries.

    NaN where no curve has that AUROC and those rates.
    """
    if not 0.0 < prevalence < 1.0:
        raise ConfigurationError(f"prevalence must be in (0, 1), got {prevalence}.")
    segments = _segments(rates or {})
    lowest, highest = auroc_range(rates or {})
    if not lowest - 1e-12 <= auroc <= highest + 1e-12:
        return math.nan
    cost = (1.0 - prevalence) / prevalence
    spare = max(0.0, 1.0 - auroc - sum(part.width * part.least for part in segments))
    total = 0.0
    for part in reversed(segments):
        room = part.most - part.least
        raised = min(part.width, spare / room) if room > 0 else 0.0  # this much of the segment, at its upper end, goes to its highest FPR
        spare -= raised * room
        turn = part.high - raised
        total += _area(part.low, turn, cost * part.least) + _area(turn, part.high, cost * part.most)
    return total


def infeasibilities(
    auroc: float,
    average_precision: float,
    prevalence: float,
    *,
    fpr95: float | None = None,
    fpr90: float | None = None,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """A sentence for each reason why these numbers cannot belong to one ROC curve; none where they can. All in [0, 1]."""
    rates = {tpr: rate for tpr, rate in ((0.90, fpr90), (0.95, fpr95)) if rate is not None}
    if fpr95 is not None and fpr90 is not None and fpr90 > fpr95:
        return [f"FPR90 of {_percent(fpr90)} exceeds FPR95 of {_percent(fpr95)}"]
    lowest, highest = auroc_range(rates)
    if not lowest - tolerance <= auroc <= highest + tolerance:
        return [f"AUROC {_percent(auroc)} is outside {_percent(lowest)} to {_percent(highest)}, which its FPRs allow"]
    largest = largest_average_precision(min(max(auroc, lowest), highest), prevalence, rates)
    if average_precision > largest + tolerance:
        return [f"AUPR {_percent(average_precision)} exceeds {_percent(largest)}, the most at a prevalence of {_percent(prevalence)}"]
    return []


class NaturalCaps(NamedTuple):
    """auroc: at most this. fpr: at least this, at the TPR asked for. Both in expectation."""

    auroc: float
    fpr: float


def natural_caps(share: float, tpr: float = 0.95) -> NaturalCaps:
    """What a share of the malicious queries that are natural, hence like benign ones (JBDA's seeds), leaves to the best detector."""
    if not 0.0 <= share <= 1.0:
        raise ConfigurationError(f"share of natural queries must be in [0, 1], got {share}.")
    return NaturalCaps(1.0 - share / 2.0, max(0.0, (tpr - 1.0 + share) / share) if share else 0.0)


def pooled_prevalence(ratio: float, attacks: int = 3) -> float:
    """Share of malicious queries where each of so many attacks sends `ratio` queries for each benign one: k r / (1 + k r)."""
    return attacks * ratio / (1.0 + attacks * ratio)


def _segments(rates: Mapping[float, float]) -> list[_Segment]:
    for tpr, rate in rates.items():
        if not (0.0 < tpr <= 1.0 and 0.0 <= rate <= 1.0):
            raise ConfigurationError(f"rates must map a TPR in (0, 1] to an FPR in [0, 1], got {tpr} -> {rate}.")
    knots = [(0.0, 0.0), *sorted(rates.items()), (1.0, 1.0)]
    return [_Segment(low, high, least, most) for (low, least), (high, most) in pairwise(knots) if high > low]


def _area(low: float, high: float, weight: float) -> float:
    """Integral of R / (R + weight) from low to high."""
    if high <= low:
        return 0.0
    if weight == 0.0:
        return high - low
    return high - low - weight * math.log((high + weight) / (low + weight))


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
