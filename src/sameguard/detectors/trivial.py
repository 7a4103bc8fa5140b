"""What a sceptic tries first (algorithms.md 4.3): texture terms as detectors, the 8-bit-grid test, the nearest training image.

A one-sided term is its value, higher = more suspicious; the direction was fixed beforehand, since choosing it by an attack's AUROC would
be leakage. Two-sided, it is the distance from the benign median in units of the benign spread. Left out: volume, near-duplicates.
"""

import hashlib
from dataclasses import replace

import numpy as np

from sameguard.contract import InputContract
from sameguard.detectors.base import as_queries, checked, flat, in_batches, training_rows
from sameguard.detectors.features import FEATURE_ROWS, Bank
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.scoring import texture_terms
from sameguard.scoring.texture import Terms
from sameguard.shapes import Queries, Scores

OFF_GRID = 1e-3  # of a grid step: what float32 cannot explain


class TextureTerm:
    """One term of `scoring.texture_terms` as a detector. Raises ConfigurationError for a name that the contract's inputs do not have."""

    def __init__(self, name: str, contract: InputContract, two_sided: bool = False) -> None:
        names = term_names(contract)
        if name not in names:
            raise ConfigurationError(f"texture term must be one of {', '.join(names)}, got {name!r}.")
        self.name = name
        self.contract = contract
        self.two_sided = two_sided
        self._reader = _TermReader(contract)
        self._median: float | None = None
        self._spread = 1.0

    def fit(self, benign_queries: np.ndarray) -> "TextureTerm":
        """Median and standard deviation of the term on benign queries; needed for two-sided scores only."""
        if len(benign_queries) == 0:
            raise InvalidDataError(f"texture term {self.name} needs at least 1 benign query, got 0.")
        values = self._reader(self.contract.canonicalise(benign_queries))[self.name]
        self._median = float(np.median(values))
        self._spread = float(values.std()) or 1.0  # a term that never changed among benign queries is measured in its own units
        return self

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """float64 (batch,). Raises InvalidQueryError for queries outside the contract, NotFittedError for two-sided before fit()."""
        if self.two_sided and self._median is None:
            raise NotFittedError(f"two-sided {self.name} needs benign queries before it can score, got none: run fit() first.")
        values = self._reader(checked(queries, victim_probs, self.contract))[self.name]
        return np.abs(values - self._median) / self._spread if self.two_sided else values.copy()


def term_names(contract: InputContract) -> list[str]:
    """The names of all texture terms of the contract's inputs."""
    return list(texture_terms(np.zeros((1, *contract.shape), np.float32), contract))


def trivial_detectors(contract: InputContract) -> dict[str, TextureTerm]:
    """Readable name -> every texture term, one- and two-sided; `fit` each on benign queries. They compute the terms of a batch once."""
    reader = _TermReader(contract)
    detectors = {}
    for name in term_names(contract):
        for two_sided in (False, True):
            detector = TextureTerm(name, contract, two_sided)
            detector._reader = reader
            detectors[name.replace("_", " ") + (" (two-sided)" if two_sided else "")] = detector
    return detectors


class _TermReader:
    """Texture terms, and those of the last batch remembered by its content: twenty detectors look at the same queries in turn."""

    def __init__(self, contract: InputContract) -> None:
        self.contract = contract
        self._last: tuple[bytes, Terms] = (b"", {})

    def __call__(self, queries: Queries) -> Terms:
        key = hashlib.sha256(repr(queries.shape).encode() + queries.tobytes()).digest()
        known, terms = self._last
        if known == key:
            return terms
        names = term_names(self.contract)
        terms = {name: np.empty(len(queries)) for name in names}
        for start in range(0, len(queries), 256):  # the Laplacian alone is eight bytes for each value
            for name, values in texture_terms(queries[start : start + 256], self.contract).items():
                terms[name][start : start + 256] = values
        self._last = (key, terms)
        return terms


class OffGrid:
    """1 where max_i |255 x_i - round(255 x_i)| > 1e-3, else 0: an image that no 8-bit file can hold, in [0, 1].

    The one detector that must see queries before they are put on the grid: behind the victim's boundary nothing is off it. contract:
    checks shape and bounds too; its grid is not applied.
    """

    def __init__(self, contract: InputContract | None = None) -> None:
        self.contract = None if contract is None else replace(contract, grid="none")

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """0 or 1, float64 (batch,). Raises InvalidQueryError for queries that are not finite, or outside the contract."""
        queries = checked(queries, victim_probs, self.contract)
        levels = 255.0 * flat(queries).astype(np.float64)
        return (np.abs(levels - np.rint(levels)).max(axis=1, initial=0.0) > OFF_GRID).astype(np.float64)


class NearestTrainingImage:
    """L2 distance in input units to the k-th nearest training input. contract: None takes the fitted inputs' shape."""

    def __init__(self, k: int = 1, contract: InputContract | None = None) -> None:
        if k < 1:
            raise ConfigurationError(f"k must be at least 1, got {k}.")
        self.k = k
        self.contract = contract
        self._bank: Bank | None = None

    def fit(self, inputs: np.ndarray) -> "NearestTrainingImage":
        """inputs: uint8 or canonical float32 (n, *input), n >= k."""
        self.contract = self.contract or InputContract.for_inputs(inputs)
        rows = as_queries(training_rows(inputs, self.contract))
        self._bank = Bank(flat(rows), self.k)
        return self

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """float64 (batch,), >= 0. Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract."""
        if self._bank is None:
            raise NotFittedError("NearestTrainingImage needs fit() before it can score, got an unfitted detector.")
        queries = checked(queries, victim_probs, self.contract)
        return in_batches(flat(queries), self._bank.distance, FEATURE_ROWS)
