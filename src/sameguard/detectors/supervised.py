"""The upper bound that no defender can have: a classifier trained on the very attack that it is then tested on.

It is cheating, and every table says so. It shows how much of an attack could be told from benign traffic at all by one query, so that a
detector's shortfall can be read as its own or as the problem's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from sameguard.contract import InputContract
from sameguard.detectors.base import checked, fresh_network, in_batches, tie_checkpoint, training_rows
from sameguard.errors import NotFittedError
from sameguard.networks import fit_classifier, predict_logits
from sameguard.shapes import Scores
from sameguard.training import FitConfig, RunControl

STAGE = "supervised_upper_bound"
FIT = FitConfig(epochs=20, batch_size=64, learning_rate=1e-3, weight_decay=1e-4)


class SupervisedUpperBound:
    """Score: the log-odds of `malicious` under a classifier that has seen labelled queries of this very attack. Cheating, by design.

    make_network: makes a fresh network from queries to two logits, benign and malicious. contract: None takes the benign queries' shape.
    """

    def __init__(self, make_network: Callable[[], nn.Module], contract: InputContract | None = None) -> None:
        self.make_network = make_network
        self.contract = contract
        self.network: nn.Module | None = None

    def fit(
        self,
        benign_queries: np.ndarray,
        malicious_queries: np.ndarray,
        config: FitConfig | None = None,
        control: RunControl | None = None,
    ) -> "SupervisedUpperBound":
        """Both canonical; score on other queries of the two kinds than these. Resumable (stage `supervised_upper_bound`).

        Raises InvalidDataError where either is empty, InvalidQueryError where they break the contract, ConfigurationError for a network
        without two logits.
        """
        config, control = config or FIT, control or RunControl()
        contract = self.contract or InputContract.for_inputs(benign_queries)
        kinds = [training_rows(benign_queries, contract, "benign queries"), training_rows(malicious_queries, contract, "malicious queries")]
        inputs, targets = np.concatenate(kinds), np.repeat([0, 1], [len(kinds[0]), len(kinds[1])])
        network = fresh_network(self.make_network, contract, 2, config.seed)
        tie_checkpoint(control, STAGE, inputs, targets)
        fit_classifier(network, inputs, targets, config, control, stage=STAGE)
        self.contract, self.network = contract, network.to(torch.device("cpu"))
        return self

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """log P(malicious) - log P(benign), float64 (batch,); victim_probs are not looked at.

        Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract.
        """
        network = self.network
        if network is None:
            raise NotFittedError("SupervisedUpperBound needs fit() before it can score, got an unfitted detector.")

        def log_odds(batch: np.ndarray) -> np.ndarray:
            logits = predict_logits(network, batch).astype(np.float64)
            return logits[:, 1] - logits[:, 0]

        return in_batches(checked(queries, victim_probs, self.contract), log_odds)
