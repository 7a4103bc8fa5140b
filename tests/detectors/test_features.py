"""Feature distances against values by hand and naive loops; penultimate features of each of our networks."""

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.contract import InputContract
from sameguard.detectors import Mahalanobis, NearestNeighbours, RelativeMahalanobis, penultimate
from sameguard.detectors.features import Bank
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.networks import MLP, Conv3, FastCifar, ResNet18, SmallConv
from sameguard.networks.fast_cifar import HEAD_SCALE
from sameguard.testing.detectors import check_detector
from sameguard.training import seeded


def plain(queries):
    """The queries themselves as features."""
    return queries.reshape(len(queries), -1)


def answers(queries):
    return np.full((len(queries), 2), 0.5, np.float32)


def score(detector, rows):
    queries = np.asarray(rows, np.float32)
    return detector.score(queries, answers(queries))


def test_nearest_neighbours_measures_between_directions_to_the_kth_of_a_known_bank():
    bank = np.array([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]], np.float32)  # unit vectors at 0, 90 and 180 degrees
    queries = [[7.0, 0.0], [0.1, 0.1]]
    far = np.sqrt(2 - np.sqrt(2))  # between unit vectors 45 degrees apart
    np.testing.assert_allclose(score(NearestNeighbours(plain, k=1).fit(bank), queries), [0.0, far], atol=1e-6)
    np.testing.assert_allclose(score(NearestNeighbours(plain, k=2).fit(bank), queries), [np.sqrt(2), far], rtol=1e-6)
    np.testing.assert_allclose(score(NearestNeighbours(plain, k=3).fit(bank), queries)[0], 2.0, rtol=1e-6)


def test_a_bank_finds_the_kth_neighbour_as_a_loop_does_and_no_distance_to_itself():
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((200, 30)).astype(np.float32), rng.standard_normal((40, 30)).astype(np.float32)
    for k in (1, 5):
        by_hand = [sorted(np.sqrt(((query.astype(np.float64) - row) ** 2).sum()) for row in rows)[k - 1] for query in queries]
        np.testing.assert_allclose(Bank(rows, k).distance(queries), by_hand, rtol=1e-12)
    np.testing.assert_array_equal(Bank(rows, 1).distance(rows), 0.0)


def identity_covariance(means):
    """Rows and labels whose classes have these means and whose shared covariance over n is exactly I."""
    width = means.shape[1]
    corners = np.concatenate([np.eye(width), -np.eye(width)]) * np.sqrt(width)
    rows = np.concatenate([mean + corners for mean in means])
    return rows.astype(np.float32), np.repeat(np.arange(len(means)), 2 * width)


def test_mahalanobis_with_unit_covariance_is_the_squared_euclidean_distance_to_the_nearest_mean():
    means = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])
    detector = Mahalanobis(plain).fit(*identity_covariance(means))
    queries = [[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [10.0, 0.0, 4.0]]
    np.testing.assert_allclose(score(detector, queries), [0.0, 9.0, 16.0], atol=1e-5)


def test_both_mahalanobis_distances_agree_with_an_inverted_covariance():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 2, 5], 60)  # classes without rows in between
    mixing = rng.standard_normal((4, 4))
    rows = (rng.standard_normal((180, 4)) @ mixing + labels[:, None]).astype(np.float32)
    queries = rng.standard_normal((10, 4)).astype(np.float32) * 3
    wide = rows.astype(np.float64)
    means = {name: wide[labels == name].mean(axis=0) for name in (0, 2, 5)}
    centred = np.stack([row - means[name] for row, name in zip(wide, labels, strict=True)])
    within, whole = np.linalg.inv(centred.T @ centred / 180), np.linalg.inv(np.cov(wide.T, bias=True))
    nearest = [min((query - mean) @ within @ (query - mean) for mean in means.values()) for query in queries]
    background = [(query - wide.mean(axis=0)) @ whole @ (query - wide.mean(axis=0)) for query in queries]
    np.testing.assert_allclose(score(Mahalanobis(plain).fit(rows, labels), queries), nearest, rtol=1e-6)
    relative = score(RelativeMahalanobis(plain).fit(rows, labels), queries)
    np.testing.assert_allclose(relative, np.subtract(nearest, background), rtol=1e-6, atol=1e-6)


def test_with_one_class_the_relative_distance_is_nothing():
    rows = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32)
    detector = RelativeMahalanobis(plain).fit(rows, np.zeros(50, np.int64))
    np.testing.assert_allclose(score(detector, rows[:5] * 9), 0.0, atol=1e-6)


def test_a_feature_that_never_fired_in_training_speaks_when_it_does_and_cancels_in_the_relative_distance():
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.standard_normal((80, 2)), np.zeros((80, 1))], axis=1).astype(np.float32)
    labels = np.arange(80) % 2
    silent, firing = [[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.1]]
    near, far = (score(Mahalanobis(plain).fit(rows, labels), queries)[0] for queries in (silent, firing))
    assert near + 100 < far < np.inf
    relative = RelativeMahalanobis(plain).fit(rows, labels)
    np.testing.assert_allclose(score(relative, silent), score(relative, firing), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape", "factor"),
    [
        (lambda: Conv3(10), (1, 28, 28), 1.0),
        (lambda: SmallConv(10), (1, 8, 8), 1.0),
        (lambda: FastCifar(10, widths=(8, 8, 16)), (3, 32, 32), HEAD_SCALE),
        (lambda: ResNet18(10), (3, 32, 32), 1.0),
        (lambda: MLP(6, 10), (6,), 1.0),
    ],
)
def test_penultimate_features_are_what_the_last_linear_layer_turns_into_logits(make, shape, factor):
    with seeded(0):
        network = make()
    network.train()
    queries = np.random.default_rng(0).random((5, *shape), dtype=np.float32)
    features = penultimate(network, batch_size=2)(queries)
    assert not network.training  # BatchNorm must not see the batch
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    assert features.shape == (5, last.in_features)
    with torch.no_grad():
        logits = network(torch.from_numpy(queries)).numpy()
        np.testing.assert_allclose(last(torch.from_numpy(features)).numpy() * factor, logits, rtol=1e-4, atol=1e-5)
    assert not last._forward_pre_hooks  # nothing is left behind
    assert penultimate(network)(queries[:0]).shape == (0, last.in_features)


def test_all_three_keep_the_contract_of_detectors(digits, victim):
    features = penultimate(victim.module)
    inputs, labels = digits.train.inputs, digits.train.labels
    queries = digits.test.inputs[:20]
    for detector in (
        NearestNeighbours(features).fit(inputs),
        Mahalanobis(features, digits.contract).fit(inputs, labels),
        RelativeMahalanobis(features).fit((inputs * 255).round().astype(np.uint8), labels),
    ):
        assert detector.contract == digits.contract
        check_detector(detector, queries, victim.answer(queries))


def test_features_of_noise_lie_further_out_than_those_of_digits(digits, victim):
    detector = NearestNeighbours(penultimate(victim.module), k=10).fit(digits.train.inputs)
    noise = np.random.default_rng(0).integers(0, 2, (100, 1, 8, 8)).astype(np.float32)
    benign, malicious = (detector.score(queries, victim.answer(queries)) for queries in (digits.test.inputs, noise))
    assert np.median(malicious) > np.quantile(benign, 0.9)


def test_impossible_uses_are_refused():
    rows, labels = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
    with pytest.raises(ConfigurationError, match="k must be at least 1, got 0"):
        NearestNeighbours(plain, k=0)
    with pytest.raises(InvalidDataError, match="at least k = 5 rows, got 4"):
        NearestNeighbours(plain, k=5).fit(rows)
    with pytest.raises(InvalidDataError, match=r"labels must be \(4,\), one for each input, got \(3,\)"):
        Mahalanobis(plain).fit(rows, labels[:3])
    with pytest.raises(InvalidDataError, match="at least 1 row, got 0"):
        NearestNeighbours(plain, contract=InputContract.vectors(2)).fit(rows[:0])
    with pytest.raises(InvalidDataError, match=r"features must be finite and \(4, width\), got shape \(3, 2\)"):
        NearestNeighbours(lambda queries: queries[1:], k=1).fit(rows)
    with pytest.raises(ConfigurationError, match=r"a network with an nn.Linear, got Conv2d without one"):
        penultimate(nn.Conv2d(1, 1, 1))
    for detector in (NearestNeighbours(plain), Mahalanobis(plain), RelativeMahalanobis(plain)):
        with pytest.raises(NotFittedError, match=r"needs fit\(\) before it can score"):
            score(detector, rows)
