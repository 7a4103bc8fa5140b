"""One thief with many accounts, and what an account's window of queries adds up to (algorithms.md 3.6, 5.4).

Whoever judges accounts instead of queries gains with the window's length and loses with every account that a thief opens. The arithmetic is
that of Gaussian scores of equal variance and independent queries: a yardstick for measured windows, not a promise.
"""

import math

import numpy as np
from jaxtyping import Int
from scipy.stats import norm

from sameguard.errors import ConfigurationError

SYBILS = (1, 5, 50, 400)  # accounts that a thief opens


def accounts_of(queries: int, accounts: int) -> list[Int[np.ndarray, "rows"]]:
    """Rows of each account's queries where they are dealt round robin, in order; accounts beyond the number of queries hold none."""
    if queries < 0 or accounts < 1:
        raise ConfigurationError(f"accounts must be at least 1 and queries at least 0, got {accounts} and {queries}.")
    return [np.arange(first, queries, accounts) for first in range(accounts)]


def window_means(scores: np.ndarray, window: int, accounts: int = 1) -> np.ndarray:
    """Mean score of each whole window of consecutive queries of one account, windows not overlapping; a started last window is left out.

    scores: (queries,), in the order of asking, dealt round robin to that many accounts. Accounts come one after the other. Windows share no
    query, so that a rate of alarms among them means what it says.
    """
    if window < 1:
        raise ConfigurationError(f"window must be at least 1 query, got {window}.")
    dealt = [np.asarray(scores)[rows] for rows in accounts_of(len(scores), accounts)]
    return np.concatenate([own[: len(own) // window * window].reshape(-1, window).mean(axis=1) for own in dealt])


def separation(auroc: float) -> float:
    """d' of two Gaussians of equal variance with that AUROC: sqrt(2) times its normal quantile."""
    if not 0.0 < auroc < 1.0:
        raise ConfigurationError(f"auroc must be in (0, 1), got {auroc}: at 0 and 1 the separation is infinite.")
    return math.sqrt(2.0) * float(norm.ppf(auroc))


def windowed_auroc(auroc: float, window: int, malicious_share: float = 1.0) -> float:
    """AUROC of the mean score of `window` queries, of which that share is malicious, from the AUROC of one query.

    The separation grows with share sqrt(window). A share below 1 also widens the malicious windows' spread, which is left out here.
    """
    if window < 1 or not 0.0 <= malicious_share <= 1.0:
        raise ConfigurationError(f"window must be at least 1 query and malicious_share in [0, 1], got {window} and {malicious_share}.")
    return float(norm.cdf(malicious_share * math.sqrt(window) * separation(auroc) / math.sqrt(2.0)))


def gaussian_fpr95(auroc: float) -> float:
    """False positive rate at a true positive rate of 95 % that Gaussian scores of that AUROC have."""
    return float(norm.cdf(norm.ppf(0.95) - separation(auroc)))
