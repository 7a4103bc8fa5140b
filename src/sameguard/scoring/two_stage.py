"""The two stages of a score, shared by the torch detector and the torch-free scorer.

Stage A, `reconstruct`, needs the query alone; stage B, `deviation`, needs the victim's answer. A guard may refuse between the two,
before the victim is paid. Whoever implements the two network passes below gets everything else from here, so both score alike.
"""

from dataclasses import dataclass

import numpy as np

from sameguard.contract import InputContract
from sameguard.errors import InvalidQueryError, NotFittedError
from sameguard.scoring.combination import Combination, ScoreConfig, combination_for
from sameguard.scoring.deviation import deviations
from sameguard.scoring.texture import Terms, texture_terms
from sameguard.shapes import Probs, Queries, Scores

SCORING_BATCH = 64  # rows per network pass: bounds the memory of scoring, whatever the number of queries


@dataclass(frozen=True)
class Reconstruction:
    """What stage A found. views: view -> reconstructions, `full` (batch, *input), `masked` (batch, passes, *input). terms: name -> (batch,)."""

    queries: Queries
    views: dict[str, np.ndarray]
    terms: Terms

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: np.ndarray) -> "Reconstruction":
        """These rows only: what is left to ask about after stage A refused some."""
        return Reconstruction(
            self.queries[rows],
            {view: images[rows] for view, images in self.views.items()},
            {name: values[rows] for name, values in self.terms.items()},
        )


class TwoStageScorer:
    """Scores queries in two stages. Subclasses give `_reconstruct` and `_auxiliary_logits`, which run the networks on one small batch.

    auxiliary_view: the view whose reconstructions the auxiliary model judges, `full` or `masked` (mean over its passes).
    """

    def __init__(self, contract: InputContract, classes: int, config: ScoreConfig, auxiliary_view: str) -> None:
        self.contract = contract
        self.classes = classes
        self.score_config = config
        self.auxiliary_view = auxiliary_view
        self.combination: Combination | None = None

    # ------------------------------------------------------------------ given by subclasses

    def _reconstruct(self, queries: Queries) -> tuple[dict[str, np.ndarray], Terms]:
        """View -> reconstructions, and the terms error_full and error_masked of the views that are run."""
        raise NotImplementedError  # pragma: no cover

    def _auxiliary_logits(self, images: Queries) -> np.ndarray:
        """The auxiliary model's logits (batch, classes) on reconstructions (batch, *input)."""
        raise NotImplementedError  # pragma: no cover

    # ------------------------------------------------------------------ the two stages

    def reconstruct(self, queries: np.ndarray) -> Reconstruction:
        """Stage A: reconstructions and every term that needs the query alone.

        Raises InvalidQueryError where the queries break the contract.
        """
        queries = self.contract.canonicalise(queries)
        parts = [self._reconstruct(queries[i : i + SCORING_BATCH]) for i in range(0, len(queries), SCORING_BATCH)]
        views = {view: np.concatenate([images[view] for images, _ in parts]) for view in parts[0][0]}
        terms = {name: np.concatenate([values[name] for _, values in parts]).astype(np.float64) for name in parts[0][1]}
        if self.score_config.needs_texture:
            terms |= texture_terms(queries, self.contract)
        return Reconstruction(queries, views, terms)

    def deviation(self, reconstruction: Reconstruction, victim_probs: Probs) -> Terms:
        """Stage B: name -> deviation of the auxiliary's answer on the reconstruction from the victim's on the query, float64 (batch,).

        Raises InvalidQueryError where victim_probs does not have one row per query and one column per class.
        """
        self._check_answers(len(reconstruction), victim_probs)
        images = reconstruction.views[self.auxiliary_view]
        if self.auxiliary_view == "full":
            images = images[:, None]
        rows = []
        for start in range(0, len(images), SCORING_BATCH):
            chunk = images[start : start + SCORING_BATCH]
            rows.append(
                np.stack([self._auxiliary_logits(np.ascontiguousarray(chunk[:, index])) for index in range(chunk.shape[1])], axis=1)
            )
        return deviations(victim_probs, np.concatenate(rows))

    def auxiliary_probs(self, reconstruction: Reconstruction) -> Probs:
        """The auxiliary's own answer on the reconstructions, mean over passes, float32 (batch, classes)."""
        images = reconstruction.views[self.auxiliary_view]
        images = images[:, None] if self.auxiliary_view == "full" else images
        total = np.zeros((len(images), self.classes))
        for index in range(images.shape[1]):
            logits = np.concatenate([
                self._auxiliary_logits(np.ascontiguousarray(images[start : start + SCORING_BATCH, index]))
                for start in range(0, len(images), SCORING_BATCH)
            ]).astype(np.float64)  # fmt: skip
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            total += exponentials / exponentials.sum(axis=1, keepdims=True)
        return (total / images.shape[1]).astype(np.float32)

    # ------------------------------------------------------------------ both at once

    def score_terms(self, queries: np.ndarray, victim_probs: Probs) -> Terms:
        """All terms before they are combined, float64 (batch,) each; memory does not grow with the batch but for these.

        error_full, error_masked: mean squared reconstruction error in input units squared (Eq. 6's first item). deviation_*: see
        `deviations`. The rest: see `texture_terms`. Each row is independent of the other rows.
        """
        if len(queries) == 0:
            self.contract.canonicalise(queries)  # says what is wrong with it
        self._check_answers(len(queries), victim_probs)  # of the whole batch: a slice of too many answers would look right
        parts = []
        for start in range(0, len(queries), SCORING_BATCH):
            reconstruction = self.reconstruct(queries[start : start + SCORING_BATCH])
            parts.append(reconstruction.terms | self.deviation(reconstruction, victim_probs[start : start + SCORING_BATCH]))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def fit_combination(self, terms: Terms) -> None:
        """Fits location, scale and shape of the score to the terms of benign `statistics` queries."""
        self.combination = combination_for(self.score_config).fit(terms)

    def stage_a_score(self, reconstruction: Reconstruction) -> Scores | None:
        """Score of what the query alone tells, (batch,), higher = more suspicious; None where the configured score has no such part."""
        return self._fitted().stage_a(reconstruction.terms)

    def combined_score(self, reconstruction: Reconstruction, deviation: Terms) -> Scores:
        """The score, (batch,), from the results of both stages."""
        return self._fitted().score(reconstruction.terms | deviation)

    def score(self, queries: np.ndarray, victim_probs: Probs) -> Scores:
        """The score of each query, float64 (batch,), higher = more suspicious.

        Raises InvalidQueryError for queries outside the contract, NotFittedError before the combination was fitted on benign queries.
        """
        fitted = self._fitted()
        return fitted.score(self.score_terms(queries, victim_probs))

    def _check_answers(self, rows: int, victim_probs: Probs) -> None:
        if victim_probs.shape != (rows, self.classes):
            raise InvalidQueryError(
                f"victim_probs must be ({rows}, {self.classes}), one row per query and one column per class, got {victim_probs.shape}."
            )

    def _fitted(self) -> Combination:
        if self.combination is None:
            raise NotFittedError("the score needs benign statistics before it can rank queries, got none: run calibrate() first.")
        return self.combination
