"""The contract of an attack, as one check that any attack can be put to, a plug-in's too.

The attack sees an endpoint that has `query`, `contract`, `classes` and `remaining` and nothing else; it is run open, once more with the same
seed, refused everything, and refused about half. Not checked here: how good its substitute is, and what it does with bad settings.
"""

import pickle
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from sameguard.attacks import Attack, Extraction
from sameguard.endpoint import Answers, Endpoint, MeteredEndpoint, Record
from sameguard.errors import InvalidQueryError
from sameguard.networks import predict_logits
from sameguard.shapes import Flags, Queries
from sameguard.testing.rules import BrokenRuleError, require, required

Refusal = Callable[[Queries], Flags]  # which of the queries are answered


def check_attack(make_attack: Callable[[], Attack], make_endpoint: Callable[[], Endpoint], *, budget: int, seed: int = 0) -> None:
    """Returns where the attack keeps its contract; raises AssertionError with a sentence where it does not.

    make_attack: a new attack, which may spend up to `budget`. make_endpoint: a new endpoint that answers everything, a victim for example;
    equal queries must get equal answers. budget: what the meter allows.
    """
    attack = _made(make_attack)
    found, first = _run(attack, make_endpoint(), budget, seed, "answers everything")
    require(bool(found.answered.all()), "every query was answered, but the extraction says otherwise.")
    _, second = _run(attack, make_endpoint(), budget, seed, "answers everything, a second time")
    require(
        np.array_equal(first.queries, second.queries),
        "the same seed and the same answers must give the same queries in the same order, but a second run of the same attack sent others.",
    )
    refused, _ = _run(_made(make_attack), _Refusing(make_endpoint(), _none_answered), budget, seed, "refuses everything")
    require(not bool(refused.answered.any()), "every query was refused, but the extraction says that some were answered.")
    _run(_made(make_attack), _Refusing(make_endpoint(), _about_half_answered), budget, seed, "refuses about half")


def _made(make_attack: Callable[[], Attack]) -> Attack:
    with required("make_attack must give a new attack"):
        attack = make_attack()
    require(isinstance(attack, Attack), f"an attack must have run(endpoint, seed), got {type(attack).__name__} without it.")
    return attack


def _run(attack: Attack, endpoint: Endpoint, budget: int, seed: int, what: str) -> tuple[Extraction, Record]:
    """One run and what the meter recorded, with everything checked that holds whatever the endpoint answers. what: the endpoint does."""
    meter = MeteredEndpoint(endpoint, budget=budget, record=True)
    before = _global_random_state()
    with required(f"an attack must come to its end at an endpoint that {what}"):
        found = attack.run(_narrowed(meter), seed)
    require(_global_random_state() == before, "an attack must leave the global random state of numpy and torch alone.")
    require(isinstance(found, Extraction), f"run must return an Extraction, got {type(found).__name__}.")
    require(meter.used >= 1, "an attack must ask at least once, got 0 queries.")  # and at most `budget`, which the meter sees to
    require(found.used == meter.used, f"the extraction must agree with the meter on the queries used, got {found.used} and {meter.used}.")
    with required("an extraction must hold its queries, answers and flags as arrays, a row for each query"):
        _check_stored(found, meter.recorded(), endpoint.classes)
    _check_substitute(found.substitute, endpoint)
    return found, meter.recorded()


def _check_stored(found: Extraction, sent: Record, classes: int) -> None:
    """What is stored is what was sent, with the answers to it; an attack that keeps only some keeps them in order."""
    kept = len(found.queries)
    rows = np.arange(kept) if kept == len(sent.queries) else _places(found.queries, sent.queries)
    require(np.array_equal(found.queries, sent.queries[rows]), "the stored queries must be those that were sent, bit by bit and in order.")
    require(np.array_equal(found.answered, sent.answered[rows]), "the stored flags must be those of the answers that came back.")
    require(found.probs.shape == (kept, classes), f"the stored answers must be {(kept, classes)}, a row a query, got {found.probs.shape}.")
    require(bool(np.isnan(found.probs[~found.answered]).all()), "the stored answer to a refused query must be NaN.")
    named, stored = sent.probs[rows][found.answered].argmax(axis=1), found.probs[found.answered].argmax(axis=1)
    require(np.array_equal(named, stored), "each stored answer must name the class that came back for its query.")
    require(found.natural is None or found.natural.shape == (kept,), "natural must hold one flag for each stored query.")


def _places(stored: Queries, sent: np.ndarray) -> np.ndarray:
    """Where each stored query stands among the sent ones, each after the one before it."""
    left, places = enumerate(row.tobytes() for row in sent), []
    for query in stored:
        place = next((place for place, row in left if row == query.tobytes()), None)  # goes on where the last one was found
        require(place is not None, "each stored query must be one that was sent, in the order of sending.")
        places.append(place)
    return np.array(places, np.int64)


def _check_substitute(substitute: Any, endpoint: Endpoint) -> None:
    require(isinstance(substitute, nn.Module), f"the substitute must be a torch module, got {type(substitute).__name__}.")
    require(not substitute.training, "the substitute must be handed over in eval mode.")
    with required(f"the substitute must take queries of shape {endpoint.contract.shape}"):
        logits = predict_logits(substitute, np.zeros((2, *endpoint.contract.shape), np.float32))
    require(
        logits.shape == (2, endpoint.classes), f"the substitute must give {endpoint.classes} logits a query, got {logits.shape} for two."
    )
    require(bool(np.isfinite(logits).all()), "the substitute's logits must be finite, whatever was refused.")


def _global_random_state() -> tuple[bytes, bytes]:
    """numpy's and torch's; not Python's own, from which run-time type checkers draw."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is looked at
    return pickle.dumps(numpy_state), torch.get_rng_state().numpy().tobytes()


# ---------------------------------------------------------------------- endpoints that an attack is put to


def _narrowed(meter: MeteredEndpoint) -> Endpoint:
    """The meter with nothing to see but what an attack may see, not even in private; it takes only canonical queries."""

    class Narrow:
        contract = meter.contract
        classes = meter.classes

        def query(self, queries: Any) -> Answers:
            require(isinstance(queries, np.ndarray), f"queries must be a numpy array, got {type(queries).__name__}.")
            require(queries.dtype == np.float32, f"queries must be float32, got {queries.dtype}.")
            try:
                canonical = meter.contract.canonicalise(queries)
            except InvalidQueryError as error:
                raise BrokenRuleError(f"queries must keep the contract when they are sent: {error}") from error
            require(np.array_equal(canonical, queries), "queries must lie on the contract's grid when they are sent.")
            require(
                len(queries) <= meter.remaining, f"an attack must stay within its budget, got {len(queries)} with {meter.remaining} left."
            )
            return meter.query(queries)

        @property
        def remaining(self) -> int:
            return meter.remaining

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise BrokenRuleError(f"an attack may look at query, contract, classes and remaining of an endpoint, got a look at {name}.")

    return Narrow()


class _Refusing:
    """The endpoint with some answers withheld."""

    def __init__(self, endpoint: Endpoint, refusal: Refusal) -> None:
        self.endpoint, self.refusal = endpoint, refusal
        self.contract, self.classes = endpoint.contract, endpoint.classes

    def query(self, queries: np.ndarray) -> Answers:
        answered = self.refusal(queries)
        probs = np.where(answered[:, None], self.endpoint.query(queries).probs, np.float32(np.nan))
        return Answers(probs, answered)


def _none_answered(queries: np.ndarray) -> np.ndarray:
    return np.zeros(len(queries), bool)


def _about_half_answered(queries: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(row).tobytes()) % 2 == 0 for row in queries])
