"""Margin queries: inside the ball, over the boundary, no further; and what a run of them asks."""

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import Attack, CloudLeak
from sameguard.attacks.cloud_leak import margin_queries
from sameguard.contract import InputContract
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=2, batch_size=16, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, 4)).astype(np.float32)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(WEIGHTS.copy()))

    def forward(self, images):
        return images.flatten(1) @ self.weights


def leads(images, own):
    """By how much the logit of the class `own` leads the next one."""
    logits = images.reshape(len(images), -1) @ WEIGHTS
    lead = logits[np.arange(len(images)), own]
    logits[np.arange(len(images)), own] = -np.inf
    return lead - logits.max(axis=1)


@pytest.fixture(scope="module")
def proxy():
    return CONTRACT.canonicalise(np.random.default_rng(0).random((150, 1, 8, 8), dtype=np.float32))


def victim():
    return BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=4, output="logits")


def thief(proxy, budget=60, **changes):
    settings = {"rounds": 2, "steps": 4, "round_fit": SHORT, "config": SHORT, **changes}
    return CloudLeak(proxy, lambda: SmallConv(4, width=4), budget, **settings)


def test_margin_queries_stay_in_the_ball_and_the_bounds_and_lose_their_lead(proxy):
    own = (proxy.reshape(len(proxy), -1) @ WEIGHTS).argmax(axis=1)
    moved = margin_queries(Linear(), proxy, epsilon=8 / 255, steps=20, margin=0.5)
    assert np.abs(moved - proxy).max() <= 8 / 255 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    before, after = leads(proxy, own), leads(moved, own)
    assert (after <= before + 1e-5).all()
    assert (
        after[before < 1.0] <= -0.5 + 1e-4
    ).all()  # these are near enough: every step of an epsilon's eighth gains about .5 in the logits
    assert np.abs(CONTRACT.canonicalise(moved) - proxy).max() <= 8 / 255 + 1e-6  # the ball's radius is a whole number of levels


def test_an_image_that_has_arrived_moves_no_further_and_without_margin_it_stops_at_the_boundary(proxy):
    own = (proxy.reshape(len(proxy), -1) @ WEIGHTS).argmax(axis=1)
    few, many = (margin_queries(Linear(), proxy, epsilon=0.2, steps=steps, margin=0.0) for steps in (200, 400))
    step_gain = np.abs(WEIGHTS[:, :, None] - WEIGHTS[:, None]).sum(axis=0).max() * 2.5 * 0.2 / 200
    assert (leads(few, own) <= 1e-4).all()
    assert (leads(few, own) >= -step_gain - 1e-4).all()
    assert np.abs(few - many).max() < 0.1


def test_natural_images_come_first_and_each_image_is_used_once(proxy):
    meter = MeteredEndpoint(victim(), budget=100, record=True)
    attack = thief(proxy)
    assert isinstance(attack, Attack)
    found = attack.run(meter, 0)
    assert found.used == meter.used == 60
    np.testing.assert_array_equal(found.queries, meter.recorded().queries)
    owned = {row.tobytes() for row in proxy}
    assert [row.tobytes() in owned for row in found.queries[:12]] == [True] * 12
    distances = np.abs(found.queries[:, None] - proxy[None]).reshape(60, 150, -1).max(axis=2)  # to each image of the proxy
    parents = distances.argmin(axis=1)
    assert (distances.min(axis=1) <= 8 / 255 + 1e-6).all()
    assert len(set(parents)) == 60
    assert found.notes == {"start": 12, "rounds": 2, "epsilon": 8 / 255}


@pytest.mark.parametrize(("budget", "rounds", "expected"), [(60, 7, 7), (11, 10, 9), (1, 3, 0), (7, 4, 3)])
def test_the_rounds_fill_the_budget_exactly(proxy, budget, rounds, expected):
    found = thief(proxy, budget, rounds=rounds).run(victim(), 0)
    assert found.used == budget
    assert found.notes["rounds"] == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epsilon": 0.0}, ConfigurationError, r"epsilon must be positive and margin at least 0, got 0\.0 and 0\.5"),
        ({"margin": -1.0}, ConfigurationError, r"got 0\.03\d* and -1\.0"),
        ({"steps": 0}, ConfigurationError, "steps and rounds must be at least 1, got 0 and 2"),
        ({"rounds": 0}, ConfigurationError, "got 4 and 0"),
        ({"start_share": 0.0}, ConfigurationError, r"start_share must be in \(0, 1\], got 0\.0"),
        ({"budget": 151}, InvalidDataError, "got 150 for a budget of 151"),
    ],
)
def test_impossible_settings_are_refused_at_once(proxy, changes, error, message):
    with pytest.raises(error, match=message):
        thief(proxy, **changes)
