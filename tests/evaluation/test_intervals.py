"""The fast metrics equal the plain ones, and their intervals are the plain bootstrap's."""

import numpy as np
import pytest

from sameguard.evaluation.intervals import cell, curve_of, resampled_intervals
from sameguard.evaluation.metrics import auroc, average_precision, bootstrap_intervals, fpr_at_tpr


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_a_curve_of_counts_gives_the_metrics_of_scikit_learn(decimals):
    draw = np.random.default_rng(3)
    benign, malicious = draw.normal(size=300), draw.normal(size=170) + 1.0
    if decimals is not None:
        benign, malicious = benign.round(decimals), malicious.round(decimals)
    curve = curve_of(benign, malicious)
    assert curve.auroc() == pytest.approx(auroc(benign, malicious), abs=1e-12)
    assert curve.average_precision() == pytest.approx(average_precision(benign, malicious), abs=1e-12)
    for tpr in (0.5, 0.9, 0.95, 1.0):
        assert curve.fpr_at(tpr) == pytest.approx(fpr_at_tpr(benign, malicious, tpr), abs=1e-12)


def test_infinite_scores_are_ranked_like_any_others():
    benign, malicious = np.array([0.0, 1.0, 2.0]), np.array([np.inf, np.inf, -np.inf])
    assert curve_of(benign, malicious).auroc() == pytest.approx(2 / 3)


def test_intervals_agree_with_the_plain_bootstrap():
    draw = np.random.default_rng(0)
    benign, malicious = draw.normal(size=200), draw.normal(size=150) + 1.2
    fast = resampled_intervals(benign, malicious, resamples=600)
    slow = bootstrap_intervals({"auroc": auroc, "average_precision": average_precision}, benign, malicious, resamples=300)
    for name, ends in slow.items():
        np.testing.assert_allclose(fast[name], ends, atol=0.012)
        assert fast[name][0] < {"auroc": auroc, "average_precision": average_precision}[name](benign, malicious) < fast[name][1]


def test_a_cell_names_how_many_queries_it_rests_on():
    found = cell(np.arange(10.0), np.arange(5.0) + 100.0, resamples=20)
    assert (found["n_pos"], found["n_neg"]) == (5, 10)
    assert found["auroc"] == found["average_precision"] == found["aupr_trapezoid"] == found["tpr_at_1_percent"] == 1.0
    assert found["fpr95"] == found["fpr90"] == 0.0
    assert found["intervals"]["auroc"] == [1.0, 1.0]
    constant = cell(np.zeros(10), np.zeros(5), resamples=5)
    assert constant["auroc"] == 0.5
    assert constant["average_precision"] == pytest.approx(5 / 15, abs=1e-5)
