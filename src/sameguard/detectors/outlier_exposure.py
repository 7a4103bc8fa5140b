"""Outlier Exposure (Hendrycks, Mazeika, Dietterich, ICLR 2019; the paper's Eq. 2) as a defence: a victim that is unsure of outliers.

    min  CE(f(x), y)  +  outlier_weight * mean over outliers x' of [logsumexp z(x') - mean_k z_k(x')]

One joint step on a batch of training rows and twice as many outliers (algorithms.md 4.1). It changes the victim, so its accuracy belongs
beside its detection. The outliers must not overlap what the thief asks about.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors.base import checked, fresh_network, in_batches
from sameguard.detectors.exposure import check_exposure, default_augmentation, default_fit, fit_beside_outliers, not_fitted, served_contract
from sameguard.networks import Augmentation, predict_logits
from sameguard.networks.torch_victim import TorchVictim
from sameguard.shapes import Scores
from sameguard.training import FitConfig, RunControl

STAGE = "outlier_exposure"
OUTLIERS_PER_ROW = 2


def uniform_penalty(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean over rows of logsumexp z - mean_k z_k: cross-entropy to the uniform distribution, at least log(classes), for constant logits."""
    return (logits.logsumexp(dim=1) - logits.mean(dim=1)).mean()


class OutlierExposure:
    """The defence and its detector: the score is -max_k p_k of its own network, whoever else answered the query.

    make_network: makes a fresh network from queries to logits. outlier_weight: lambda in Eq. (2). augmentation: None takes shifts and
    mirroring for colour images, and nothing else; Augmentation() does nothing.
    """

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        contract: InputContract,
        classes: int,
        *,
        outlier_weight: float = 0.5,
        augmentation: Augmentation | None = None,
    ) -> None:
        check_exposure(classes, "outlier_weight", outlier_weight)
        self.make_network = make_network
        self.contract = contract
        self.classes = classes
        self.outlier_weight = outlier_weight
        self.augmentation = augmentation or default_augmentation(contract)
        self.network: nn.Module | None = None
        self.seconds = 0.0  # that the latest fit took in this process
        self.epoch_losses: list[float] = []

    def fit(
        self, train: Split, outliers: np.ndarray | Split, config: FitConfig | None = None, control: RunControl | None = None
    ) -> "OutlierExposure":
        """Trains from scratch; resumable where control names a checkpoint directory (stage `outlier_exposure`).

        config: None takes what suits the network on two cores (2 epochs of a plain network on MNIST, 4 of the `strong` one). Raises
        InvalidDataError without labels, outliers or rows, InvalidQueryError where they break the contract, TrainingError,
        TrainingPausedError.
        """
        began = time.monotonic()
        network = fresh_network(self.make_network, self.contract, self.classes, 0 if config is None else config.seed)
        epochs = 4 if hasattr(network, "parameter_groups") else 2
        report = fit_beside_outliers(
            network,
            self._loss,
            train,
            outliers,
            config or default_fit(network, len(train), epochs=epochs, batch_size=512),
            control or RunControl(),
            contract=self.contract,
            classes=self.classes,
            stage=STAGE,
            outliers_per_row=OUTLIERS_PER_ROW,
            augmentation=self.augmentation,
        )
        self.network, self.epoch_losses = network.to(torch.device("cpu")), report.epoch_losses
        self.seconds = time.monotonic() - began
        return self

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """-max_k p_k of its own network in float64, in [-1, -1 / classes]; victim_probs are not looked at.

        Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract.
        """
        network = self._fitted()
        return in_batches(
            checked(queries, victim_probs, self.contract), lambda batch: _minus_max_probability(predict_logits(network, batch))
        )

    @property
    def victim(self) -> TorchVictim:
        """The victim that this defence serves, in canonical units: the trained network itself."""
        return TorchVictim(self._fitted(), served_contract(self.contract), classes=self.classes, name="outlier exposure")

    def _loss(self, rows: Tensor, labels: Tensor, outliers: Tensor) -> Tensor:
        return F.cross_entropy(rows, labels) + self.outlier_weight * uniform_penalty(outliers)

    def _fitted(self) -> nn.Module:
        if self.network is None:
            raise not_fitted("OutlierExposure")
        return self.network


def _minus_max_probability(logits: np.ndarray) -> Scores:
    """In float64 and from logits: float32 probabilities of a sure network are all exactly 1, and would tie."""
    above = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return -1.0 / np.exp(above).sum(axis=1)
