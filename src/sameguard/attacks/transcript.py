"""One run of an attack: the means that every thief has, and the transcript of what was asked and answered.

`Means` holds the settings that all attacks share and checks them once; `Transcript` is the only way in which a run asks, so that what is
stored is what was sent, in order, and progress is reported in one place. It counts for itself alone: the budget is the endpoint's meter's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from sameguard.attacks.base import (
    Extraction,
    ask,
    check_labels,
    new_substitute,
    resolve_budget,
    train_substitute,
)
from sameguard.endpoint import Endpoint, Record
from sameguard.errors import ConfigurationError
from sameguard.shapes import Flags
from sameguard.training import FitConfig, ProgressEvent, RunControl, TrainingPausedError

QUERIES_STAGE = "queries"


class Transcript:
    """What one run asked and what came back, in order.

    budget: queries that the run may spend. control: hears of each batch as the stage `queries`, and stops the run at its deadline.
    keep: store only so many of the budget's queries, evenly spread, for a run whose queries would not fit in memory; None stores all.
    """

    def __init__(
        self, endpoint: Endpoint, budget: int, batch_size: int, labels: str, control: RunControl | None = None, keep: int | None = None
    ) -> None:
        self.endpoint = endpoint
        self.budget = budget
        self.batch_size = batch_size
        self.labels = labels
        self.control = control or RunControl()
        self.asked = 0
        self._kept: Flags | None = None
        if keep is not None and keep < budget:
            self._kept = np.zeros(budget, bool)
            self._kept[np.linspace(0, budget - 1, keep).round().astype(np.int64)] = True
        self._began = time.monotonic()
        self._records: list[Record] = []

    @property
    def left(self) -> int:
        return self.budget - self.asked

    def ask(self, queries: np.ndarray) -> Record:
        """Queries as sent and their answers.

        Raises TrainingPausedError at the control's deadline, InvalidVictimError where the endpoint is broken.
        """
        self._stop_at_deadline()
        first = self.asked
        record = Record(*ask(self.endpoint, queries, self.batch_size, self.labels, self._on_batch))
        if self._kept is None:
            self._records.append(record)
        else:
            rows = np.flatnonzero(self._kept[first : self.asked])
            self._records.append(Record(*(column[rows] for column in record)))
        return record

    def so_far(self) -> Record:
        """Everything asked and answered up to now, or of it what is kept."""
        if len(self._records) > 1:
            self._records = [Record(*(np.concatenate(column) for column in zip(*self._records, strict=True)))]
        return self._records[0]

    def extraction(
        self, substitute: nn.Module, natural: Flags | None = None, notes: dict[str, float | int | str] | None = None
    ) -> Extraction:
        """The run's result."""
        return Extraction(substitute, *self.so_far(), used=self.asked, natural=natural, notes=notes or {})

    def _on_batch(self, rows: int) -> None:
        self.asked += rows
        if self.control.progress is not None:
            seconds_left = (time.monotonic() - self._began) / self.asked * self.left
            self.control.progress(ProgressEvent(QUERIES_STAGE, self.asked, self.budget, float("nan"), seconds_left))
        if self.left:
            self._stop_at_deadline()

    def _stop_at_deadline(self) -> None:
        if self.control.deadline is not None and time.monotonic() >= self.control.deadline:
            raise TrainingPausedError(
                f"queries stopped at {self.asked} of {self.budget}: the time budget is spent; where a ledger stands before the endpoint, "
                "the same run goes on from there."
            )


@dataclass(frozen=True, eq=False)
class Means:
    """What every thief has besides data of its own.

    substitute: makes a fresh network from queries to logits. budget: queries to spend, None for all that the endpoint allows; refused
    ones count. labels: learn from `soft` answers or `hard` ones. config: the substitute's training, whose seed is the run's. batch_size:
    queries in one request.
    """

    substitute: Callable[[], nn.Module]
    budget: int | None
    labels: str
    config: FitConfig
    batch_size: int
    control: RunControl | None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ConfigurationError(f"budget must be at least 1 query, got {self.budget}.")
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, got {self.batch_size}.")
        check_labels(self.labels)

    def begin(self, endpoint: Endpoint, seed: int, keep: int | None = None) -> tuple[Transcript, nn.Module]:
        """An empty transcript and an untrained substitute, both tried against the endpoint before anything is asked.

        Raises ConfigurationError where the endpoint does not allow the budget or the substitute does not fit.
        """
        budget = resolve_budget(endpoint, self.budget)
        network = self.fresh(endpoint, seed)
        return Transcript(endpoint, budget, self.batch_size, self.labels, self.control, keep), network

    def fresh(self, endpoint: Endpoint, seed: int) -> nn.Module:
        """An untrained substitute; the same one for the same seed."""
        return new_substitute(self.substitute, endpoint, seed)

    def train(
        self, network: nn.Module, known: Record, seed: int, *, config: FitConfig | None = None, stage: str = "substitute"
    ) -> nn.Module:
        """The network, trained on what was answered."""
        return train_substitute(network, *known, config or self.config, seed, self.control, stage)
