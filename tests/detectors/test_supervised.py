"""The upper bound that cheats: a classifier trained on the very attack."""

import numpy as np
import pytest
import torch

from sameguard.detectors import SupervisedUpperBound
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, NotFittedError
from sameguard.evaluation import auroc
from sameguard.networks import SmallConv, predict_logits
from sameguard.testing import check_detector
from sameguard.training import FitConfig

SHORT = FitConfig(epochs=8, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


def inverted(queries):
    """An attack that no one-sided texture term sees: the same images as negatives."""
    return 1 - queries


@pytest.fixture(scope="module")
def bound(digits):
    return SupervisedUpperBound(lambda: SmallConv(2, width=8)).fit(digits.benign, inverted(digits.benign), SHORT)


def test_it_tells_the_attack_that_it_was_shown_from_benign_queries_that_it_was_not(bound, digits, victim):
    benign, malicious = (bound.score(queries, victim.answer(queries)) for queries in (digits.test.inputs, inverted(digits.test.inputs)))
    assert auroc(benign, malicious) > 0.99


def test_the_score_is_the_log_odds_of_malicious(bound, digits, victim):
    queries = digits.contract.canonicalise(digits.test.inputs[:10])
    probs = torch.from_numpy(predict_logits(bound.network, queries)).double().softmax(1).numpy()
    by_hand = np.log(probs[:, 1]) - np.log(probs[:, 0])
    np.testing.assert_allclose(bound.score(queries, victim.answer(queries)), by_hand, rtol=1e-5)


def test_it_keeps_the_contract_of_detectors(bound, digits, victim):
    queries = digits.test.inputs[:20]
    check_detector(bound, queries, victim.answer(queries))


def test_impossible_uses_are_refused(digits):
    queries = digits.benign[:20]
    with pytest.raises(NotFittedError, match=r"SupervisedUpperBound needs fit\(\)"):
        SupervisedUpperBound(lambda: SmallConv(2)).score(queries, np.ones((20, 10), np.float32))
    with pytest.raises(ConfigurationError, match="make_network must give 2 logits"):
        SupervisedUpperBound(lambda: SmallConv(10)).fit(queries, queries, SHORT)
    with pytest.raises(InvalidDataError, match="malicious queries must hold at least 1 row"):
        SupervisedUpperBound(lambda: SmallConv(2)).fit(queries, queries[:0], SHORT)
    with pytest.raises(InvalidQueryError, match="query shape must be"):
        SupervisedUpperBound(lambda: SmallConv(2)).fit(queries, queries[..., :7], SHORT)
