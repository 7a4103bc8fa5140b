"""The feasibility check: known impossible rows are flagged, and no real curve ever is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.evaluation.feasibility import (
    TIES,
    TOLERANCE,
    auroc_range,
    infeasibilities,
    largest_average_precision,
    natural_caps,
    pooled_prevalence,
)
from sameguard.evaluation.metrics import auroc, average_precision, fpr_at_tpr


@pytest.mark.parametrize(
    ("auroc_printed", "aupr_printed", "fpr95", "fpr90", "ratio", "largest"),
    [
        (0.8884, 0.9094, 0.5140, 0.3390, 0.3, 0.885),
        (0.8939, 0.9423, 0.4720, 0.3145, 0.5, 0.930),
        (0.9915, 0.9779, 0.0370, 0.0295, 0.1, 0.9727),
        (0.9921, 0.9956, 0.0370, 0.0280, 0.5, 0.9945),
    ],
)
def test_rows_of_the_papers_table_4_exceed_the_largest_average_precision_at_their_ratio(
    auroc_printed, aupr_printed, fpr95, fpr90, ratio, largest
):
    assert largest_average_precision(auroc_printed, ratio, {0.9: fpr90, 0.95: fpr95}) == pytest.approx(largest, abs=6e-4)
    (why,) = infeasibilities(auroc_printed, aupr_printed, ratio, fpr95=fpr95, fpr90=fpr90)
    assert "AUPR" in why
    assert "prevalence" in why
    assert not infeasibilities(auroc_printed, aupr_printed, pooled_prevalence(ratio), fpr95=fpr95, fpr90=fpr90)


def test_the_bound_is_attained_by_a_real_curve_and_therefore_no_smaller_one_is_right():
    n, fpr90, fpr95, aucroc = 20_000, 0.028, 0.037, 0.9921
    last = round(n * (1 - aucroc - 0.05 * (fpr90 + fpr95)) / (1 - fpr95))  # malicious queries below every benign one
    shares = [("m", round(0.9 * n) - 1), ("b", round(fpr90 * n)), ("m", round(0.05 * n)), ("b", round((fpr95 - fpr90) * n))]
    shares += [("m", round(0.05 * n) + 1 - last), ("b", n - round(fpr95 * n)), ("m", last)]
    scores = {"m": [], "b": []}
    for level, (kind, count) in enumerate(shares):
        scores[kind].append(np.full(count, -float(level)))
    benign, malicious = np.concatenate(scores["b"]), np.concatenate(scores["m"])
    assert auroc(benign, malicious) == pytest.approx(aucroc, abs=1e-4)
    assert fpr_at_tpr(benign, malicious, 0.95) == pytest.approx(fpr95, abs=1e-4)
    assert fpr_at_tpr(benign, malicious, 0.90) == pytest.approx(fpr90, abs=1e-4)
    order = np.argsort(np.concatenate([-malicious, -benign]) + np.repeat([0.0, 0.5], n))  # ties one by one: the curve has no slopes
    hits = order < n
    precision = np.cumsum(hits) / np.arange(1, 2 * n + 1)
    assert precision[hits].mean() == pytest.approx(largest_average_precision(aucroc, 0.5, {0.9: fpr90, 0.95: fpr95}), abs=5e-4)


def test_three_attacks_pooled_at_a_ratio_make_the_prevalence_that_fits():
    assert pooled_prevalence(0.3) == pytest.approx(0.9 / 1.9)


def test_perfect_separation_and_a_random_score_are_feasible_and_nothing_beyond_them():
    assert largest_average_precision(1.0, 0.2) == pytest.approx(1.0)
    assert largest_average_precision(0.5, 0.5, {0.5: 0.5, 1.0: 1.0}) <= 1.0
    assert not infeasibilities(1.0, 1.0, 0.01, fpr95=0.0, fpr90=0.0)
    assert infeasibilities(0.99, 0.99, 0.5, fpr95=0.9)[0].startswith("AUROC 99.0 % is outside")
    assert infeasibilities(0.9, 0.9, 0.5, fpr95=0.1, fpr90=0.2) == ["FPR90 of 20.0 % exceeds FPR95 of 10.0 %"]


def test_the_area_above_one_known_point_bounds_auroc():
    low, high = auroc_range({0.95: 0.4})
    assert low == pytest.approx(1 - 0.95 * 0.4 - 0.05)
    assert high == pytest.approx(1 - 0.05 * 0.4)
    assert math.isnan(largest_average_precision(0.999, 0.5, {0.95: 0.4}))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 3.0), st.integers(20, 200), st.integers(20, 200), st.booleans())
def test_no_measured_curve_is_ever_called_infeasible(seed, shift, n_benign, n_malicious, coarse):
    draw = np.random.default_rng(seed)
    benign, malicious = draw.normal(size=n_benign), draw.normal(size=n_malicious) * draw.uniform(0.2, 3) + shift
    if coarse:
        benign, malicious = np.round(benign), np.round(malicious)
    largest_tie = np.unique(malicious, return_counts=True)[1].max() / n_malicious
    found = infeasibilities(
        auroc(benign, malicious), average_precision(benign, malicious), n_malicious / (n_malicious + n_benign),
        fpr95=fpr_at_tpr(benign, malicious, 0.95), fpr90=fpr_at_tpr(benign, malicious, 0.90), tolerance=TOLERANCE + TIES * largest_tie,
    )  # fmt: skip
    assert found == []


def test_a_fifth_of_natural_seeds_caps_auroc_at_90_and_fpr95_at_75_percent():
    assert natural_caps(0.2) == (0.9, pytest.approx(0.75))
    draw = np.random.default_rng(0)
    benign = draw.normal(size=4000)
    malicious = np.concatenate([draw.normal(size=800), np.full(3200, 9.0)])  # a fifth like benign, the rest perfectly detected
    assert auroc(benign, malicious) == pytest.approx(0.9, abs=0.006)
    assert fpr_at_tpr(benign, malicious, 0.95) == pytest.approx(0.75, abs=0.03)
    assert natural_caps(0.0) == (1.0, 0.0)
    assert natural_caps(0.04) == (0.98, 0.0)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match=r"prevalence must be in \(0, 1\), got 1.0"):
        largest_average_precision(0.9, 1.0)
    with pytest.raises(ConfigurationError, match="rates must map a TPR"):
        auroc_range({0.95: 1.5})
    with pytest.raises(ConfigurationError, match="share of natural queries"):
        natural_caps(1.5)
