"""The Ensemble of Diverse Models (Kariyappa, Prakash, Qureshi, ICLR 2021; the paper's Eq. 3): members that part ways on outliers.

    min  sum_i CE(f_i(x), y)  +  diversity_weight * mean over outliers x' of log sum_{a<b} exp cos(p_a(x'), p_b(x'))

Each query is answered by one member, chosen by the query's content, so the same query always meets the same one. The defence has no public
code and defines no detection score; ours is s = 1 - mean_{a<b} cos(p_a, p_b) (algorithms.md 4.1). One joint step, as for Outlier Exposure.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors.base import check_network, checked, in_batches
from sameguard.detectors.exposure import check_exposure, default_augmentation, default_fit, fit_beside_outliers, not_fitted, served_contract
from sameguard.errors import ConfigurationError
from sameguard.networks import Augmentation, predict_logits
from sameguard.shapes import Queries, Scores
from sameguard.training import FitConfig, RunControl, seeded
from sameguard.victim import BlackBox

STAGE = "diverse_ensemble"
OUTLIERS_PER_ROW = 1  # every member sees them: five networks already cost five times as much


def similarity_penalty(logits: Float[Tensor, "members batch classes"]) -> Float[Tensor, ""]:
    """Mean over rows of log sum over pairs of exp(cosine of their probabilities): log(pairs) + 1 where all members agree."""
    probs = F.normalize(logits.softmax(dim=2), dim=2)
    first, second = torch.triu_indices(len(logits), len(logits), offset=1)
    cosines = (probs[first] * probs[second]).sum(dim=2)  # pairs, batch; no matrix product, which mixed precision would round
    return cosines.logsumexp(dim=0).mean()


def disagreement(probs: Float32[np.ndarray, "members batch classes"]) -> Scores:
    """1 - mean over pairs of the cosine of their probabilities, (batch,): 0 for equal members, 1 for members sure of distinct classes.

    Computed as the spread of the unit vectors u_a, sum_a |u_a - mean u|^2 / (members - 1), which is the same and exact near 0.
    """
    wide = probs.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=2, keepdims=True)
    return np.square(unit - unit.mean(axis=0)).sum(axis=(0, 2)) / (len(unit) - 1)


class DiverseEnsemble:
    """The defence and its detector: the score is the members' disagreement on the query, whoever answered it.

    make_network: makes one fresh member from queries to logits. members: their number, at least 2. diversity_weight: lambda_D in Eq. (3).
    augmentation: None takes shifts and mirroring for colour images, and nothing else; Augmentation() does nothing.
    """

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        contract: InputContract,
        classes: int,
        *,
        members: int = 5,
        diversity_weight: float = 1.0,
        augmentation: Augmentation | None = None,
    ) -> None:
        check_exposure(classes, "diversity_weight", diversity_weight)
        if members < 2:
            raise ConfigurationError(f"members must be at least 2, got {members}: one model cannot disagree with itself.")
        self.make_network = make_network
        self.contract = contract
        self.classes = classes
        self.members = members
        self.diversity_weight = diversity_weight
        self.augmentation = augmentation or default_augmentation(contract)
        self.networks: nn.ModuleList | None = None
        self.seconds = 0.0  # that the latest fit took in this process
        self.epoch_losses: list[float] = []

    def fit(
        self, train: Split, outliers: np.ndarray | Split, config: FitConfig | None = None, control: RunControl | None = None
    ) -> "DiverseEnsemble":
        """Trains all members together, from scratch; resumable where control names a checkpoint directory (stage `diverse_ensemble`).

        config: None takes what suits the network on two cores (1 epoch of a plain network on MNIST, 3 of the `strong` one). Raises
        InvalidDataError without labels, outliers or rows, InvalidQueryError where they break the contract, TrainingError,
        TrainingPausedError.
        """
        began = time.monotonic()
        with seeded(0 if config is None else config.seed):
            together = _Members([self.make_network() for _ in range(self.members)])
        check_network(together.networks[0], self.contract, self.classes)
        own_recipe = hasattr(together.networks[0], "parameter_groups")
        report = fit_beside_outliers(
            together,
            self._loss,
            train,
            outliers,
            config or default_fit(together.networks[0], len(train), epochs=3 if own_recipe else 1, batch_size=256),
            control or RunControl(),
            contract=self.contract,
            classes=self.classes,
            stage=STAGE,
            outliers_per_row=OUTLIERS_PER_ROW,
            augmentation=self.augmentation,
        )
        self.networks, self.epoch_losses = together.networks.to(torch.device("cpu")), report.epoch_losses
        self.seconds = time.monotonic() - began
        return self

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """1 - mean cosine between members' probabilities, float64, in [0, 1]; victim_probs are not looked at.

        Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract.
        """
        self._fitted()
        return in_batches(checked(queries, victim_probs, self.contract), lambda batch: disagreement(self.member_probs(batch)))

    def member_probs(self, queries: Queries) -> Float32[np.ndarray, "members batch classes"]:
        """What each member answers to canonical queries."""
        logits = np.stack([predict_logits(network, queries) for network in self._fitted()])
        exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
        return exponentials / exponentials.sum(axis=2, keepdims=True)

    def member_of(self, queries: Queries) -> Int[np.ndarray, "batch"]:
        """The member that answers each canonical query: its SHA-256 modulo their number."""
        head = np.ascontiguousarray(self.contract.digests(queries)[:, :8])
        return (head.view("<u8")[:, 0] % self.members).astype(np.int64)

    @property
    def victim(self) -> BlackBox:
        """The victim that this defence serves, in canonical units: the same query always meets the same member."""
        networks = self._fitted()

        def predict(queries: np.ndarray) -> np.ndarray:
            logits = np.empty((len(queries), self.classes), np.float32)
            chosen = self.member_of(queries)
            for member in np.unique(chosen):
                logits[chosen == member] = predict_logits(networks[member], queries[chosen == member])
            return logits

        return BlackBox(predict, served_contract(self.contract), classes=self.classes, output="logits", name="diverse ensemble")

    def _loss(self, rows: Tensor, labels: Tensor, outliers: Tensor) -> Tensor:
        return sum(F.cross_entropy(logits, labels) for logits in rows) + self.diversity_weight * similarity_penalty(outliers)

    def _fitted(self) -> nn.ModuleList:
        if self.networks is None:
            raise not_fitted("DiverseEnsemble")
        return self.networks


class _Members(nn.Module):
    """All members as one network: logits (members, batch, classes). Their normalisation and parameter groups are passed on."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        if hasattr(networks[0], "set_normalisation"):
            self.set_normalisation = self._set_normalisation
        if hasattr(networks[0], "parameter_groups"):
            self.parameter_groups = self._parameter_groups

    def forward(self, queries: Tensor) -> Tensor:
        return torch.stack([network(queries) for network in self.networks])

    def _set_normalisation(self, inputs: Tensor) -> None:
        for network in self.networks:
            network.set_normalisation(inputs)

    def _parameter_groups(self, config: FitConfig) -> list[dict[str, Any]]:
        return [group for network in self.networks for group in network.parameter_groups(config)]
