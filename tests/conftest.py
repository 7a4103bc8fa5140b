"""Fixtures shared by the torch-backed tests: one small victim and one small fit on scikit-learn's digits for the whole session."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sameguard.contract import InputContract
from sameguard.data import Split, load, split
from sameguard.detectors import SAME
from sameguard.networks import SmallConv, fit_classifier
from sameguard.networks.torch_victim import TorchVictim
from sameguard.training import FitConfig, seeded

torch.set_num_threads(1)  # small networks: a second thread costs more than it brings


class Digits(NamedTuple):
    """train: what victim and detector saw. benign: held out. test: for evaluation. All canonical."""

    train: Split
    benign: np.ndarray
    test: Split
    contract: InputContract


@pytest.fixture(scope="session")
def digits() -> Digits:
    whole = load("digits")
    rows = np.concatenate([whole.train.raw, whole.test.raw])
    labels = np.concatenate([whole.train.labels, whole.test.labels])
    train, benign, test = split(Split(rows, labels, 10), (0.5, 0.3, 0.2), seed=0)
    return Digits(train, benign.inputs, test, InputContract.images(1, 8, 8))


@pytest.fixture(scope="session")
def victim(digits: Digits) -> TorchVictim:
    with seeded(0):
        network = SmallConv(10)
    config = FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")
    fit_classifier(network, digits.train.inputs, digits.train.labels, config)
    return TorchVictim(network, digits.contract, classes=10)


SHORT = FitConfig(epochs=30, batch_size=128, learning_rate=2e-3, precision="fp32")


@pytest.fixture(scope="session")
def fitted_same(digits: Digits, victim: TorchVictim) -> SAME:
    return SAME(digits.contract, 10).fit(digits.train, victim, SHORT, benign=digits.benign)


@pytest.fixture(scope="session")
def artifact_directory(fitted_same: SAME, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artefact") / "digits"
    fitted_same.export(directory)
    return directory
