"""Thieves who know the guard (algorithms.md 3.6): they choose, repaint or mix their queries so that a copy of the detector likes them.

What such a thief has of the guard is handed in as a callable on canonical queries: a score, or an autoencoder's picture. Nothing here
imports a detector. Laundered JBDA is `JBDA(transform=...)`; a probe step above the 8-bit grid is `DFME(probe_step=1.0)`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from sameguard.attacks.base import ASK_BATCH, SUBSTITUTE_FIT, Extraction, as_queries, check_proxy, check_rows, inputs_of
from sameguard.attacks.knockoff import KnockoffNets
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.shapes import Queries
from sameguard.training import FitConfig, RunControl

SCORED_AT_ONCE = 1024


class FilteredKnockoff:
    """Knockoff with the `budget` images of the proxy that the thief's own copy of the detector finds least suspicious, in random order.

    score: canonical queries (batch, *input) -> (batch,), higher = more suspicious; asked about the whole proxy, which costs no query. The
    proxy must be much larger than the budget for the choice to mean anything. The rest as in KnockoffNets.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        score: Callable[[np.ndarray], np.ndarray],
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        self.proxy = inputs_of(proxy)
        self.score = score
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        if budget is not None:
            check_rows(self.proxy, budget)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """As `KnockoffNets.run`. Raises ConfigurationError where `score` does not give one finite number for each query."""
        check_proxy(self.proxy, endpoint, rows=1)
        transcript, network = self.means.begin(endpoint, seed)
        check_rows(self.proxy, transcript.budget)
        scores = np.concatenate([self._scores(endpoint, start) for start in range(0, len(self.proxy), SCORED_AT_ONCE)])
        chosen = np.argsort(scores, kind="stable")[: transcript.budget]
        rows = np.random.default_rng(seed).permutation(chosen)
        known = transcript.ask(as_queries(self.proxy[rows]))
        notes = {"proxy_rows": len(self.proxy), "highest_score_sent": float(scores[chosen[-1]])}
        return transcript.extraction(self.means.train(network, known, seed), notes=notes)

    def _scores(self, endpoint: Endpoint, start: int) -> np.ndarray:
        queries = endpoint.contract.canonicalise(as_queries(self.proxy[start : start + SCORED_AT_ONCE]))
        scores = np.asarray(self.score(queries), np.float64)
        if scores.shape != (len(queries),):
            raise ConfigurationError(f"score must give one number for each of {len(queries)} queries, got shape {scores.shape}.")
        if np.isnan(scores).any():
            raise ConfigurationError(
                f"score must give a number for each query, got NaN for {int(np.isnan(scores).sum())} of {len(queries)}."
            )
        return scores


class ProjectedKnockoff:
    """Knockoff that sends what an autoencoder makes of each image, after `passes` passes: it reconstructs well by construction.

    project: canonical queries -> images of the same shape, such as the thief's own autoencoder's reconstructions; clipped to the bounds
    of the endpoint's queries after each pass. The rest as in KnockoffNets.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        project: Callable[[np.ndarray], np.ndarray],
        passes: int = 1,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if passes < 1:
            raise ConfigurationError(f"passes must be at least 1, got {passes}.")
        self.proxy = inputs_of(proxy)
        self.project = project
        self.passes = passes
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        if budget is not None:
            check_rows(self.proxy, budget)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """As `KnockoffNets.run`. Raises ConfigurationError where `project` changes the shape of the queries."""

        def projected(queries: np.ndarray) -> np.ndarray:
            for _ in range(self.passes):
                queries = np.clip(self._projected_once(queries), *endpoint.contract.bounds)
            return queries

        means = self.means
        knockoff = KnockoffNets(
            self.proxy, means.substitute, means.budget,
            transform=projected, labels=means.labels, config=means.config, batch_size=means.batch_size, control=means.control,
        )  # fmt: skip
        found = knockoff.run(endpoint, seed)
        return replace(found, notes={**found.notes, "passes": self.passes})

    def _projected_once(self, queries: np.ndarray) -> np.ndarray:
        pictures = np.asarray(self.project(queries), np.float32)
        if pictures.shape != queries.shape:
            raise ConfigurationError(
                f"project must keep the shape of the queries, {queries.shape}, got {pictures.shape}: give one picture for each query."
            )
        return pictures


class BenignMix:
    """Knockoff among natural queries of the victim's own kind: each query is one of `benign` with chance `ratio`, which costs budget too.

    `natural` marks them in the extraction. benign: at least as many images as the mixture draws; none is asked about twice.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        benign: Split | np.ndarray,
        ratio: float = 0.5,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if not 0.0 <= ratio < 1.0:
            raise ConfigurationError(f"ratio must be in [0, 1), the benign share of the queries, got {ratio}.")
        self.proxy, self.benign = inputs_of(proxy), inputs_of(benign)
        self.ratio = ratio
        self.means = Means(substitute, budget, labels, config, batch_size, control)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """As `KnockoffNets.run`."""
        rng = np.random.default_rng(seed)
        check_proxy(self.proxy, endpoint, rows=1)
        check_proxy(self.benign, endpoint, rows=1, name="benign")
        transcript, network = self.means.begin(endpoint, seed)
        natural = rng.random(transcript.budget) < self.ratio
        check_rows(self.proxy, int((~natural).sum()))
        check_rows(self.benign, int(natural.sum()), "benign")
        queries = np.empty((transcript.budget, *endpoint.contract.shape), np.float32)
        queries[natural] = as_queries(self.benign[rng.choice(len(self.benign), int(natural.sum()), replace=False)])
        queries[~natural] = as_queries(self.proxy[rng.choice(len(self.proxy), int((~natural).sum()), replace=False)])
        known = transcript.ask(queries)
        return transcript.extraction(self.means.train(network, known, seed), natural, {"ratio": self.ratio})


def match_levels(queries: Queries, benign: np.ndarray) -> Queries:
    """Each query with the grey levels of one benign image, handed out in the order of its own: ranks stay, the histogram is the other's.

    Equal levels of a query are told apart by their place, so that the histogram is matched exactly; query i takes benign image i (again
    from the first when they run out). To be used as `transform` of KnockoffNets and JBDA. Levels are those of all channels together.

    benign: canonical images, so that the result is on their grid. Raises ConfigurationError for none, or of another shape.
    """
    if queries.shape[1:] != benign.shape[1:] or len(benign) == 0:
        raise ConfigurationError(f"benign images must have the queries' shape {queries.shape[1:]} and be at least 1, got {benign.shape}.")
    flat = queries.reshape(len(queries), -1)
    order = np.argsort(flat, axis=1, kind="stable")
    levels = np.sort(benign.reshape(len(benign), -1)[np.arange(len(queries)) % len(benign)], axis=1)
    matched = np.empty_like(flat)
    np.put_along_axis(matched, order, levels.astype(flat.dtype), axis=1)
    return matched.reshape(queries.shape)
