"""One piece of a log through the scorer: decoded by the artefact's contract, scored in the stages that its rows allow, ranked.

Rows are decoded one by one, so that what breaks the contract costs nobody else; the networks see the good ones together.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sameguard.calibration import Calibration, Threshold
from sameguard.errors import ConfigurationError, InvalidQueryError, InvalidVictimError, NotFittedError
from sameguard.runtime.query_log.rows import BadRow, Frame, LoggedRows, ScoredRows
from sameguard.runtime.scorer import Scorer
from sameguard.shapes import Scores
from sameguard.victim import checked_probs


@dataclass(frozen=True)
class Options:
    """How a log is scored; a worker rebuilds its scorer from it.

    rate: None takes the artefact's threshold. stage_a_only: answers are not looked at. canonical: inputs are canonical already.
    """

    artifact: str
    rate: float | None = None
    stage_a_only: bool = False
    canonical: bool = False
    threads: int | None = None


class LogScorer:
    """The artefact's scorer for logged rows.

    Raises NotFittedError for an artefact without calibration, ConfigurationError where `stage_a_only` is asked of a score without stage A.
    """

    def __init__(self, options: Options) -> None:
        self.scorer = Scorer(options.artifact, threads=options.threads)
        if self.scorer.calibration is None:
            raise NotFittedError(f"artefact {options.artifact} must be calibrated first, got none: sameguard calibrate {options.artifact}.")
        self.calibration = self.scorer.calibration
        self.threshold = self.scorer.threshold(options.rate)
        self.options = options
        self.has_stage_a = len(self.calibration.stage_a_scores) > 0
        if options.stage_a_only and not self.has_stage_a:
            raise ConfigurationError(
                f"artefact {options.artifact} must have a stage A to score queries alone, got a score without: give probs."
            )
        contract, labels = self.scorer.contract, self.scorer.label_only
        self.frame = Frame.of(contract, self.scorer.classes, canonical=options.canonical, labels=labels)
        self._decode = contract.canonicalise if options.canonical else contract.decode

    def score(self, rows: LoggedRows, first_row: int) -> ScoredRows:
        """Every row with its scores or its error; the same row gives the same in any piece."""
        queries = [self._query(value) for value in rows.inputs]
        answers = [None if self.options.stage_a_only else self._answer(value) for value in rows.probs]
        errors = [_reason(query) or _reason(answer) for query, answer in zip(queries, answers, strict=True)]
        answered = np.array([answer is not None for answer in answers], bool)
        stage_a, scores, p = (np.full(len(queries), np.nan) for _ in range(3))
        flagged = np.zeros(len(queries), bool)
        for with_answer in (True, False):
            index = np.array([row for row, error in enumerate(errors) if not error and answered[row] == with_answer], int)
            if not len(index):
                continue
            if not with_answer and not self.has_stage_a:
                for row in index:
                    errors[row] = "row must have probs, got none: this artefact's score has no part that the query alone gives."
                continue
            batch = np.concatenate([queries[row] for row in index])
            probs = np.concatenate([answers[row] for row in index]) if with_answer else None
            stage_a[index], scores[index] = self._scores(batch, probs)
            self._rank(index, with_answer, stage_a, scores, flagged, p)
        for row in np.flatnonzero(~np.isfinite(np.where(answered, scores, stage_a))):
            errors[row] = errors[row] or "scorer gave no finite score: the artefact is damaged."
        stages = ["" if error else "A+B" if whole else "A" for error, whole in zip(errors, answered, strict=True)]
        return ScoredRows(first_row, stage_a, scores, flagged, p, stages, errors, rows.carried)

    def _scores(self, queries: np.ndarray, probs: np.ndarray | None) -> tuple[Scores, Scores]:
        """Stage-A scores and whole scores, NaN where there are none."""
        reconstruction = self.scorer.reconstruct(queries)
        unknown = np.full(len(queries), np.nan)
        stage_a = self.scorer.stage_a_score(reconstruction)
        whole = unknown if probs is None else self.scorer.combined_score(reconstruction, self.scorer.deviation(reconstruction, probs))
        return unknown if stage_a is None else stage_a, whole

    def _rank(self, index: np.ndarray, whole: bool, stage_a: Scores, scores: Scores, flagged: np.ndarray, p: Scores) -> None:
        """Fills in flags and p-values of these rows."""
        early = stage_a[index]
        if whole:
            late = scores[index]
            flagged[index] = self.threshold.flags(late, early if self.has_stage_a else None)
            p[index] = p_values(self.calibration, self.threshold, late, early if self.has_stage_a else None)
        else:
            flagged[index] = ~(early <= self.threshold.stage_a)
            p[index] = _upper_tail(self.calibration.stage_a_scores, early)

    def _query(self, value: np.ndarray | BadRow) -> np.ndarray | BadRow:
        if isinstance(value, BadRow):
            return value
        try:
            return self._decode(value[None])
        except InvalidQueryError as error:
            return BadRow(f"inputs: {error}")

    def _answer(self, value: np.ndarray | BadRow | None) -> np.ndarray | BadRow | None:
        if value is None or isinstance(value, BadRow):
            return value
        try:
            return checked_probs(value[None], 1, self.scorer.classes, "probs", "recorded answer")
        except InvalidVictimError as error:
            return BadRow(f"probs: {error}")


def p_values(calibration: Calibration, threshold: Threshold, scores: Scores, stage_a_scores: Scores | None) -> Scores:
    """(1 + benign calibration queries ranked at or above each) / (n + 1); at most the threshold's rate exactly where it flags.

    Both stages share one ranking: what stage A refuses stands above all else, by its stage-A score (see `Calibration.threshold`).
    """
    if stage_a_scores is None or not len(calibration.stage_a_scores):
        return _upper_tail(calibration.scores, scores)
    if np.isinf(threshold.value):  # stage A spends the whole budget: the ranking is its own
        return _upper_tail(calibration.stage_a_scores, stage_a_scores)
    refused = ~(calibration.stage_a_scores <= threshold.stage_a)
    total = len(calibration.scores) + 1
    above = _at_or_above(calibration.stage_a_scores[refused], stage_a_scores)
    below = refused.sum() + _at_or_above(calibration.scores[~refused], scores)
    return (1 + np.where(stage_a_scores <= threshold.stage_a, below, above)) / total


def _upper_tail(benign: np.ndarray, scores: Scores) -> Scores:
    return (1 + _at_or_above(benign, scores)) / (len(benign) + 1)


def _at_or_above(benign: np.ndarray, scores: Scores) -> Any:
    return len(benign) - np.searchsorted(np.sort(benign), scores, side="left")


def _reason(value: Any) -> str:
    return value.reason if isinstance(value, BadRow) else ""
