"""Scores from the victim's output alone (algorithms.md 4.2): what costs nothing and has to be beaten.

Temperature 1 throughout. Energy needs the owner's true logits: probabilities give them only up to a constant, and that constant is the
energy. Left out: ODIN (gradients) and MaxLogit.
"""

from collections.abc import Callable

import numpy as np

from sameguard.contract import InputContract
from sameguard.detectors.base import checked, finite_probs
from sameguard.errors import InvalidVictimError
from sameguard.shapes import Scores


class MaxProbability:
    """-max_k p_k: the less sure the victim is of any class, the more suspicious the query. contract: checks the queries too."""

    def __init__(self, contract: InputContract | None = None) -> None:
        self.contract = contract

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """In [-1, -1 / classes]. Raises InvalidQueryError for answers that are not finite or not one for each query."""
        checked(queries, victim_probs, self.contract)
        return -finite_probs(victim_probs).max(axis=1)


class Entropy:
    """-sum_k p_k log p_k in nats, with 0 log 0 = 0. contract: checks the queries too."""

    def __init__(self, contract: InputContract | None = None) -> None:
        self.contract = contract

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """In [0, log classes]. Raises InvalidQueryError for answers that are not finite or not one for each query."""
        checked(queries, victim_probs, self.contract)
        probs = finite_probs(victim_probs)
        logarithms = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
        return -(probs * logarithms).sum(axis=1)


class Energy:
    """-log sum_k exp z_k of the owner's own logits z. contract: checks the queries too.

    logits: canonical queries (batch, *input) -> (batch, classes), batched by itself, such as `lambda q: predict_logits(network, q)`.
    """

    def __init__(self, logits: Callable[[np.ndarray], np.ndarray], contract: InputContract | None = None) -> None:
        self.logits = logits
        self.contract = contract

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """Raises InvalidQueryError for queries that are not finite, InvalidVictimError where the logits are not."""
        queries = checked(queries, victim_probs, self.contract)
        if len(queries) == 0:
            return np.empty(0)
        logits = np.asarray(self.logits(queries), np.float64)
        if logits.shape != victim_probs.shape or not np.isfinite(logits).all():
            raise InvalidVictimError(
                f"logits must be finite and {victim_probs.shape}, as the answers are, got shape {logits.shape} "
                f"with {int((~np.isfinite(logits)).sum())} values that are not finite."
            )
        highest = logits.max(axis=1)
        return -(highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)))
