"""Outlier Exposure: its penalty by hand, and a small defence on digits with noise as outliers."""

import time

import numpy as np
import pytest
import torch

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors import Detector, OutlierExposure
from sameguard.detectors.exposure import default_fit
from sameguard.detectors.outlier_exposure import uniform_penalty
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, NotFittedError, TrainingError
from sameguard.evaluation import accuracy, auroc
from sameguard.networks import MLP, Augmentation, FastCifar, SmallConv
from sameguard.networks.torch_victim import TorchVictim
from sameguard.testing import check_detector
from sameguard.training import FitConfig, RunControl, TrainingPausedError

SHORT = FitConfig(epochs=12, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


def noise(rows, seed):
    return np.random.default_rng(seed).integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8)


def small():
    return SmallConv(10, width=16)


def weights(defence):
    return torch.cat([parameter.flatten() for parameter in defence.network.parameters()])


@pytest.fixture(scope="module")
def defence(digits):
    return OutlierExposure(small, digits.contract, 10).fit(digits.train, noise(500, seed=1), SHORT)


@pytest.mark.parametrize("constant", [-7.0, 0.0, 40.0])
def test_the_penalty_of_constant_logits_is_the_log_of_the_classes_and_nothing_is_lower(constant):
    assert uniform_penalty(torch.full((3, 5), constant)).item() == pytest.approx(np.log(5), rel=1e-5)
    assert uniform_penalty(constant + torch.randn(3, 5, generator=torch.Generator().manual_seed(0))).item() > np.log(5)


def test_the_penalty_is_cross_entropy_to_the_uniform_distribution():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    by_hand = (np.log(1 + np.exp(2.0)) - 1.0 + np.log(2.0)) / 2
    assert uniform_penalty(logits).item() == pytest.approx(by_hand, rel=1e-6)


def test_it_knows_digits_and_is_unsure_of_fresh_outliers(defence, digits, victim):
    assert isinstance(defence, Detector)
    assert accuracy(defence.victim, digits.test.inputs, digits.test.labels) > 0.9
    fresh = noise(200, seed=2).astype(np.float32) / np.float32(255)
    benign, malicious = (defence.score(queries, victim.answer(queries)) for queries in (digits.test.inputs, fresh))
    assert auroc(benign, malicious) > 0.98
    assert defence.seconds > 0
    assert defence.epoch_losses[-1] < defence.epoch_losses[0]


def test_the_weight_is_what_makes_it_unsure(digits):
    fresh = noise(200, seed=2).astype(np.float32) / np.float32(255)
    ignored, heeded = (
        OutlierExposure(small, digits.contract, 10, outlier_weight=weight).fit(digits.train, noise(500, seed=1), SHORT)
        for weight in (0.0, 2.0)
    )
    sure, unsure = (defence.victim.answer(fresh).max(axis=1).mean() for defence in (ignored, heeded))
    assert unsure < 0.2  # 0.1 is the uniform distribution
    assert sure > 0.5


def test_the_score_is_of_the_network_that_it_serves_whoever_answered(defence, digits):
    queries = digits.contract.canonicalise(digits.test.inputs[:20])
    assert isinstance(defence.victim, TorchVictim)
    assert isinstance(defence.victim, Endpoint)
    served = defence.victim.query(queries).probs
    strangers = np.full((20, 10), 0.1, np.float32)
    np.testing.assert_allclose(defence.score(queries, strangers), -served.max(axis=1), rtol=1e-5)
    check_detector(defence, queries, strangers)


def test_sure_answers_do_not_tie():
    class Loud(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            return 20.0 + 5.0 * inputs @ torch.tensor([[1.0, 0.0]])

    defence = OutlierExposure(Loud, InputContract.vectors(1), 2)
    defence.network = Loud()
    scores = defence.score(np.array([[4.0], [5.0], [6.0]], np.float32), np.full((3, 2), 0.5, np.float32))
    assert scores[0] > scores[1] > scores[2]  # float32 probabilities would be 1, 1 and 1


def test_a_stopped_fit_goes_on_to_the_same_weights_and_refuses_other_data(digits, tmp_path):
    config, outliers = SHORT.with_(epochs=2), noise(100, seed=1)
    whole = OutlierExposure(small, digits.contract, 10).fit(digits.train, outliers, config)
    for _ in range(3):
        with pytest.raises(TrainingPausedError, match="outlier_exposure stopped at step"):
            OutlierExposure(small, digits.contract, 10).fit(
                digits.train, outliers, config, RunControl(tmp_path, resume=True, deadline=time.monotonic())
            )
    with pytest.raises(TrainingError, match="must come from the same training data, got others"):
        OutlierExposure(small, digits.contract, 10).fit(digits.train, noise(100, seed=3), config, RunControl(tmp_path, resume=True))
    resumed = OutlierExposure(small, digits.contract, 10).fit(digits.train, outliers, config, RunControl(tmp_path, resume=True))
    assert torch.equal(weights(whole), weights(resumed))


def test_the_seed_decides_and_the_global_random_state_is_left_alone(digits):
    before = torch.random.get_rng_state()
    first, again, other = (
        OutlierExposure(small, digits.contract, 10).fit(digits.train, noise(50, seed=1), SHORT.with_(epochs=1, seed=seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_network_with_its_own_recipe_gets_its_normalisation_its_rates_and_augmentation():
    rng = np.random.default_rng(0)
    train = Split(rng.integers(0, 256, (48, 3, 24, 24), dtype=np.uint8), np.arange(48) % 4, 4)
    outliers = Split(rng.integers(0, 256, (20, 3, 24, 24), dtype=np.uint8), None, 0)
    network = FastCifar(4, widths=(8, 8, 8))
    defence = OutlierExposure(lambda: network, InputContract.images(3, 24, 24), 4)
    assert defence.augmentation == Augmentation(shift=2, flip="alternate")
    filters = network.whiten.weight.clone()
    defence.fit(train, outliers)  # the recipe for two cores
    assert not torch.equal(filters, network.whiten.weight)
    assert not defence.network.training
    config = default_fit(network, 50_000, epochs=4, batch_size=512)
    assert (config.optimizer, config.learning_rate, config.epochs) == ("sgd", 0.75, 4)


def test_vectors_can_be_defended_too():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    train = Split((rng.standard_normal((300, 4)) + 3 * np.eye(3, 4)[labels]).astype(np.float32), labels, 3)
    outliers = rng.standard_normal((100, 4)).astype(np.float32) - 4
    defence = OutlierExposure(lambda: MLP(4, 3, width=32), InputContract.vectors(4), 3).fit(train, outliers)
    benign, malicious = (defence.score(rows, np.ones((len(rows), 3), np.float32)) for rows in (train.inputs, outliers))
    assert auroc(benign, malicious) > 0.9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": lambda split: Split(split.raw, None, 10)}, InvalidDataError, "outlier_exposure needs labelled training data, got none"),
        ({"train": lambda split: Split(split.raw, split.labels + 1, 11)}, InvalidDataError, r"labels must be in \[0, 10\), got up to 10"),
        ({"train": lambda split: split.take([])}, InvalidDataError, "training data must hold at least 1 row, got 0"),
        ({"outliers": noise(0, seed=0)}, InvalidDataError, "outliers must hold at least 1 row, got 0"),
        ({"outliers": noise(3, seed=0)[..., :7]}, InvalidQueryError, r"query shape must be \(batch, 1, 8, 8\), got \(3, 1, 8, 7\)"),
        ({"make": lambda: SmallConv(9)}, ConfigurationError, r"make_network must give 10 logits for each query, got shape \(1, 9\)"),
        (
            {"make": lambda: SmallConv(10, channels=3)},
            ConfigurationError,
            r"for queries of shape \(1, 8, 8\), got RuntimeError from SmallConv",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_training(digits, change, error, message):
    train = change.get("train", lambda split: split)(digits.train)
    with pytest.raises(error, match=message):
        OutlierExposure(change.get("make", small), digits.contract, 10).fit(train, change.get("outliers", noise(20, seed=0)), SHORT)


def test_impossible_settings_and_uses_before_fit_are_refused(digits):
    with pytest.raises(ConfigurationError, match="classes must be at least 2, got 1"):
        OutlierExposure(small, digits.contract, 1)
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="outlier_weight must be a number >= 0"):
            OutlierExposure(small, digits.contract, 10, outlier_weight=weight)
    unfitted = OutlierExposure(small, digits.contract, 10)
    with pytest.raises(NotFittedError, match=r"OutlierExposure needs fit\(\) before it can score or serve"):
        unfitted.score(digits.test.inputs[:4], np.ones((4, 10), np.float32))
    with pytest.raises(NotFittedError, match="got an unfitted defence"):
        _ = unfitted.victim
