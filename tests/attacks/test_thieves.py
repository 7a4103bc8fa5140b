"""Thieves who know the guard: what they send, what it costs, what is marked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sameguard.attacks import BenignMix, FilteredKnockoff, KnockoffNets, ProjectedKnockoff, match_levels
from sameguard.contract import InputContract
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=1, batch_size=16, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(3).standard_normal((64, 3)).astype(np.float32)
PROXY = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
BENIGN = np.random.default_rng(1).integers(0, 64, (60, 1, 8, 8), dtype=np.uint8)


def meter(budget: int) -> MeteredEndpoint:
    victim = BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=3, output="logits")
    return MeteredEndpoint(victim, budget=budget, record=True)


def substitute():
    return SmallConv(3, width=4)


def test_the_filtering_thief_sends_the_least_suspicious_images_and_pays_for_those_alone():
    brightness = lambda queries: queries.reshape(len(queries), -1).mean(axis=1)  # noqa: E731
    endpoint = meter(40)
    found = FilteredKnockoff(PROXY, substitute, score=brightness, config=SHORT).run(endpoint, 0)
    wanted = np.sort(brightness(CONTRACT.canonicalise(PROXY / np.float32(255.0))))[:40]
    assert np.allclose(np.sort(brightness(found.queries)), wanted)
    assert endpoint.used == 40
    assert found.notes["highest_score_sent"] == pytest.approx(wanted[-1])
    assert not np.allclose(brightness(found.queries), wanted)  # the order of sending tells nothing


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda queries: np.zeros((len(queries), 2)), r"score must give one number for each of 200 queries, got shape \(200, 2\)"),
        (
            lambda queries: np.where(np.arange(len(queries)) < 3, np.nan, 0.0),
            "score must give a number for each query, got NaN for 3 of 200",
        ),
    ],
)
def test_a_score_that_is_no_score_is_refused_before_the_first_query(bad, message):
    endpoint = meter(40)
    with pytest.raises(ConfigurationError, match=message):
        FilteredKnockoff(PROXY, substitute, score=bad, config=SHORT).run(endpoint, 0)
    assert endpoint.used == 0


def test_the_projecting_thief_sends_pictures_of_pictures():
    halved = lambda queries: queries / 2  # noqa: E731
    found = ProjectedKnockoff(PROXY, substitute, project=halved, passes=2, config=SHORT).run(meter(30), 0)
    rows = np.random.default_rng(0).choice(200, size=30, replace=False)
    assert np.abs(found.queries - PROXY[rows] / np.float32(255.0) / 4).max() < 0.6 / 255
    assert found.notes["passes"] == 2
    with pytest.raises(ConfigurationError, match="passes must be at least 1, got 0"):
        ProjectedKnockoff(PROXY, substitute, project=halved, passes=0)
    with pytest.raises(InvalidDataError, match="got 200 for a budget of 201"):
        ProjectedKnockoff(PROXY, substitute, 201, project=halved)


def test_pictures_are_clipped_to_the_bounds_of_the_queries_and_another_shape_is_refused_before_the_first_query():
    found = ProjectedKnockoff(PROXY, substitute, project=lambda queries: 3 * queries - 1, config=SHORT).run(meter(30), 0)
    assert (found.queries.min(), found.queries.max()) == (0.0, 1.0)
    vectors = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    victim = BlackBox(lambda raw: raw[:, :3], InputContract.vectors(5), classes=3, output="logits")
    found = ProjectedKnockoff(vectors, lambda: nn.Linear(5, 3), 40, project=lambda queries: queries - 2, config=SHORT).run(victim, 0)
    assert found.queries.min() < -2
    endpoint = meter(30)
    with pytest.raises(ConfigurationError, match=r"project must keep the shape of the queries, \(30, 1, 8, 8\), got \(30, 64\)"):
        ProjectedKnockoff(PROXY, substitute, project=lambda queries: queries.reshape(-1, 64), config=SHORT).run(endpoint, 0)
    assert endpoint.used == 0


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_the_mixing_thief_marks_what_is_benign_and_pays_for_it(ratio):
    endpoint = meter(80)
    found = BenignMix(PROXY, substitute, benign=BENIGN, ratio=ratio, config=SHORT).run(endpoint, 0)
    owned = {row.tobytes() for row in CONTRACT.canonicalise(BENIGN / np.float32(255.0))}
    assert [row.tobytes() in owned for row in found.queries] == found.natural.tolist()
    assert endpoint.used == 80
    assert abs(found.natural.mean() - ratio) < 0.2
    assert len({row.tobytes() for row in found.queries}) == 80


def test_a_mixture_that_cannot_be_had_is_refused():
    with pytest.raises(ConfigurationError, match=r"ratio must be in \[0, 1\), the benign share of the queries, got 1"):
        BenignMix(PROXY, substitute, benign=BENIGN, ratio=1.0)
    endpoint = meter(150)
    with pytest.raises(InvalidDataError, match="benign must hold at least as many rows"):
        BenignMix(PROXY, substitute, benign=BENIGN, ratio=0.9, config=SHORT).run(endpoint, 0)
    assert endpoint.used == 0


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_matched_levels_are_those_of_a_benign_image_in_the_order_of_the_query(seed):
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, 6, (5, 1, 4, 4)).astype(np.float32) / 255  # many ties
    benign = rng.integers(0, 256, (3, 1, 4, 4)).astype(np.float32) / 255
    matched = match_levels(queries, benign)
    for row in range(5):
        assert np.array_equal(np.sort(matched[row].ravel()), np.sort(benign[row % 3].ravel()))
        order = np.argsort(queries[row].ravel(), kind="stable")
        assert (np.diff(matched[row].ravel()[order]) >= 0).all()


def test_a_thief_with_borrowed_grey_levels_sends_the_histograms_of_benign_images():
    benign = CONTRACT.canonicalise(BENIGN / np.float32(255.0))
    found = KnockoffNets(PROXY, substitute, transform=lambda queries: match_levels(queries, benign), config=SHORT).run(meter(70), 0)
    assert found.queries.max() <= 63 / 255 + 1e-6
    assert np.array_equal(np.sort(found.queries.reshape(70, -1)), np.sort(benign.reshape(60, -1))[np.arange(70) % 60])


@pytest.mark.parametrize("benign", [np.zeros((2, 1, 4, 4), np.float32), np.zeros((0, 1, 8, 8), np.float32)])
def test_levels_of_images_of_another_size_or_of_none_are_refused(benign):
    with pytest.raises(ConfigurationError, match="benign images must have the queries' shape"):
        match_levels(np.zeros((2, 1, 8, 8), np.float32), benign)
