"""Metrics against closed forms and against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.evaluation import (
    accuracy,
    aupr_trapezoid,
    auroc,
    average_precision,
    bootstrap_interval,
    bootstrap_intervals,
    fidelity,
    fpr_at_tpr,
    tpr_at_fpr,
)
from sameguard.victim import BlackBox

ALL = (auroc, average_precision, aupr_trapezoid, fpr_at_tpr, tpr_at_fpr)
LOW, HIGH = np.arange(30.0), np.arange(100.0, 120.0)
few_levels = arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 8).map(float))


def test_perfect_separation_gives_one_one_and_no_false_positives():
    assert auroc(LOW, HIGH) == average_precision(LOW, HIGH) == aupr_trapezoid(LOW, HIGH) == tpr_at_fpr(LOW, HIGH) == 1.0
    assert fpr_at_tpr(LOW, HIGH) == 0.0


def test_the_positive_class_is_malicious_and_higher_is_more_suspicious():
    assert auroc(HIGH, LOW) == 0.0
    assert fpr_at_tpr(HIGH, LOW) == 1.0
    assert tpr_at_fpr(HIGH, LOW) == 0.0


def test_constant_scores_give_one_half_and_the_prevalence():
    benign, malicious = np.full(70, 3.0), np.full(30, 3.0)
    assert auroc(benign, malicious) == 0.5
    assert average_precision(benign, malicious) == pytest.approx(0.3, abs=1e-12)
    assert fpr_at_tpr(benign, malicious) == 1.0
    assert tpr_at_fpr(benign, malicious) == 0.0


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.41])
def test_a_gaussian_shift_gives_its_closed_forms(shift):
    quantiles = norm.ppf((np.arange(4000) + 0.5) / 4000)  # a normal sample without noise
    benign, malicious = quantiles, quantiles + shift
    assert auroc(benign, malicious) == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=1e-3)
    assert fpr_at_tpr(benign, malicious) == pytest.approx(norm.cdf(norm.ppf(0.95) - shift), abs=2e-3)
    assert tpr_at_fpr(benign, malicious, fpr=0.05) == pytest.approx(norm.cdf(shift - norm.ppf(0.95)), abs=2e-3)


def test_small_cases_by_hand():
    benign, malicious = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0])
    assert auroc(benign, malicious) == pytest.approx((1.5 + 2 + 3) / 9)
    assert fpr_at_tpr(benign, malicious, tpr=1 / 3) == 0.0  # threshold 5
    assert fpr_at_tpr(benign, malicious, tpr=0.5) == pytest.approx(1 / 3)  # threshold 3: 4 is above it
    assert fpr_at_tpr(benign, malicious) == pytest.approx(2 / 3)  # threshold 2: 2 and 4
    assert tpr_at_fpr(benign, malicious, fpr=1 / 3) == pytest.approx(2 / 3)
    assert average_precision(benign, malicious) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_the_required_rate_is_met_exactly_where_it_can_be():
    malicious = np.arange(20.0)  # 19 of 20 are >= 1: exactly .95
    assert fpr_at_tpr(np.array([0.5, 1.5]), malicious) == 0.5


@given(few_levels, few_levels)
def test_they_equal_scikit_learn_on_plain_scores_and_the_pairwise_count(benign, malicious):
    labels = np.repeat([0, 1], [len(benign), len(malicious)])
    scores = np.concatenate([benign, malicious])
    assert auroc(benign, malicious) == pytest.approx(roc_auc_score(labels, scores))
    wins = (malicious[:, None] > benign).mean() + 0.5 * (malicious[:, None] == benign).mean()
    assert auroc(benign, malicious) == pytest.approx(wins)
    assert average_precision(benign, malicious) == pytest.approx(average_precision_score(labels, scores))
    thresholds = [value for value in np.unique(scores) if (malicious >= value).mean() >= 0.95]
    assert fpr_at_tpr(benign, malicious) == pytest.approx((benign >= max(thresholds)).mean())


@given(few_levels, few_levels)
def test_only_the_order_of_the_scores_counts(benign, malicious):
    for metric in ALL:
        assert metric(benign, malicious) == metric(np.exp(benign), np.exp(malicious))


def test_infinite_scores_are_ranked_like_any_other():
    benign, malicious = np.array([-np.inf, 0.0, 1.0]), np.array([np.inf, np.inf, 2.0])
    assert auroc(benign, malicious) == 1.0
    assert tpr_at_fpr(benign, malicious) == 1.0


@pytest.mark.parametrize("metric", ALL)
def test_nan_and_empty_groups_raise(metric):
    bad = np.array([1.0, np.nan])
    with pytest.raises(InvalidDataError, match="malicious scores must not be NaN, got 1 of 2"):
        metric(LOW, bad)
    with pytest.raises(InvalidDataError, match="benign scores must not be NaN"):
        metric(bad, HIGH)
    with pytest.raises(InvalidDataError, match="benign scores must be at least 1, got 0"):
        metric(np.empty(0), HIGH)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_rates_out_of_range_raise(rate):
    with pytest.raises(ConfigurationError, match=r"tpr must be in \(0, 1\]"):
        fpr_at_tpr(LOW, HIGH, tpr=rate)
    with pytest.raises(ConfigurationError, match=r"fpr must be in \(0, 1\]"):
        tpr_at_fpr(LOW, HIGH, fpr=rate)


# ---------------------------------------------------------------------- extraction


class Pixel(nn.Module):
    """Class 1 where the mean is above one half, else class 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        mean = images.flatten(1).mean(1) - 0.5
        return nn.functional.pad(mean[:, None], (1, 0)) * self.scale


CONTRACT = InputContract.images(1, 2, 2)


def always_one(raw):
    return np.eye(2, dtype=np.float32)[np.ones(len(raw), int)]


def test_accuracy_is_against_the_truth_and_fidelity_against_the_victim():
    inputs = np.array([0.1, 0.2, 0.8, 0.9], np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)
    labels = np.array([0, 1, 1, 1])
    victim = BlackBox(always_one, CONTRACT, classes=2)
    assert accuracy(Pixel(), inputs, labels) == 0.75
    assert accuracy(victim, inputs, labels) == 0.75
    assert fidelity(Pixel(), victim, inputs) == 0.5
    assert fidelity(victim, victim, inputs) == 1.0


def test_accuracy_needs_a_label_for_each_input():
    inputs = np.zeros((3, 1, 2, 2), np.float32)
    with pytest.raises(InvalidDataError, match="got 3 inputs and 2 labels"):
        accuracy(Pixel(), inputs, np.array([0, 1]))


# ---------------------------------------------------------------------- uncertainty


def test_bootstrap_intervals_hold_the_estimate_are_seeded_and_shrink_with_n():
    draw = np.random.default_rng(0)
    benign, malicious = draw.standard_normal(400), draw.standard_normal(400) + 1.0
    low, high = bootstrap_interval(auroc, benign, malicious, resamples=200, seed=1)
    assert low < auroc(benign, malicious) < high
    assert (low, high) == bootstrap_interval(auroc, benign, malicious, resamples=200, seed=1)
    few_low, few_high = bootstrap_interval(auroc, benign[:40], malicious[:40], resamples=200, seed=1)
    assert high - low < few_high - few_low
    both = bootstrap_intervals({"auroc": auroc, "ap": average_precision}, benign, malicious, resamples=200, seed=1)
    assert both["auroc"] == (low, high)


def test_a_perfect_score_has_no_spread():
    assert bootstrap_interval(auroc, LOW, HIGH, resamples=20) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("changes", [{"resamples": 0}, {"confidence": 1.0}])
def test_impossible_bootstraps_are_refused(changes):
    with pytest.raises(ConfigurationError, match="resamples must be at least 1 and confidence"):
        bootstrap_interval(auroc, LOW, HIGH, **changes)
