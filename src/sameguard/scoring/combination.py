"""From the terms of a query to one score: `weighted` (Eq. 6), `two_sided`, `typicality` (algorithms.md 2.6 and 2.8).

A combination is fitted on benign `statistics` queries and on nothing else. It gives two scores: one of the terms that need no answer
(stage A), one of all terms. Both grow with suspicion. Its state is plain arrays, kept in the artefact.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.scoring.texture import Terms
from sameguard.shapes import Scores

State = dict[str, np.ndarray]
ERROR_TERMS = ("error_full", "error_masked")
MINIMUM_STATISTICS = 40

NEIGHBOURS = 10  # k of the texture distance
TEXTURE_SPEAKS_FROM = 3.0  # c of the truncated sum: texture counts where its p-value is below exp(-3)
TEXTURE_SLOPE = 1.5
WHITENING_FLOOR = 1e-3  # smallest variance, in standardised units, that whitening scales up to 1


@dataclass(frozen=True)
class ScoreConfig:
    """Which terms make the score, and how.

    views: the autoencoder's views that are run. deviation: squared | kl | disagreement. combination: weighted | two_sided | typicality.
    For `weighted` only: reconstruction_view is the view whose error counts, reconstruction_weight the weight in Eq. (6) (1 is SAME-X,
    0 is SAME-Y), normaliser none | zscore_benign | rank_benign | std_ratio, and two factors that undo a release's choice of units.
    """

    combination: Literal["weighted", "two_sided", "typicality"] = "typicality"
    deviation: Literal["squared", "kl", "disagreement"] = "disagreement"
    views: tuple[str, ...] = ("full", "masked")
    reconstruction_view: Literal["full", "masked"] = "full"
    reconstruction_weight: float = 0.5  # alpha in algorithms.md
    normaliser: Literal["none", "zscore_benign", "rank_benign", "std_ratio"] = "zscore_benign"
    error_factor: float = 1.0
    deviation_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.combination not in COMBINATIONS:
            raise ConfigurationError(f"combination must be one of {', '.join(COMBINATIONS)}, got {self.combination!r}.")
        if self.deviation not in ("squared", "kl", "disagreement"):
            raise ConfigurationError(f"deviation must be squared, kl or disagreement, got {self.deviation!r}.")
        if not self.views or not set(self.views) <= {"full", "masked"}:
            raise ConfigurationError(f"views must name full, masked or both, got {self.views}.")
        if not 0.0 <= self.reconstruction_weight <= 1.0:
            raise ConfigurationError(f"reconstruction_weight must be in [0, 1], got {self.reconstruction_weight}.")
        if self.normaliser not in ("none", "zscore_benign", "rank_benign", "std_ratio"):
            raise ConfigurationError(f"normaliser must be none, zscore_benign, rank_benign or std_ratio, got {self.normaliser!r}.")
        if self.combination == "weighted" and self.reconstruction_view not in self.views:
            raise ConfigurationError(f"reconstruction_view must be one of the views {self.views}, got {self.reconstruction_view!r}.")

    @property
    def deviation_term(self) -> str:
        return f"deviation_{self.deviation}"

    @property
    def error_terms(self) -> tuple[str, ...]:
        return tuple(name for name in ERROR_TERMS if name.removeprefix("error_") in self.views)

    @property
    def needs_texture(self) -> bool:
        return self.combination == "typicality"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "views": list(self.views)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "ScoreConfig":
        return cls(**{**stored, "views": tuple(stored["views"])})


@runtime_checkable
class Combination(Protocol):
    """Terms -> scores, fitted on benign terms. `stage_a` is None where no part of the score can be had before the answer."""

    def fit(self, benign: Terms) -> "Combination": ...

    def stage_a(self, terms: Terms) -> Scores | None: ...

    def score(self, terms: Terms) -> Scores: ...

    def state(self) -> State: ...

    def restore(self, state: State) -> "Combination": ...


def combination_for(config: ScoreConfig) -> Combination:
    """An unfitted combination of the configured kind."""
    return COMBINATIONS[config.combination](config)


# ---------------------------------------------------------------------- benign tails


class BenignTail:
    """-log of the upper tail probability among n benign values: p(v) = (1 + #{benign >= v}) / (n + 1), interpolated.

    Linear interpolation of log p between order statistics keeps the map strictly increasing over the benign range, so scores do not tie
    there. Above the largest benign value p is at its floor 1/(n + 1); the map then grows on, slowly, in units of the upper half's width,
    so that "further out" still means "more". NaN stays NaN.
    """

    def __init__(self, benign: np.ndarray) -> None:
        self.values = np.sort(np.asarray(benign, np.float64))
        count = len(self.values)
        self._knots, first = np.unique(self.values, return_index=True)
        at_least = count - first  # number of benign values >= each knot
        self._log_p = -np.log((1.0 + at_least) / (count + 1.0))
        self._width = max(self.values[-1] - np.median(self.values), 1e-12)
        self._floor = np.log(count + 1.0)

    def __call__(self, values: np.ndarray) -> Scores:
        values = np.asarray(values, np.float64)
        inside = np.interp(values, self._knots, self._log_p)
        beyond = self._floor + np.log1p(np.maximum(values - self.values[-1], 0.0) / self._width)
        return np.where(values > self.values[-1], beyond, np.where(np.isnan(values), np.nan, inside))


def _check_size(benign: Terms) -> int:
    count = len(next(iter(benign.values())))
    if count < MINIMUM_STATISTICS:
        raise CalibrationError(f"the score's statistics need at least {MINIMUM_STATISTICS} benign queries, got {count}: give more.")
    return count


# ---------------------------------------------------------------------- Eq. 6


class Weighted:
    """Eq. 6: reconstruction_weight * L_rec + (1 - reconstruction_weight) * L_dev, each after the normaliser."""

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config
        self.error_term = f"error_{config.reconstruction_view}"
        self.terms = (self.error_term, config.deviation_term)
        self.factors = (config.error_factor, config.deviation_factor)
        self._state: State = {}

    def fit(self, benign: Terms) -> "Weighted":
        _check_size(benign)
        columns = [benign[name] * factor for name, factor in zip(self.terms, self.factors, strict=True)]
        spreads = [max(float(column.std()), 1e-12) for column in columns]
        return self.restore({
            "location": np.array([column.mean() for column in columns]),
            "spread": np.array(spreads),
            "sorted_error": np.sort(columns[0]),
            "sorted_deviation": np.sort(columns[1]),
        })  # fmt: skip

    def stage_a(self, terms: Terms) -> Scores | None:
        return None if self.config.reconstruction_weight == 0.0 else self._normalised(0, terms)

    def score(self, terms: Terms) -> Scores:
        weight = self.config.reconstruction_weight
        if weight == 1.0:  # SAME-X: the deviation must not even be looked at, it may be missing
            return self._normalised(0, terms)
        if weight == 0.0:
            return self._normalised(1, terms)
        return weight * self._normalised(0, terms) + (1.0 - weight) * self._normalised(1, terms)

    def _normalised(self, index: int, terms: Terms) -> Scores:
        column = terms[self.terms[index]].astype(np.float64) * self.factors[index]
        normaliser = self.config.normaliser
        if normaliser == "zscore_benign":
            return (column - self._state["location"][index]) / self._state["spread"][index]
        if normaliser == "rank_benign":
            benign = self._state[("sorted_error", "sorted_deviation")[index]]
            return np.where(np.isnan(column), np.nan, np.searchsorted(benign, column) / len(benign))
        if normaliser == "std_ratio" and index == 0:
            return column * self._state["spread"][1] / self._state["spread"][0]
        return column

    def state(self) -> State:
        return self._state

    def restore(self, state: State) -> "Weighted":
        self._state = state
        return self


# ---------------------------------------------------------------------- two-sided tails


class TwoSided:
    """Sum over the terms of -log of the two-sided benign tail probability: too easy to reconstruct is as untypical as too hard."""

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config
        self.terms = (*config.error_terms, config.deviation_term)
        self._tails: dict[str, tuple[BenignTail, BenignTail]] = {}

    def fit(self, benign: Terms) -> "TwoSided":
        _check_size(benign)
        return self.restore({name: np.sort(benign[name]) for name in self.terms})

    def stage_a(self, terms: Terms) -> Scores | None:
        return self._sum(self.config.error_terms, terms)

    def score(self, terms: Terms) -> Scores:
        return self._sum(self.terms, terms)

    def _sum(self, names: tuple[str, ...], terms: Terms) -> Scores:
        columns = []
        for name in names:
            upper, lower = self._tails[name]
            columns.append(np.maximum(np.maximum(upper(terms[name]), lower(-terms[name])) - np.log(2.0), 0.0))
        return np.sum(columns, axis=0)

    def state(self) -> State:
        return {name: upper.values for name, (upper, _) in self._tails.items()}

    def restore(self, state: State) -> "TwoSided":
        self._tails = {name: (BenignTail(values), BenignTail(-values)) for name, values in state.items()}
        return self


# ---------------------------------------------------------------------- typicality


class Typicality:
    """Two benign p-values, texture and meaning, joined: -log p_meaning + 1.5 max(0, -log p_texture - 3) (algorithms.md 2.8, point 3).

    Texture: distance to the 10th nearest benign query in whitened log-term space of the reconstruction errors and the texture terms. Half
    of the statistics queries are the bank, the other half gives the p-values. Meaning: the deviation, one-sided, among all of them.
    """

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config
        self._state: State = {}

    def fit(self, benign: Terms) -> "Typicality":
        count = _check_size(benign)
        names = [name for name in benign if not name.startswith("deviation_")]
        columns = np.stack([benign[name] for name in names], axis=1).astype(np.float64)
        in_bank = np.arange(count) % 2 == 0
        offsets = _log_offsets(columns[in_bank])
        logs = _signed_log(columns, offsets)
        location, spread = logs[in_bank].mean(axis=0), np.maximum(logs[in_bank].std(axis=0), 1e-9)
        standard = (logs - location) / spread
        values, vectors = np.linalg.eigh(np.cov(standard[in_bank].T).reshape(len(names), len(names)))
        whitening = vectors / np.sqrt(np.maximum(values, WHITENING_FLOOR))
        white = standard @ whitening
        self.restore({
            "names": np.array(names),
            "offsets": offsets,
            "location": location,
            "spread": spread,
            "whitening": whitening,
            "bank": white[in_bank],
            "texture": np.zeros(1),
            "meaning": np.sort(benign[self.config.deviation_term]),
        })  # fmt: skip
        return self.restore({**self._state, "texture": np.sort(self._distance(white[~in_bank]))})

    def stage_a(self, terms: Terms) -> Scores | None:
        columns = np.stack([terms[str(name)] for name in self._state["names"]], axis=1).astype(np.float64)
        standard = (_signed_log(columns, self._state["offsets"]) - self._state["location"]) / self._state["spread"]
        return self._texture(self._distance(standard @ self._state["whitening"]))

    def score(self, terms: Terms) -> Scores:
        meaning = self._meaning(terms[self.config.deviation_term])
        return meaning + TEXTURE_SLOPE * np.maximum(0.0, self.stage_a(terms) - TEXTURE_SPEAKS_FROM)

    def _distance(self, white: np.ndarray) -> np.ndarray:
        """Distance to the k-th nearest bank row, (batch,); k is at most the size of the bank."""
        bank = self._state["bank"]
        k = min(NEIGHBOURS, len(bank))
        distances = []
        for start in range(0, len(white), 32):  # differences, not the expanded square: exact near zero, the same in any batch
            squared = ((white[start : start + 32, None, :] - bank) ** 2).sum(axis=2)
            distances.append(np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1]))
        return np.concatenate(distances)

    def state(self) -> State:
        return self._state

    def restore(self, state: State) -> "Typicality":
        self._state = state
        self._texture, self._meaning = BenignTail(state["texture"]), BenignTail(state["meaning"])
        return self


def _log_offsets(columns: np.ndarray) -> np.ndarray:
    """What is added before the logarithm: a tenth of each term's mean size, so that exact zeros (shares) stay finite and bounded."""
    return np.maximum(0.1 * np.abs(columns).mean(axis=0), 1e-9)


def _signed_log(columns: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """sign(t) log(1 + |t| / offset): the logarithm of positive terms up to a constant, and defined for features of either sign."""
    return np.sign(columns) * np.log1p(np.abs(columns) / offsets)


COMBINATIONS: dict[str, Any] = {"weighted": Weighted, "two_sided": TwoSided, "typicality": Typicality}
