"""The contract of a detector, tried on yours: `check_detector(detector, queries, victim_probs)`.

Shipped for plug-ins: call it from your own test with a few benign queries and the victim's answers to them. It raises AssertionError with
the rule that was broken. Left out: whether the scores are any good.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from sameguard.errors import ConfigurationError, InvalidQueryError
from sameguard.testing.rules import BrokenRuleError, require, required

TOLERANCE = 1e-5  # relative; and of the largest score, for scores near 0


def check_detector(
    detector: Any, queries: np.ndarray, victim_probs: np.ndarray, *, empty: str = "scores", out_of_bounds: float | None = 2.0
) -> None:
    """Raises AssertionError where `detector.score` breaks the contract of `detectors.Detector`.

    Scores: float (batch,), finite; equal when asked twice; a row's score the same alone, in any batch and any order; arguments and global
    random states untouched. NaN, infinity, another shape, values out of bounds and answers of another length raise InvalidQueryError.
    queries: at least 4, canonical float32, fit for the detector. empty: what a batch of none gives, `scores` of shape (0,), or `raises`
    InvalidQueryError (SAME and the served scorer refuse it). out_of_bounds: a value that no query may hold; None where all may.
    """
    if empty not in ("scores", "raises"):
        raise ConfigurationError(f"empty must be scores or raises, got {empty!r}.")
    if len(queries) < 4:
        raise ConfigurationError(f"check_detector needs at least 4 queries, got {len(queries)}.")
    score = _score_of(detector)
    scores = _check_scores(score, queries, victim_probs)
    _check_rows_alone(score, queries, victim_probs, scores)
    _check_leaves_no_trace(score, queries, victim_probs)
    _check_empty(detector.score, queries[:0], victim_probs[:0], empty)
    _check_refusals(detector.score, queries, victim_probs, out_of_bounds)


def _score_of(detector: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`detector.score` on queries that it has to take."""
    score = getattr(detector, "score", None)
    require(callable(score), f"a detector must have score(queries, victim_probs), got {type(detector).__name__} without it.")

    def asked(queries: np.ndarray, victim_probs: np.ndarray) -> np.ndarray:
        rows = f"{len(queries)} queries" if len(queries) != 1 else "1 query"
        with required(f"score must take {rows} of the contract and the answers to them"):
            scores = score(queries, victim_probs)
        shape = getattr(scores, "shape", None)
        require(shape == (len(queries),), f"scores must have shape ({len(queries)},), one for each query, got {shape}.")
        require(isinstance(scores, np.ndarray), f"scores must be a numpy array, got {type(scores).__name__}.")
        return scores

    return asked


def _check_scores(score: Callable, queries: np.ndarray, victim_probs: np.ndarray) -> np.ndarray:
    scores = score(queries, victim_probs)
    require(scores.dtype.kind == "f", f"scores must be floats, got {scores.dtype}.")
    require(bool(np.isfinite(scores).all()), f"scores must be finite, got NaN or infinity in {int((~np.isfinite(scores)).sum())} rows.")
    again = score(queries, victim_probs)
    require(np.array_equal(scores, again), f"the same queries must score the same twice, got differences up to {_gap(scores, again):.3g}.")
    return scores


def _check_rows_alone(score: Callable, queries: np.ndarray, victim_probs: np.ndarray, scores: np.ndarray) -> None:
    few = min(len(queries), 8)
    alone = np.concatenate([score(queries[row : row + 1], victim_probs[row : row + 1]) for row in range(few)])
    _require_close(alone, scores[:few], scores, "a query must score the same alone as in a batch")
    half = len(queries) // 2
    _require_close(
        score(queries[half:], victim_probs[half:]), scores[half:], scores, "a query must score the same whatever else is in its batch"
    )
    order = np.random.default_rng(0).permutation(len(queries))
    _require_close(score(queries[order], victim_probs[order]), scores[order], scores, "reordered queries must give reordered scores")


def _check_leaves_no_trace(score: Callable, queries: np.ndarray, victim_probs: np.ndarray) -> None:
    before = queries.copy(), victim_probs.copy()
    states = _random_states()
    score(queries, victim_probs)
    unchanged = np.array_equal(before[0], queries) and np.array_equal(before[1], victim_probs)
    require(unchanged, "score must not change its arguments, got changed ones: work on a copy.")
    require(_random_states() == states, "score must leave the global random states alone, got another state: use a generator of its own.")


def _check_empty(score: Callable, queries: np.ndarray, victim_probs: np.ndarray, empty: str) -> None:
    if empty == "raises":
        _require_refused(score, queries, victim_probs, "an empty batch")
        return
    with required("an empty batch must give scores of shape (0,), or the check be told empty='raises'"):
        shape = np.shape(score(queries, victim_probs))
    require(shape == (0,), f"an empty batch must give scores of shape (0,), got {shape}.")


def _check_refusals(score: Callable, queries: np.ndarray, victim_probs: np.ndarray, out_of_bounds: float | None) -> None:
    spoilt = [(np.nan, "a NaN"), (np.inf, "an infinity")]
    if out_of_bounds is not None:
        spoilt.append((out_of_bounds, "a value out of bounds"))
    for value, what in spoilt:
        broken = queries.copy()
        broken[1].flat[0] = value
        _require_refused(score, broken, victim_probs, what)
    wider = np.concatenate([queries, queries[..., :1]], axis=-1)
    _require_refused(score, wider, victim_probs, f"queries of shape {wider.shape}")
    _require_refused(score, queries, victim_probs[:-1], "answers to other than these queries")


def _require_refused(score: Callable, queries: np.ndarray, victim_probs: np.ndarray, what: str) -> None:
    try:
        with required(f"{what} must raise InvalidQueryError", InvalidQueryError):
            found = score(queries, victim_probs)
    except InvalidQueryError:
        return
    raise BrokenRuleError(f"{what} must raise InvalidQueryError, got scores {np.asarray(found).ravel()[:4]}.")


def _require_close(found: np.ndarray, wanted: np.ndarray, scores: np.ndarray, rule: str) -> None:
    room = TOLERANCE * np.maximum(np.abs(wanted), np.abs(scores).max())
    require(bool((np.abs(found - wanted) <= room).all()), f"{rule}, got differences up to {_gap(found, wanted):.3g}.")


def _gap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max())


def _random_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is looked at
    states: tuple[Any, ...] = (numpy_state[1].tobytes(), numpy_state[2:])  # not Python's own, from which run-time type checkers draw
    torch = sys.modules.get("torch")  # a served scorer runs without it
    return states if torch is None else (*states, torch.random.get_rng_state().numpy().tobytes())
