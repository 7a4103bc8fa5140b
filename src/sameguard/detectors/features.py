"""Distances in the feature space of a network that the defender owns (algorithms.md 4.2): kNN, Mahalanobis, relative Mahalanobis.

`features` is any callable from canonical queries (batch, *input) to (batch, width); `penultimate` makes one of a torch network. It may be
the victim's own network or one that the defender trained for the purpose. Left out: ViM, ReAct, Gram.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import nn

from sameguard.contract import InputContract
from sameguard.detectors.base import as_queries, checked, in_batches, training_rows
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.networks.classifier import as_float
from sameguard.shapes import Scores

Features = Callable[[np.ndarray], np.ndarray]
FEATURE_ROWS = 2048  # rows that `features` and the search get at once
COVARIANCE_FLOOR = 1e-6  # smallest variance that is believed, over the largest: units that never fire have none


def penultimate(network: nn.Module, batch_size: int = 256) -> Features:
    """A callable that gives the inputs of the network's last nn.Linear, float32 (batch, width), in eval mode.

    Raises ConfigurationError where the network has no nn.Linear.
    """
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ConfigurationError(f"penultimate features need a network with an nn.Linear, got {type(network).__name__} without one.")
    last = linears[-1]

    @torch.no_grad()
    def features(queries: np.ndarray) -> np.ndarray:
        seen: list[torch.Tensor] = []

        def remember(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.append(arguments[0].flatten(1).float().cpu())

        network.eval()
        device = last.weight.device
        hook = last.register_forward_pre_hook(remember)
        try:
            for start in range(0, len(queries), batch_size):
                batch = as_float(torch.as_tensor(queries[start : start + batch_size]).to(device))
                network(batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch)
        finally:
            hook.remove()
        return torch.cat(seen).numpy() if seen else np.empty((0, last.in_features), np.float32)

    return features


class Bank:
    """Euclidean distance to the k-th nearest of fixed rows, by scikit-learn; exact, so a row of the bank is at distance 0 from itself."""

    def __init__(self, rows: np.ndarray, k: int) -> None:
        if len(rows) < k:
            raise InvalidDataError(f"nearest neighbours need at least k = {k} rows, got {len(rows)}: give more, or lower k.")
        from sklearn import neighbors  # here: it takes half a second, and SAME does without it

        self.rows = np.ascontiguousarray(rows, np.float32)
        self._search = neighbors.NearestNeighbors(n_neighbors=k).fit(self.rows)

    def distance(self, rows: np.ndarray) -> Scores:
        """float64 (batch,). The library finds the neighbour by an expanded square; its distance is then taken of the difference."""
        index = self._search.kneighbors(np.ascontiguousarray(rows, np.float32), return_distance=False)[:, -1]
        return np.sqrt(np.square(rows.astype(np.float64) - self.rows[index]).sum(axis=1))


class _FeatureDetector:
    """What the three share: the contract of the fitted inputs, features in batches, checks."""

    def __init__(self, features: Features, contract: InputContract | None) -> None:
        self.features = features
        self.contract = contract
        self._fitted = False

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """float64 (batch,), >= 0 but for the relative distance.

        Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract.
        """
        if not self._fitted:
            raise NotFittedError(f"{type(self).__name__} needs fit() before it can score, got an unfitted detector.")
        queries = checked(queries, victim_probs, self.contract)
        return in_batches(queries, lambda batch: self._distance(self._features(batch)), FEATURE_ROWS)

    def _distance(self, features: np.ndarray) -> Scores:
        raise NotImplementedError  # pragma: no cover

    def _bank_features(self, inputs: np.ndarray) -> np.ndarray:
        """Features of the training inputs, whose shape and range become the contract where none was given."""
        self.contract = self.contract or InputContract.for_inputs(inputs)
        rows = training_rows(inputs, self.contract)
        return np.concatenate([
            self._features(as_queries(rows[start : start + FEATURE_ROWS])) for start in range(0, len(rows), FEATURE_ROWS)
        ])  # fmt: skip

    def _features(self, queries: np.ndarray) -> np.ndarray:
        found = np.asarray(self.features(queries))
        if found.ndim != 2 or len(found) != len(queries) or not np.isfinite(found).all():
            raise InvalidDataError(f"features must be finite and ({len(queries)}, width), got shape {found.shape}: check the callable.")
        return found


class NearestNeighbours(_FeatureDetector):
    """Distance to the k-th nearest training input among l2-normalised features. contract: None takes the fitted inputs' shape."""

    def __init__(self, features: Features, k: int = 50, contract: InputContract | None = None) -> None:
        super().__init__(features, contract)
        if k < 1:
            raise ConfigurationError(f"k must be at least 1, got {k}.")
        self.k = k

    def fit(self, inputs: np.ndarray) -> "NearestNeighbours":
        """inputs: uint8 or canonical float32 (n, *input), n >= k; no labels, no outliers."""
        self._bank = Bank(_normalised(self._bank_features(inputs)), self.k)
        self._fitted = True
        return self

    def _distance(self, features: np.ndarray) -> Scores:
        return self._bank.distance(_normalised(features))


class Mahalanobis(_FeatureDetector):
    """min over classes of (f - mean_c)' S^-1 (f - mean_c), with one covariance S (over n) of all classes. contract: as above."""

    def __init__(self, features: Features, contract: InputContract | None = None) -> None:
        super().__init__(features, contract)

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> "Mahalanobis":
        """inputs: uint8 or canonical float32 (n, *input). labels: (n,); a class without rows is no class."""
        features = self._labelled_features(inputs, labels)
        self._fit_classes(features, labels, _floor(features, within=labels))
        self._fitted = True
        return self

    def _labelled_features(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if np.shape(labels) != (len(inputs),):
            raise InvalidDataError(f"labels must be ({len(inputs)},), one for each input, got {np.shape(labels)}.")
        return self._bank_features(inputs).astype(np.float64)

    def _fit_classes(self, features: np.ndarray, labels: np.ndarray, floor: float) -> None:
        means, centred = _centred_by_class(features, labels)
        self._whitening = _whitening(centred, floor)
        self._means = means @ self._whitening

    def _distance(self, features: np.ndarray) -> Scores:
        return cdist(features.astype(np.float64) @ self._whitening, self._means, "sqeuclidean").min(axis=1)


class RelativeMahalanobis(Mahalanobis):
    """The Mahalanobis distance less that to one background Gaussian of all training features, so that what all classes share cancels."""

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> "RelativeMahalanobis":
        """As for Mahalanobis; both covariances are over n, and share the floor."""
        features = self._labelled_features(inputs, labels)
        floor = _floor(features)
        self._fit_classes(features, labels, floor)
        centre = features.mean(axis=0)
        self._background = _whitening(features - centre, floor)
        self._centre = centre[None] @ self._background
        self._fitted = True
        return self

    def _distance(self, features: np.ndarray) -> Scores:
        background = cdist(features.astype(np.float64) @ self._background, self._centre, "sqeuclidean")[:, 0]
        return super()._distance(features) - background


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _centred_by_class(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each class that has rows, and each row less its class's mean."""
    _, index = np.unique(labels, return_inverse=True)
    means = np.stack([features[index == number].mean(axis=0) for number in range(index.max() + 1)])
    return means, features - means[index]


def _floor(features: np.ndarray, within: np.ndarray | None = None) -> float:
    centred = features - features.mean(axis=0) if within is None else _centred_by_class(features, within)[1]
    return COVARIANCE_FLOOR * float(np.linalg.eigvalsh(centred.T @ centred / len(centred))[-1])


def _whitening(centred: np.ndarray, floor: float) -> np.ndarray:
    """W with W W' = the inverse covariance, variances below the floor raised to it."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return vectors / np.sqrt(np.maximum(values, max(floor, 1e-12)))
