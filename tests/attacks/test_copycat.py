"""Copycat sends what random Knockoff sends and learns from the named class alone."""

import numpy as np
import pytest

from sameguard.attacks import Attack, Copycat, KnockoffNets
from sameguard.contract import InputContract
from sameguard.errors import InvalidDataError
from sameguard.networks import SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

SHORT = FitConfig(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, 4)).astype(np.float32)


def test_it_asks_like_random_knockoff_and_keeps_one_hot_answers():
    victim = BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, InputContract.images(1, 8, 8), classes=4, output="logits")
    proxy = np.random.default_rng(0).random((80, 1, 8, 8), dtype=np.float32)
    attack = Copycat(proxy, lambda: SmallConv(4), 50, config=SHORT)
    assert isinstance(attack, Attack)
    found, soft = attack.run(victim, 0), KnockoffNets(proxy, lambda: SmallConv(4), 50, config=SHORT).run(victim, 0)
    np.testing.assert_array_equal(found.queries, soft.queries)
    np.testing.assert_array_equal(found.probs, np.eye(4, dtype=np.float32)[soft.probs.argmax(axis=1)])


def test_its_proxy_must_cover_the_budget():
    with pytest.raises(InvalidDataError, match="got 20 for a budget of 30"):
        Copycat(np.zeros((20, 1, 8, 8), np.float32), lambda: SmallConv(4), 30)
