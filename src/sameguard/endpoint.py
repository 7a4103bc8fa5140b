"""What an attacker sees: something that takes queries and gives answers, or withholds them.

Victim, guard, meter and HTTP client all are Endpoints, so they nest, and no attack can reach weights, labels or scores.
`MeteredEndpoint` is the only thing in the project that owns a query counter.
"""

from numbers import Integral
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from sameguard.contract import InputContract
from sameguard.errors import BudgetExceededError, ConfigurationError, InvalidQueryError
from sameguard.shapes import Flags, Probs, Queries


class Answers(NamedTuple):
    """probs: float32 (batch, classes), NaN where withheld. answered: bool (batch,), False where the query was refused."""

    probs: Probs
    answered: Flags


@runtime_checkable
class Endpoint(Protocol):
    """Anything that answers queries given in canonical units, float32 (batch, *contract.shape)."""

    contract: InputContract
    classes: int

    def query(self, queries: np.ndarray) -> Answers: ...


class Record(NamedTuple):
    """queries: as answered (canonical, on the grid). probs, answered: what came back."""

    queries: Queries
    probs: Probs
    answered: Flags


class MeteredEndpoint:
    """Counts every query sent, refused ones too, and stops at the budget.

    budget: number of queries allowed, or None for no limit. record: keep queries and answers, see `recorded`.
    """

    def __init__(self, endpoint: Endpoint, *, budget: int | None = None, record: bool = False) -> None:
        if budget is not None and not (isinstance(budget, Integral) and budget >= 1):  # nan and 2.5 would never be used up
            raise ConfigurationError(f"budget must be at least 1 query, a whole number, got {budget}: pass None for no limit.")
        self.endpoint = endpoint
        self.contract = endpoint.contract
        self.classes = endpoint.classes
        self.budget = None if budget is None else int(budget)
        self.used = 0
        self._records: list[Record] | None = [] if record else None

    @property
    def remaining(self) -> int | None:
        return None if self.budget is None else self.budget - self.used

    def query(self, queries: np.ndarray) -> Answers:
        """The inner endpoint's answers; the queries count even where they are refused.

        Raises BudgetExceededError, before anything is sent, where the batch is larger than what remains.
        """
        queries = self.contract.canonicalise(queries)
        if self.remaining is not None and len(queries) > self.remaining:
            raise BudgetExceededError(
                f"query batch of {len(queries)} exceeds the remaining budget of {self.remaining} (used {self.used} of {self.budget})."
            )
        self.used += len(queries)  # before the call: a victim that fails half-way has still been asked
        answers = self.endpoint.query(queries)
        if self._records is not None:
            self._records.append(Record(queries, answers.probs, answers.answered))
        return answers

    def recorded(self) -> Record:
        """Everything sent so far, in order. Raises ConfigurationError without `record=True`, InvalidQueryError before the first query."""
        if self._records is None:
            raise ConfigurationError("recorded() needs MeteredEndpoint(..., record=True), got record=False.")
        if not self._records:
            raise InvalidQueryError("recorded() needs at least one query, got 0.")
        return Record(*(np.concatenate(column) for column in zip(*self._records, strict=True)))
