"""Deviations: values by hand, agreement with the naive formulas, digits kept where both answers are sure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from sameguard.scoring import deviations


def of(victim_probs: list[float], auxiliary_probs: list[float]) -> dict[str, float]:
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(np.array(auxiliary_probs)), -1e6)
    found = deviations(np.array([victim_probs], np.float32), logits[None, None])
    return {name.removeprefix("deviation_"): float(values[0]) for name, values in found.items()}


def test_even_against_one_to_three_by_hand():
    found = of([0.5, 0.5], [0.25, 0.75])
    assert found["kl"] == pytest.approx(0.1438, abs=5e-5)  # nats, summed over the classes: the mean form would give half
    assert found["squared"] == pytest.approx(2 * 0.25**2)
    assert found["disagreement"] == pytest.approx(0.5)


def test_equal_answers_deviate_by_nothing_but_the_victims_own_doubt():
    probs = [0.125, 0.25, 0.625]
    found = of(probs, probs)
    assert found["kl"] == pytest.approx(0.0, abs=1e-15)
    assert found["squared"] == pytest.approx(0.0, abs=1e-15)
    assert found["disagreement"] == pytest.approx(1 - sum(p * p for p in probs))


def test_opposite_certainties_reach_the_upper_ends():
    found = of([1.0, 0.0], [0.0, 1.0])
    assert found["squared"] == pytest.approx(2.0)
    assert found["disagreement"] == pytest.approx(1.0)
    assert found["kl"] > 1e5


def test_a_label_only_victim_is_judged_by_the_probability_of_its_label():
    found = of([0.0, 1.0, 0.0], [0.2, 0.7, 0.1])
    assert found["disagreement"] == pytest.approx(0.3)
    assert found["kl"] == pytest.approx(-np.log(0.7))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 10_000), st.floats(0.1, 8.0))
def test_deviations_equal_the_naive_formulas_averaged_over_the_passes(classes, passes, seed, scale):
    rng = np.random.default_rng(seed)
    victim = softmax(rng.normal(scale=scale, size=(4, classes)), axis=1).astype(np.float32)
    logits = rng.normal(scale=scale, size=(4, passes, classes))
    found = deviations(victim, logits)
    p, q = victim.astype(np.float64)[:, None], softmax(logits, axis=2)
    assert np.allclose(found["deviation_squared"], ((p - q) ** 2).sum(axis=2).mean(axis=1), atol=1e-12)
    assert np.allclose(found["deviation_disagreement"], (1 - (p * q).sum(axis=2)).mean(axis=1), atol=1e-6)  # p sums to 1 in float32
    assert np.allclose(found["deviation_kl"], np.maximum(rel_entr(p, q).sum(axis=2), 0).mean(axis=1), atol=1e-9)
    assert all((values >= 0).all() for values in found.values())


@pytest.mark.parametrize("margin", [20.0, 40.0, 80.0, 300.0])
def test_tiny_disagreements_keep_their_relative_precision(margin):
    """1 - sum p q is exactly 0 from a margin of 40 on; scores would tie there and the threshold would mean nothing."""
    victim = np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)
    found = deviations(victim, np.array([[[0.0, margin, 0.0, 0.0]]]))["deviation_disagreement"][0]
    assert found == pytest.approx(3 * np.exp(-margin) / (1 + 3 * np.exp(-margin)), rel=1e-9, abs=0)


def test_float32_logits_are_computed_in_float64():
    found = deviations(np.array([[1.0, 0.0]], np.float32), np.array([[[60.0, 0.0]]], np.float32))
    assert all(values.dtype == np.float64 for values in found.values())
    assert found["deviation_disagreement"][0] == pytest.approx(np.exp(-60.0), rel=1e-9, abs=0)
    assert found["deviation_kl"][0] == pytest.approx(np.exp(-60.0), abs=1e-15)


def test_huge_logits_neither_overflow_nor_warn():
    found = deviations(np.array([[0.5, 0.5]], np.float32), np.array([[[1e30, -1e30]]]))
    assert found["deviation_squared"][0] == pytest.approx(0.5)
    assert np.isfinite(found["deviation_kl"][0])


def test_nan_logits_stay_nan_in_their_row_only():
    logits = np.zeros((2, 1, 3))
    logits[0, 0, 1] = np.nan
    found = deviations(np.full((2, 3), 1 / 3, np.float32), logits)
    assert all(np.isnan(values).tolist() == [True, False] for values in found.values())
