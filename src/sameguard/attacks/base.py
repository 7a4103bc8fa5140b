"""What every attack has in common: it asks an endpoint, keeps what was answered, and trains a substitute on that.

An attack sees the endpoint's contract, number of classes, answers and remaining budget, and nothing else; whether a guard stands before
the victim it learns from refusals alone. Choosing the queries is each attack's own file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.networks import fit_classifier, predict_logits
from sameguard.shapes import Flags, Probs, Queries
from sameguard.training import FitConfig, RunControl, seeded

ASK_BATCH = 64


@dataclass(frozen=True, eq=False)
class Extraction:
    """What an attack ended with.

    queries: as sent, canonical and on the contract's grid, in order. probs: the answers, NaN where withheld. answered: False where the
    query was refused. used: queries spent, refused ones too. substitute: in eval mode; its initial weights where nothing was answered.
    """

    substitute: nn.Module
    queries: Queries
    probs: Probs
    answered: Flags
    used: int


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


def ask(endpoint: Endpoint, queries: Queries, batch_size: int = ASK_BATCH) -> tuple[Queries, Probs, Flags]:
    """Queries as sent, and the answers to them, asked in batches."""
    queries = endpoint.contract.canonicalise(queries)
    answers = [endpoint.query(queries[start : start + batch_size]) for start in range(0, len(queries), batch_size)]
    return queries, np.concatenate([part.probs for part in answers]), np.concatenate([part.answered for part in answers])


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
    network: nn.Module, queries: Queries, probs: Probs, answered: Flags, config: FitConfig, seed: int, control: RunControl | None = None
) -> nn.Module:
    """The network, trained on the soft labels of the answered queries only; untrained where nothing was answered."""
    if not answered.any():
        return network.eval()
    with seeded(seed):  # dropout draws from torch's global generator
        fit_classifier(network, queries[answered], probs[answered], config.with_(seed=seed), control, stage="substitute")
    return network.to(torch.device("cpu"))
