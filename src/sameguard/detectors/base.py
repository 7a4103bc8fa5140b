"""What every detector has in common: one score for each query, and the checks before it.

A detector never holds the victim: it gets the victim's answers, so "black box" is a type and not a promise. How a detector is fitted is
its own affair, since each needs something else. Whatever is checked here fails loudly: a NaN must never pass as a low score.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, TrainingError
from sameguard.networks import predict_logits
from sameguard.shapes import Queries, Scores
from sameguard.training import RunControl, seeded

SCORING_ROWS = 256  # rows scored at once: bounds memory, whatever the number of queries


@runtime_checkable
class Detector(Protocol):
    """Canonical queries and the victim's answers to them -> scores, float (batch,), higher = more suspicious.

    Deterministic; a row's score depends on that row alone; an empty batch gives (0,). `testing.check_detector` tries all of it.
    """

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores: ...


# ---------------------------------------------------------------------- before scoring


def checked(queries: np.ndarray, victim_probs: np.ndarray, contract: InputContract | None) -> Queries:
    """Canonical queries, (0, *shape) for none; without a contract as they are, finite.

    Raises InvalidQueryError where the queries break the contract, or victim_probs does not have one row for each.
    """
    queries = canonical(queries, contract) if contract is not None else _finite(queries)
    if victim_probs.ndim != 2 or len(victim_probs) != len(queries):
        raise InvalidQueryError(
            f"victim_probs must be ({len(queries)}, classes), one row per query, got {victim_probs.shape}: pass the answers to these queries."
        )
    return queries


def canonical(queries: np.ndarray, contract: InputContract) -> Queries:
    """The contract's canonical queries, where a batch of none is allowed too."""
    queries = np.asarray(queries)
    if len(queries) == 0 and queries.shape[1:] == contract.shape and queries.dtype.kind == "f":
        return queries.astype(np.float32)
    return contract.canonicalise(queries)


def _finite(queries: np.ndarray) -> Queries:
    queries = np.asarray(queries)
    if queries.dtype.kind != "f" or queries.ndim < 2:
        raise InvalidQueryError(f"queries must be float32 (batch, *input), got {queries.dtype} of shape {queries.shape}.")
    if not np.isfinite(queries).all():
        raise InvalidQueryError("query values must be finite, got NaN or infinity.")
    return queries.astype(np.float32, copy=False)


def finite_probs(victim_probs: np.ndarray) -> np.ndarray:
    """The answers in float64. Raises InvalidQueryError for NaN or infinity: what was withheld cannot be judged by its answer."""
    bad = ~np.isfinite(victim_probs).all(axis=1)
    if bad.any():
        raise InvalidQueryError(f"victim_probs must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} rows.")
    return victim_probs.astype(np.float64)


def in_batches(queries: Queries, score: Callable[[np.ndarray], np.ndarray], rows: int = SCORING_ROWS) -> Scores:
    """Scores of a few rows at a time, float64 (batch,)."""
    parts = [score(queries[start : start + rows]) for start in range(0, len(queries), rows)]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def flat(queries: Queries) -> np.ndarray:
    """(batch, values), for none as well."""
    return queries.reshape(len(queries), math.prod(queries.shape[1:]))


# ---------------------------------------------------------------------- before fitting


def training_rows(data: Split | np.ndarray, contract: InputContract, name: str = "training data") -> np.ndarray:
    """Inputs as they are kept for training, checked against the contract: uint8 images on the 8-bit grid, float32 otherwise.

    Raises InvalidDataError for no rows, InvalidQueryError where they break the contract.
    """
    raw = data.raw if isinstance(data, Split) else np.asarray(data)
    if len(raw) == 0:
        raise InvalidDataError(f"{name} must hold at least 1 row, got 0.")
    if raw.dtype == np.uint8:
        if raw.shape[1:] == contract.shape and contract.grid == "8bit":
            return np.ascontiguousarray(raw)
        raw = raw.astype(np.float32) / np.float32(255.0)
    rows = contract.canonicalise(raw)
    return np.rint(rows * 255.0).astype(np.uint8) if contract.grid == "8bit" else rows  # a quarter of the memory, and exact


def as_queries(rows: np.ndarray) -> Queries:
    """Canonical float32 from what `training_rows` keeps."""
    return rows.astype(np.float32) / np.float32(255.0) if rows.dtype == np.uint8 else rows


def fresh_network(make: Callable[[], nn.Module], contract: InputContract, classes: int, seed: int) -> nn.Module:
    """A new network with seeded weights, tried on one blank query before anything is trained.

    Raises ConfigurationError where it does not map the contract's queries to one logit per class.
    """
    with seeded(seed):
        network = make()
    check_network(network, contract, classes)
    return network


def check_network(network: nn.Module, contract: InputContract, classes: int) -> None:
    """Raises ConfigurationError where the network does not map the contract's queries to one logit per class."""
    try:
        shape = predict_logits(network, np.zeros((1, *contract.shape), np.float32)).shape
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigurationError(
            f"make_network must give a network for queries of shape {contract.shape}, got {type(error).__name__} from "
            f"{type(network).__name__}: choose one for that input."
        ) from error
    if shape != (1, classes):
        raise ConfigurationError(f"make_network must give {classes} logits for each query, got shape {shape} for one query.")


def tie_checkpoint(control: RunControl, stage: str, *arrays: np.ndarray) -> None:
    """Ties a stage's checkpoint to its data: a resume with others must not mix two runs.

    Raises TrainingError where a checkpoint is to be resumed that other data have made.
    """
    if control.checkpoint_dir is None:
        return
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes())
    checkpoint = Path(control.checkpoint_dir) / f"{stage}.checkpoint"
    path = checkpoint.with_name(f"{stage}.data.sha256")
    if control.resume and checkpoint.exists() and path.exists() and path.read_text().strip() != digest.hexdigest():
        raise TrainingError(f"checkpoint {checkpoint} must come from the same training data, got others: delete it to start again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(digest.hexdigest())
