"""The plain autoencoder, and the victim asked again on its reconstruction."""

import time

import numpy as np
import pytest
import torch

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors import PlainAutoencoder, VictimOnReconstruction
from sameguard.detectors.plain_autoencoder import kl_divergence
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, NotFittedError, TrainingError
from sameguard.evaluation import auroc
from sameguard.networks.torch_victim import TorchVictim
from sameguard.testing import check_detector
from sameguard.training import FitConfig, RunControl, TrainingPausedError

SHORT = FitConfig(epochs=15, batch_size=64, learning_rate=3e-3, weight_decay=1e-4, precision="fp32")


@pytest.fixture(scope="module")
def autoencoder(digits):
    return PlainAutoencoder(digits.contract).fit(digits.train.inputs, SHORT)


def noise(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (rows, 1, 8, 8)).astype(np.float32)


def test_the_divergence_agrees_with_values_by_hand():
    half, quarter = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    np.testing.assert_allclose(kl_divergence(half, quarter), 0.1438, atol=5e-5)
    np.testing.assert_array_equal(kl_divergence(quarter, quarter), 0.0)
    np.testing.assert_allclose(kl_divergence(np.array([[1.0, 0.0]]), half), np.log(2))
    np.testing.assert_allclose(kl_divergence(half, np.array([[1.0, 0.0]])), 0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - np.log(1e-12)))


def test_noise_reconstructs_worse_than_digits(autoencoder, digits, victim):
    benign, malicious = (autoencoder.score(queries, victim.answer(queries)) for queries in (digits.test.inputs, noise(200)))
    assert auroc(benign, malicious) >= 0.99
    assert autoencoder.epoch_losses[-1] < autoencoder.epoch_losses[0]
    assert benign.mean() < digits.test.inputs.var()  # better than the mean image


def test_the_score_is_the_mean_squared_error_of_what_reconstruct_returns(autoencoder, digits, victim):
    queries = digits.contract.canonicalise(digits.test.inputs[:20])
    pictures = autoencoder.reconstruct(queries)
    assert pictures.shape == queries.shape
    by_hand = ((pictures.astype(np.float64) - queries) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(autoencoder.score(queries, victim.answer(queries)), by_hand, rtol=1e-5)
    assert autoencoder.reconstruct(queries[:0]).shape == (0, 1, 8, 8)


def test_the_second_answer_is_the_victims_to_the_picture(autoencoder, digits, victim):
    queries = digits.contract.canonicalise(digits.test.inputs[:20])
    first = victim.answer(queries)
    pictures = digits.contract.canonicalise(np.clip(autoencoder.reconstruct(queries), 0, 1))
    second = victim.answer(pictures).astype(np.float64)
    by_hand = (first * (np.log(first.astype(np.float64)) - np.log(second))).sum(axis=1)
    np.testing.assert_allclose(VictimOnReconstruction(autoencoder, victim).score(queries, first), by_hand, rtol=1e-4, atol=1e-7)


def test_both_keep_the_contract_of_detectors(autoencoder, digits, victim):
    queries = digits.test.inputs[:20]
    check_detector(autoencoder, queries, victim.answer(queries))
    check_detector(VictimOnReconstruction(autoencoder, victim), queries, victim.answer(queries))


def test_images_of_odd_sides_and_vectors_have_autoencoders_too():
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 256, (40, 3, 7, 10), dtype=np.uint8)
    found = PlainAutoencoder(InputContract.images(3, 7, 10)).fit(Split(odd, None, 0), SHORT.with_(epochs=1))
    assert found.reconstruct(odd / np.float32(255)).shape == odd.shape
    rows = (rng.standard_normal((200, 6)) * [1, 1, 1, 1, 1, 1e4]).astype(np.float32)
    vectors = PlainAutoencoder(InputContract.vectors(6)).fit(rows)  # the default training
    assert vectors.code == 2
    scores = vectors.score(rows, np.ones((200, 2), np.float32))
    assert 0 < scores.mean() < 1  # in units of each feature, not of the largest
    check_detector(vectors, rows[:10], np.ones((10, 2), np.float32), out_of_bounds=None)


def test_a_stopped_fit_goes_on_to_the_same_weights_and_refuses_other_data(digits, tmp_path):
    config = SHORT.with_(epochs=2)
    whole = PlainAutoencoder(digits.contract).fit(digits.train, config)
    with pytest.raises(TrainingPausedError, match="plain_autoencoder stopped at step 1"):
        PlainAutoencoder(digits.contract).fit(digits.train, config, RunControl(tmp_path, deadline=time.monotonic()))
    with pytest.raises(TrainingError, match="must come from the same training data"):
        PlainAutoencoder(digits.contract).fit(1 - digits.train.inputs, config, RunControl(tmp_path, resume=True))
    resumed = PlainAutoencoder(digits.contract).fit(digits.train, config, RunControl(tmp_path, resume=True))
    for left, right in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(left, right)


def test_impossible_uses_are_refused(autoencoder, digits, victim):
    with pytest.raises(ConfigurationError, match="code must be at least 1 number, got 0"):
        PlainAutoencoder(digits.contract, code=0)
    with pytest.raises(InvalidDataError, match="training data must hold at least 1 row"):
        PlainAutoencoder(digits.contract).fit(digits.train.inputs[:0])
    unfitted = PlainAutoencoder(digits.contract)
    for use in (unfitted.reconstruct, lambda queries: unfitted.score(queries, np.ones((len(queries), 10), np.float32))):
        with pytest.raises(NotFittedError, match=r"PlainAutoencoder needs fit\(\)"):
            use(digits.test.inputs[:2])
    other = TorchVictim(victim.module, InputContract.images(1, 8, 8, name="other"), classes=10)
    with pytest.raises(ConfigurationError, match="victim and autoencoder must share a contract"):
        VictimOnReconstruction(autoencoder, other)
    with pytest.raises(InvalidQueryError, match="must have 10 columns, the victim's classes, got 3"):
        VictimOnReconstruction(autoencoder, victim).score(digits.test.inputs[:2], np.ones((2, 3), np.float32))
