"""Noise queries: their distribution and grid, that SAME sees them, and where there is nothing to draw between."""

import copy

import numpy as np
import pytest

from sameguard.attacks import NoiseQueries
from sameguard.attacks.noise import noise
from sameguard.contract import InputContract
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.evaluation import auroc
from sameguard.networks import MLP, SmallConv
from sameguard.scoring.texture import texture_terms
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

SHORT = FitConfig(epochs=1, batch_size=32, learning_rate=1e-3, precision="fp32")


def vector_victim(bounds):
    contract = InputContract.vectors(3, bounds=bounds)
    return BlackBox(lambda raw: np.eye(3, dtype=np.float32)[raw.argmax(axis=1)], contract, classes=3)


def test_bernoulli_pixels_are_black_or_white_with_even_chances_and_uniform_ones_are_spread():
    contract, rng = InputContract.images(1, 8, 8), np.random.default_rng(0)
    coins = noise(contract, 500, "bernoulli", rng)
    np.testing.assert_array_equal(coins, contract.canonicalise(coins))  # on the grid as drawn
    assert set(np.unique(coins)) == {0.0, 1.0}
    assert abs(coins.mean() - 0.5) < 0.01
    spread = noise(contract, 500, "uniform", rng)
    np.testing.assert_allclose(np.quantile(spread, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


@pytest.mark.parametrize("kind", ["uniform", "bernoulli"])
def test_noise_lies_between_the_bounds_of_vectors_too(kind):
    meter = MeteredEndpoint(vector_victim((-2.0, 6.0)), budget=200, record=True)
    found = NoiseQueries(lambda: MLP(3, 3, width=8), kind=kind, config=SHORT).run(meter, 0)
    np.testing.assert_array_equal(found.queries, meter.recorded().queries)
    assert found.queries.min() >= -2
    assert found.queries.max() <= 6
    assert abs(found.queries.mean() - 2) < 0.5
    assert found.notes == {"kind": kind}


def test_same_its_reconstruction_error_and_total_variation_all_see_bernoulli_noise(digits, victim, fitted_same):
    found = NoiseQueries(lambda: SmallConv(10), 100, kind="bernoulli", config=SHORT).run(victim, 0)
    honest = digits.contract.canonicalise(digits.test.inputs)
    answers = victim.answer(honest)
    same = copy.copy(fitted_same)  # the combination that is fitted here stays here
    same.fit_combination(same.score_terms(digits.benign, victim.answer(digits.contract.canonicalise(digits.benign))))
    assert auroc(same.score(honest, answers), same.score(found.queries, found.probs)) >= 0.99
    terms = [same.score_terms(*asked) for asked in ((honest, answers), (found.queries, found.probs))]
    assert auroc(*(term["error_masked"] for term in terms)) >= 0.99
    assert auroc(*(term["error_full"] for term in terms)) >= 0.85  # at 8x8 an unmasked autoencoder copies noise rather well
    variation = [texture_terms(queries, digits.contract)["total_variation"] for queries in (honest, found.queries)]
    assert auroc(*variation) >= 0.99


def test_noise_without_bounds_is_refused_before_the_first_query():
    meter = MeteredEndpoint(vector_victim((-np.inf, np.inf)), budget=10)
    with pytest.raises(ConfigurationError, match=r"noise needs finite bounds to draw between, got a contract with bounds \(-inf, inf\)"):
        NoiseQueries(lambda: MLP(3, 3)).run(meter, 0)
    assert meter.used == 0


def test_an_unknown_kind_of_noise_is_refused():
    with pytest.raises(ConfigurationError, match="kind must be uniform or bernoulli, got 'gaussian'"):
        NoiseQueries(lambda: SmallConv(10), 10, kind="gaussian")
