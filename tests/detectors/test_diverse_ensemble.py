"""The Ensemble of Diverse Models: similarity and disagreement by hand, who answers what, and a small ensemble on digits."""

import time
from itertools import combinations

import numpy as np
import pytest
import torch

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors import Detector, DiverseEnsemble
from sameguard.detectors.diverse_ensemble import disagreement, similarity_penalty
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.evaluation import accuracy, auroc
from sameguard.networks import MLP, FastCifar, SmallConv, predict_logits
from sameguard.testing import check_detector
from sameguard.training import FitConfig, RunControl, TrainingPausedError
from sameguard.victim import BlackBox

SHORT = FitConfig(epochs=12, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


def noise(rows, seed):
    return np.random.default_rng(seed).integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8)


def small():
    return SmallConv(10, width=8)


@pytest.fixture(scope="module")
def defence(digits):
    return DiverseEnsemble(small, digits.contract, 10, members=3).fit(digits.train, noise(500, seed=1), SHORT)


def test_equal_members_do_not_disagree_and_members_sure_of_distinct_classes_do_wholly():
    row = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(disagreement(np.stack([row] * 4)), 0.0)
    distinct = np.eye(3, dtype=np.float32)[:, None]  # 3 members, 1 query: each sure of another class
    np.testing.assert_allclose(disagreement(distinct), 1.0)


def test_disagreement_is_one_minus_the_mean_cosine_over_pairs():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), (5, 6)).astype(np.float32)  # members, batch, classes
    unit = probs / np.linalg.norm(probs, axis=2, keepdims=True)
    by_hand = [1 - np.mean([unit[a, row] @ unit[b, row] for a, b in combinations(range(5), 2)]) for row in range(6)]
    np.testing.assert_allclose(disagreement(probs), by_hand, rtol=1e-5)


def test_the_similarity_penalty_of_equal_members_is_one_above_that_of_orthogonal_ones():
    equal = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)).expand(3, 4, 3)
    assert similarity_penalty(equal).item() == pytest.approx(np.log(3) + 1, rel=1e-6)
    orthogonal = 100.0 * torch.eye(3)[:, None].expand(3, 4, 3)
    assert similarity_penalty(orthogonal).item() == pytest.approx(np.log(3), rel=1e-6)


def test_the_similarity_penalty_is_the_log_of_the_sum_over_pairs():
    logits = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1))
    probs = logits.softmax(2).numpy().astype(np.float64)
    unit = probs / np.linalg.norm(probs, axis=2, keepdims=True)
    rows = [np.log(sum(np.exp(unit[a, row] @ unit[b, row]) for a, b in combinations(range(4), 2))) for row in range(2)]
    assert similarity_penalty(logits).item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_it_knows_digits_and_its_members_part_on_fresh_outliers(defence, digits, victim):
    assert isinstance(defence, Detector)
    assert accuracy(defence.victim, digits.test.inputs, digits.test.labels) > 0.85
    fresh = noise(200, seed=2).astype(np.float32) / np.float32(255)
    benign, malicious = (defence.score(queries, victim.answer(queries)) for queries in (digits.test.inputs, fresh))
    assert auroc(benign, malicious) > 0.95
    assert defence.seconds > 0


def test_the_weight_is_what_makes_them_part(digits):
    config = SHORT.with_(epochs=6)
    fresh = noise(200, seed=2).astype(np.float32) / np.float32(255)
    alike, apart = (
        DiverseEnsemble(small, digits.contract, 10, members=3, diversity_weight=weight).fit(digits.train, noise(500, seed=1), config)
        for weight in (0.0, 3.0)
    )
    near, far = (ensemble.score(fresh, np.ones((200, 10), np.float32)).mean() for ensemble in (alike, apart))
    assert far > near + 0.2


def test_each_query_is_answered_by_the_member_that_its_content_names(defence, digits):
    queries = digits.contract.canonicalise(digits.test.inputs)
    victim, chosen = defence.victim, defence.member_of(digits.contract.canonicalise(digits.test.inputs))
    assert isinstance(victim, BlackBox)
    assert isinstance(victim, Endpoint)
    assert set(chosen) == {0, 1, 2}
    assert np.bincount(chosen).min() > len(queries) / 3 * 0.7
    np.testing.assert_array_equal(defence.member_of(queries[::-1]), chosen[::-1])
    served = victim.query(queries).probs
    for member in range(3):
        logits = torch.from_numpy(predict_logits(defence.networks[member], queries[chosen == member]))
        np.testing.assert_allclose(served[chosen == member], logits.softmax(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(victim.query(queries[5:6]).probs, served[5:6], atol=1e-6)
    nearly = queries + np.float32(0.1 / 255)  # the same on the grid: the same member, the same answer
    np.testing.assert_array_equal(victim.query(nearly).probs, served)


def test_the_score_is_the_members_disagreement_and_keeps_the_contract(defence, digits):
    queries = digits.contract.canonicalise(np.concatenate([digits.test.inputs[:10], noise(10, seed=3) / np.float32(255)]))
    answers = np.full((20, 10), 0.1, np.float32)
    np.testing.assert_allclose(defence.score(queries, answers), disagreement(defence.member_probs(queries)), atol=1e-6)
    check_detector(defence, queries, answers)


def test_a_stopped_fit_goes_on_to_the_same_weights(digits, tmp_path):
    config, outliers = SHORT.with_(epochs=1), noise(100, seed=1)
    make = lambda: DiverseEnsemble(small, digits.contract, 10, members=2)  # noqa: E731
    whole = make().fit(digits.train, outliers, config)
    with pytest.raises(TrainingPausedError, match="diverse_ensemble stopped at step 1"):
        make().fit(digits.train, outliers, config, RunControl(tmp_path, deadline=time.monotonic()))
    resumed = make().fit(digits.train, outliers, config, RunControl(tmp_path, resume=True))
    for left, right in zip(whole.networks.parameters(), resumed.networks.parameters(), strict=True):
        assert torch.equal(left, right)
    first, second = (torch.cat([parameter.flatten() for parameter in network.parameters()]) for network in whole.networks)
    assert not torch.equal(first, second)  # members start apart


def test_members_with_their_own_recipe_all_get_it():
    rng = np.random.default_rng(0)
    train = Split(rng.integers(0, 256, (32, 3, 24, 24), dtype=np.uint8), np.arange(32) % 4, 4)
    outliers = rng.integers(0, 256, (20, 3, 24, 24), dtype=np.uint8)
    defence = DiverseEnsemble(lambda: FastCifar(4, widths=(8, 8, 8)), InputContract.images(3, 24, 24), 4, members=2).fit(train, outliers)
    assert torch.equal(defence.networks[0].whiten.weight, defence.networks[1].whiten.weight)  # both fitted to the same images
    assert defence.networks[0].shift.abs().sum() > 0


def test_vectors_can_be_defended_too():
    rng = np.random.default_rng(0)
    train = Split(rng.standard_normal((60, 4)).astype(np.float32), np.arange(60) % 3, 3)
    defence = DiverseEnsemble(lambda: MLP(4, 3, width=8), InputContract.vectors(4), 3, members=2)
    defence.fit(train, train.inputs + 5)
    assert defence.victim.query(train.inputs).probs.shape == (60, 3)


def test_impossible_settings_and_uses_before_fit_are_refused(digits):
    with pytest.raises(ConfigurationError, match="members must be at least 2, got 1: one model cannot disagree with itself"):
        DiverseEnsemble(small, digits.contract, 10, members=1)
    with pytest.raises(ConfigurationError, match="diversity_weight must be a number >= 0, got -1"):
        DiverseEnsemble(small, digits.contract, 10, diversity_weight=-1.0)
    unfitted = DiverseEnsemble(small, digits.contract, 10)
    with pytest.raises(NotFittedError, match="DiverseEnsemble needs"):
        unfitted.score(digits.test.inputs[:4], np.ones((4, 10), np.float32))
    with pytest.raises(NotFittedError, match="DiverseEnsemble needs"):
        _ = unfitted.victim
    with pytest.raises(InvalidDataError, match="diverse_ensemble needs labelled training data"):
        unfitted.fit(Split(digits.train.raw, None, 10), noise(5, seed=0))
    with pytest.raises(ConfigurationError, match="must give 10 logits"):
        DiverseEnsemble(lambda: SmallConv(3), digits.contract, 10).fit(digits.train, noise(5, seed=0))
