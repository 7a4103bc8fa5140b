"""What every attack has in common: it asks an endpoint, keeps what was answered, and trains a substitute on that.

An attack sees the endpoint's contract, number of classes, answers and remaining budget, and nothing else; whether a guard stands before
the victim it learns from refusals alone. Choosing the queries is each attack's own file; what one run asked is kept in transcript.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from sameguard.contract import GRID_LEVELS
from sameguard.data import Split
from sameguard.endpoint import Answers, Endpoint
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidVictimError
from sameguard.networks import fit_classifier, predict_logits
from sameguard.shapes import Flags, Probs, Queries
from sameguard.training import FitConfig, RunControl, TrainReport, seeded

ASK_BATCH = 64
LABELS = ("soft", "hard")  # what the thief learns from: the probabilities, or only the class that they name
SUBSTITUTE_FIT = FitConfig(epochs=60, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")
Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Extraction:
    """What an attack ended with.

    queries: as sent, canonical and on the contract's grid, in order. probs: what the thief learnt from (one-hot under `hard` labels), NaN
    where withheld. answered: False where the query was refused. used: queries spent, refused ones too. substitute: in eval mode; its
    initial weights where nothing was answered. natural: True where the query is an unmodified image of the victim's own kind, such as an
    honest user sends (JBDA's seeds), None where the attack has none. notes: what a report should say of this run, such as
    {"generator_steps": 5}.
    """

    substitute: nn.Module
    queries: Queries
    probs: Probs
    answered: Flags
    used: int
    natural: Flags | None = None
    notes: dict[str, float | int | str] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """Same endpoint state and same seed: same queries. Never spends more than `remaining`; survives refusals of everything."""

    def run(self, endpoint: Endpoint, seed: int) -> Extraction: ...


# ---------------------------------------------------------------------- asking


def remaining_budget(endpoint: Endpoint) -> int | None:
    """Queries that the endpoint still allows; None without a limit, as on a bare victim or guard, which have no meter."""
    return getattr(endpoint, "remaining", None)


def resolve_budget(endpoint: Endpoint, budget: int | None) -> int:
    """The attack's own budget, or all that remains where it has none.

    Raises ConfigurationError where neither sets a limit, or the endpoint does not allow that many.
    """
    remaining = remaining_budget(endpoint)
    if budget is None:
        budget = remaining
    if budget is None:
        raise ConfigurationError(
            "budget must be set on the attack or on the endpoint, got neither: wrap it in MeteredEndpoint(..., budget=...)."
        )
    if budget < 1 or (remaining is not None and budget > remaining):
        raise ConfigurationError(
            f"budget must be in [1, {remaining}], what the endpoint still allows, got {budget}: ask for fewer queries."
        )
    return budget


def ask(
    endpoint: Endpoint,
    queries: Queries,
    batch_size: int = ASK_BATCH,
    labels: str = "soft",
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Queries, Probs, Flags]:
    """Queries as sent, and the answers to them, asked in batches; one-hot rows under `hard` labels, NaN where withheld.

    on_batch: called with the number of queries of each batch once it is answered.
    Raises InvalidVictimError where the endpoint claims answers that are not finite, or answers in another shape.
    """
    queries = endpoint.contract.canonicalise(queries)
    answers = []
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        answers.append(_checked(endpoint.query(batch), len(batch), endpoint))
        if on_batch is not None:
            on_batch(len(batch))
    probs, answered = np.concatenate([part.probs for part in answers]), np.concatenate([part.answered for part in answers])
    return queries, hardened(probs, answered) if labels == "hard" else probs, answered


def _checked(answers: Answers, rows: int, endpoint: Endpoint) -> Answers:
    name, wanted = type(endpoint).__name__, (rows, endpoint.classes)
    if answers.probs.shape != wanted or answers.answered.shape != (rows,):
        raise InvalidVictimError(
            f"endpoint {name} must answer {rows} queries with probabilities of shape {wanted} and as many flags, got shapes "
            f"{answers.probs.shape} and {answers.answered.shape}: it is broken, the attack stops."
        )
    broken = answers.answered & ~np.isfinite(answers.probs).all(axis=1)
    if broken.any():
        raise InvalidVictimError(
            f"endpoint {name} must give finite probabilities for each query that it calls answered, got NaN or infinity in "
            f"{int(broken.sum())} of {rows}: it is broken, the attack stops."
        )
    return answers


def hardened(probs: Probs, answered: Flags) -> Probs:
    """One-hot of the class that each answer names: all that an API with labels only gives away."""
    hard = np.full_like(probs, np.nan)
    hard[answered] = np.eye(probs.shape[1], dtype=np.float32)[probs[answered].argmax(axis=1)]
    return hard


def check_labels(labels: str) -> str:
    """`labels`, if it is soft or hard. Raises ConfigurationError otherwise."""
    if labels not in LABELS:
        raise ConfigurationError(f"labels must be soft or hard, got {labels!r}.")
    return labels


# ---------------------------------------------------------------------- the thief's own images


def inputs_of(proxy: Split | np.ndarray) -> np.ndarray:
    """The thief's own images as stored, uint8 or float; their labels are not looked at."""
    return proxy.raw if isinstance(proxy, Split) else np.asarray(proxy)


def check_proxy(proxy: np.ndarray, endpoint: Endpoint, rows: int, name: str = "proxy") -> None:
    """Raises InvalidDataError where the thief's images have another shape, type or range than the endpoint's queries, or are fewer than `rows`."""
    found, wanted = proxy.shape[1:], endpoint.contract.shape
    if found != wanted:
        raise InvalidDataError(
            f"{name} inputs must have the shape {wanted} of the endpoint's queries, got {found}: resize or convert them."
        )
    check_rows(proxy, rows, name)
    if proxy.dtype == np.uint8:
        return
    if proxy.dtype not in (np.float32, np.float64):
        raise InvalidDataError(f"{name} inputs must be uint8 or float32, got {proxy.dtype}: convert them with .astype(np.float32).")
    lowest, highest = endpoint.contract.bounds
    slack = 0.5 / GRID_LEVELS if endpoint.contract.grid == "8bit" else 0.0
    least, most = proxy.min(), proxy.max()  # NaN survives both
    if not (np.isfinite(least) and np.isfinite(most) and lowest - slack <= least and most <= highest + slack):
        raise InvalidDataError(
            f"{name} inputs must be finite and in [{lowest:g}, {highest:g}], as the endpoint's queries, got values from {least:g} to "
            f"{most:g}: divide pixels by 255, or pass them as uint8."
        )


def check_rows(proxy: np.ndarray, rows: int, name: str = "proxy") -> None:
    """Raises InvalidDataError where the thief's images are fewer than `rows`."""
    if len(proxy) < rows:
        raise InvalidDataError(
            f"{name} must hold at least as many rows as the budget, got {len(proxy)} for a budget of {rows}: "
            "no image is asked about twice, so give more or spend less."
        )


def as_queries(raw: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [0, 1]; anything else as it is (the contract checks it)."""
    return raw.astype(np.float32) / np.float32(255.0) if raw.dtype == np.uint8 else raw


def disguised(queries: np.ndarray, transform: Transform | None) -> np.ndarray:
    """What the thief's transform makes of the queries; themselves without one. Raises ConfigurationError where it changes their shape."""
    if transform is None:
        return queries
    changed = np.asarray(transform(queries))
    if changed.shape != queries.shape:
        raise ConfigurationError(
            f"transform must keep the shape of the queries, {queries.shape}, got {changed.shape}: it changes images, not their number or size."
        )
    return changed


# ---------------------------------------------------------------------- the substitute


def new_substitute(make: Callable[[], nn.Module], endpoint: Endpoint, seed: int) -> nn.Module:
    """A fresh substitute with seeded weights, tried on one blank query before any budget is spent on it.

    Raises ConfigurationError where it does not map the endpoint's queries to one logit per class.
    """
    with seeded(seed):
        network = make()
    blank = np.zeros((1, *endpoint.contract.shape), np.float32)
    try:
        shape = predict_logits(network, blank).shape
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigurationError(
            f"substitute must take queries of shape {endpoint.contract.shape}, got {type(error).__name__} from {type(network).__name__}: "
            "choose a network for that input."
        ) from error
    if shape != (1, endpoint.classes):
        raise ConfigurationError(f"substitute must give {endpoint.classes} logits for each query, got shape {shape} for one query.")
    return network


def train_substitute(
    network: nn.Module,
    queries: Queries,
    probs: Probs,
    answered: Flags,
    config: FitConfig,
    seed: int,
    control: RunControl | None = None,
    stage: str = "substitute",
) -> nn.Module:
    """The network, trained on the answered queries only, on the CPU and in eval mode; untrained where nothing was answered.

    stage: names the training in progress and checkpoints; an attack that trains in rounds gives each round its own.
    """
    fit_substitute(network, queries, probs, answered, config, seed, control, stage)
    return network


def fit_substitute(
    network: nn.Module,
    queries: Queries,
    probs: Probs,
    answered: Flags,
    config: FitConfig,
    seed: int,
    control: RunControl | None = None,
    stage: str = "substitute",
) -> TrainReport | None:
    """`train_substitute` for who wants the report of the training; None where nothing was answered."""
    rows = np.flatnonzero(answered)
    if not len(rows):
        network.eval()
        return None
    if len(rows) == 1:
        rows = np.repeat(rows, 2)  # the same gradient, and BatchNorm needs two rows
    precision = "fp32" if config.precision == "auto" else config.precision  # what auto measures today must not choose the queries
    with seeded(seed):  # dropout draws from torch's global generator
        report = fit_classifier(network, queries[rows], probs[rows], config.with_(seed=seed, precision=precision), control, stage=stage)
    network.to(torch.device("cpu"))
    return report
