"""Thresholds from held-out benign queries, with a stated false-positive rate (split conformal, algorithms.md 5.1).

Benign data have roles: `statistics` shapes the score, `calibration` sets the threshold, and neither may overlap `train`. One
false-positive budget covers both stages: the stage-A cut-off is fixed on `statistics`, so that "refused before the answer, or scored
too high after it" is one fixed rule when `calibration` meets it, and its realised rate obeys one Beta law.
Applying a threshold needs numpy alone; intervals need scipy.
"""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sameguard.contract import InputContract
from sameguard.errors import CalibrationError, InvalidVictimError
from sameguard.scoring.combination import MINIMUM_STATISTICS
from sameguard.scoring.two_stage import TwoStageScorer
from sameguard.shapes import Flags, Scores
from sameguard.victim import BlackBox

STAGE_A_SHARE = 0.1  # of the false-positive budget
AGREEMENT_FLOOR = 0.85
CANARIES = 32
CANARY_TOLERANCE = (
    0.01  # mean total variation between a victim's answers then and now; other hardware moves it by 1e-6, a retrained model by more
)


class BiasedCalibrationWarning(UserWarning):
    """Thresholds rest on data that the victim was trained on."""


class WeakAuxiliaryWarning(UserWarning):
    """The auxiliary model agrees with the victim on too few benign queries: the deviation is worth what the auxiliary is worth."""


@dataclass(frozen=True)
class Threshold:
    """A cut-off and its promise. Flagged: stage-A score > stage_a, or score > value. NaN is flagged: comparisons fail closed.

    false_positive_rate: at most this share of benign queries is flagged, on average over calibration sets. n: calibration queries.
    k: the threshold is their k-th largest score. interval: where this threshold's realised rate lies with 95 % probability,
    Beta(k, n + 1 - k). stage_a is infinite where stage A never refuses alone.
    """

    value: float
    stage_a: float
    false_positive_rate: float
    n: int
    k: int
    interval: tuple[float, float]
    biased: bool = False

    def flags(self, scores: Scores, stage_a_scores: Scores | None = None) -> Flags:
        """True where a query is flagged as malicious, (batch,)."""
        allowed = scores <= self.value
        if stage_a_scores is not None:
            allowed &= stage_a_scores <= self.stage_a
        return ~allowed

    def __str__(self) -> str:
        low, high = self.interval
        promise = f"at most {self.false_positive_rate:.2%} of benign queries flagged (realised rate {low:.2%} to {high:.2%}, n = {self.n})"
        return f"score > {self.value:.4g}: {promise}" + ("; biased: calibrated on the victim's training data" if self.biased else "")

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self)
        finite = {name: None if np.isinf(stored[name]) else stored[name] for name in ("value", "stage_a")}
        return {**stored, **finite, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Threshold":
        cuts = {name: np.inf if stored[name] is None else stored[name] for name in ("value", "stage_a")}
        return cls(**{**stored, **cuts, "interval": tuple(stored["interval"])})


@dataclass(frozen=True)
class Calibration:
    """What a calibration leaves behind, besides the fitted combination: enough to set any other threshold without data.

    scores, stage_a_scores: of the calibration queries, in one order. statistics_stage_a: of the statistics queries, sorted; empty where
    the score has no stage A. digests: role -> first eight bytes of each query's digest. agreement: auxiliary and victim, on statistics.
    canary_queries, canary_probs: some benign queries and what the victim answered to them.
    """

    scores: np.ndarray
    stage_a_scores: np.ndarray
    statistics_stage_a: np.ndarray
    digests: dict[str, np.ndarray]
    agreement: float
    biased: bool
    canary_queries: np.ndarray = field(repr=False)
    canary_probs: np.ndarray = field(repr=False)

    def threshold(self, false_positive_rate: float) -> Threshold:
        """The threshold of another rate. Raises CalibrationError where n cannot support it."""
        n = len(self.scores)
        k = conformal_rank(n, false_positive_rate)
        stage_a = np.inf
        wanted = int(STAGE_A_SHARE * false_positive_rate * (len(self.statistics_stage_a) + 1))
        if wanted >= 1:
            stage_a = float(self.statistics_stage_a[-wanted])
        refused = ~(self.stage_a_scores <= stage_a) if len(self.stage_a_scores) else np.zeros(n, bool)
        # one ranking, fixed before calibration: what stage A refuses stands above everything else, by its stage-A score
        if refused.sum() < k:
            value = float(np.sort(np.where(refused, np.inf, self.scores))[-k])
        else:
            stage_a, value = float(np.sort(self.stage_a_scores[refused])[-k]), np.inf
        return Threshold(value, stage_a, false_positive_rate, n, k, beta_interval(k, n), self.biased)

    def check_victim(self, victim: BlackBox) -> None:
        """Asks the canary queries again. Raises InvalidVictimError where the victim answers otherwise than at calibration."""
        moved = float(0.5 * np.abs(victim.answer(self.canary_queries) - self.canary_probs).sum(axis=1).mean())
        if not moved <= CANARY_TOLERANCE:
            raise InvalidVictimError(
                f"{victim.name} must answer as it did at calibration, got answers to {len(self.canary_queries)} canary queries that moved by "
                f"{moved:.3f} on average (total variation; up to {CANARY_TOLERANCE} is rounding): it is another model, another output or another "
                "preprocessing. Give the victim that was calibrated, or calibrate again."
            )


def calibrate(
    scorer: TwoStageScorer,
    benign: np.ndarray,
    victim: BlackBox,
    false_positive_rate: float = 0.05,
    *,
    statistics_fraction: float = 0.5,
    seed: int = 0,
    train_digests: np.ndarray | None = None,
    from_training_data: bool = False,
) -> Threshold:
    """Fits the score's benign statistics and sets the threshold, both on `scorer`, from benign queries that nobody trained on.

    benign: canonical queries (n, *input), split by content digest into `statistics` and `calibration`. train_digests: digests of the
    training queries (first eight bytes); benign queries among them are left out, with a warning. from_training_data: the owner has
    nothing but the victim's training data; they are used, a warning names the bias, and the artefact records it.

    Raises CalibrationError where too few queries are left for the rate, and says how many it would need.
    """
    scorer_digests = train_digests if train_digests is not None else getattr(scorer, "train_digests", None)
    queries = scorer.contract.canonicalise(benign)
    keys = short_digests(scorer.contract.digests(queries))
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):  # copies would buy a promise that the number of different queries does not support
        warnings.warn(
            f"{len(keys) - len(first)} of {len(keys)} benign queries are copies of others and were left out.",
            BiasedCalibrationWarning,
            stacklevel=2,
        )
        queries, keys = queries[np.sort(first)], keys[np.sort(first)]
    if from_training_data:
        warnings.warn(
            "calibration uses the victim's own training data: the victim is surer of them than of new queries, so honest users will be "
            "flagged more often than stated. Give held-out benign queries as soon as you have some.",
            BiasedCalibrationWarning,
            stacklevel=2,
        )
    elif scorer_digests is not None and len(scorer_digests):
        queries, keys = _without_training_rows(queries, keys, scorer_digests)
    statistics, calibration = _split_by_digest(keys, statistics_fraction, seed)
    conformal_rank(len(calibration), false_positive_rate)  # refuse before the expensive part
    if len(statistics) < MINIMUM_STATISTICS:
        raise CalibrationError(
            f"calibration needs at least {MINIMUM_STATISTICS} statistics queries, got {len(statistics)} of {len(queries)} benign ones: give more."
        )
    answers = victim.answer(queries)
    terms, auxiliary = _terms_and_auxiliary(scorer, queries, answers)
    scorer.fit_combination({name: values[statistics] for name, values in terms.items()})
    stage_a, scores = scorer.combination.stage_a(terms), scorer.combination.score(terms)
    if not np.isfinite(scores).all():
        raise CalibrationError(
            f"benign scores must be finite, got {int((~np.isfinite(scores)).sum())} that are not: the artefact is damaged."
        )
    agreement = float(np.mean(auxiliary[statistics] == answers[statistics].argmax(axis=1)))
    warn_of_weak_auxiliary(agreement)
    scorer.calibration = Calibration(
        scores=scores[calibration],
        stage_a_scores=np.empty(0) if stage_a is None else stage_a[calibration],
        statistics_stage_a=np.empty(0) if stage_a is None else np.sort(stage_a[statistics]),
        digests={"statistics": keys[statistics], "calibration": keys[calibration]},
        agreement=agreement,
        biased=from_training_data,
        canary_queries=queries[statistics[:CANARIES]],
        canary_probs=answers[statistics[:CANARIES]],
    )
    return scorer.calibration.threshold(false_positive_rate)


def count_fresh(contract: InputContract, benign: np.ndarray, train: Iterable[np.ndarray]) -> int:
    """How many of the benign queries are not among the training inputs (batches, canonical): calibrate()'s own check, in advance.

    Raises CalibrationError where there are none.
    """
    trained = np.concatenate([short_digests(contract.digests(contract.canonicalise(batch))) for batch in train])
    return int(_fresh(short_digests(contract.digests(contract.canonicalise(benign))), trained).sum())


def warn_of_weak_auxiliary(agreement: float) -> None:
    if agreement < AGREEMENT_FLOOR:
        warnings.warn(
            f"the auxiliary model agrees with the victim on {agreement:.1%} of benign queries, below {AGREEMENT_FLOOR:.0%}: its deviation says "
            "little. Train it longer, on full-view reconstructions, or give it a better architecture.",
            WeakAuxiliaryWarning,
            stacklevel=3,
        )


def _terms_and_auxiliary(scorer: TwoStageScorer, queries: np.ndarray, answers: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    parts, labels = [], []
    for start in range(0, len(queries), 64):
        reconstruction = scorer.reconstruct(queries[start : start + 64])
        parts.append(reconstruction.terms | scorer.deviation(reconstruction, answers[start : start + 64]))
        labels.append(scorer.auxiliary_probs(reconstruction).argmax(axis=1))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, np.concatenate(labels)


def _without_training_rows(queries: np.ndarray, keys: np.ndarray, train_digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fresh = _fresh(keys, train_digests)
    if not fresh.all():
        warnings.warn(
            f"{int((~fresh).sum())} of {len(queries)} benign queries are training data of the fit and were left out.",
            BiasedCalibrationWarning,
            stacklevel=3,
        )
    return queries[fresh], keys[fresh]


def _fresh(keys: np.ndarray, train_digests: np.ndarray) -> Flags:
    fresh = ~np.isin(keys, train_digests)
    if not fresh.any():
        raise CalibrationError(
            f"benign queries must not be training data, got {len(keys)} of {len(keys)} that are: give held-out queries, or calibrate with "
            "from_training_data=True (--from-training-data) and live with a biased threshold."
        )
    return fresh


def _split_by_digest(keys: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two parts; equal queries land in the same part, and the cut does not depend on the order of the rows."""
    if not 0.0 < fraction < 1.0:
        raise CalibrationError(f"statistics_fraction must be in (0, 1), got {fraction}.")
    unique, inverse = np.unique(keys, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(unique))[inverse]
    chosen = rank < round(fraction * len(unique))
    order = np.argsort(rank, kind="stable")
    return order[chosen[order]], order[~chosen[order]]


def short_digests(digests: np.ndarray) -> np.ndarray:
    """The first eight bytes of SHA-256 digests (n, 32) as uint64 (n,): enough to tell a few million queries apart."""
    return np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)


# ---------------------------------------------------------------------- the arithmetic


def conformal_rank(n: int, false_positive_rate: float) -> int:
    """k = floor(rate (n + 1)): flagging what exceeds the k-th largest of n calibration scores keeps the rate.

    Raises CalibrationError for a rate outside (0, 1), or where k would be 0, with the number of queries that it needs.
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise CalibrationError(f"false_positive_rate must be in (0, 1), got {false_positive_rate}.")
    k = int(np.floor(false_positive_rate * (n + 1) + 1e-9))
    if k == 0:
        raise CalibrationError(
            f"a false_positive_rate of {false_positive_rate:g} needs at least {queries_needed(false_positive_rate)} calibration queries, "
            f"got {n}: give more benign queries or accept a higher rate."
        )
    return k


def check_supported(benign: int, false_positive_rate: float, statistics_fraction: float = 0.5) -> None:
    """Raises CalibrationError where this many benign queries, split in two roles, cannot support the rate."""
    calibration = benign - round(statistics_fraction * benign)
    try:
        conformal_rank(calibration, false_positive_rate)
    except CalibrationError as error:
        raise CalibrationError(f"{error} Of {benign} benign queries, {benign - calibration} serve as statistics.") from error


def queries_needed(false_positive_rate: float) -> int:
    """The smallest calibration set that supports a rate: ceil(1 / rate - 1)."""
    return int(np.ceil(1.0 / false_positive_rate - 1.0 - 1e-9))


def beta_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Central interval of the realised rate of a threshold at the k-th largest of n scores: Beta(k, n + 1 - k), exact without ties."""
    from scipy.stats import beta

    tail = (1.0 - confidence) / 2.0
    return float(beta.ppf(tail, k, n + 1 - k)), float(beta.ppf(1.0 - tail, k, n + 1 - k))


def flag_count_range(m: int, k: int, n: int, confidence: float = 0.95) -> tuple[int, int]:
    """Central range of the number of flags among m further benign queries: beta-binomial(m; k, n + 1 - k)."""
    from scipy.stats import betabinom

    tail = (1.0 - confidence) / 2.0
    law = betabinom(m, k, n + 1 - k)
    return int(law.ppf(tail)), int(law.ppf(1.0 - tail))


def clopper_pearson(flagged: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a rate from `flagged` of n evaluation queries (algorithms.md 5.2)."""
    from scipy.stats import beta

    tail = (1.0 - confidence) / 2.0
    low = 0.0 if flagged == 0 else float(beta.ppf(tail, flagged, n - flagged + 1))
    high = 1.0 if flagged == n else float(beta.ppf(1.0 - tail, flagged + 1, n - flagged))
    return low, high
