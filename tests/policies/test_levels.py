"""Levels: a query's place in the benign tail, by one ranking over both stages, each level with its own rate."""

import numpy as np
import pytest
from calibrations import benign_queries, calibration_of, one_to, two_stages
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.calibration import flag_count_range
from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.policies import CUT_POINTS, BenignLevels


def test_levels_of_a_hundred_known_scores_are_those_counted_by_hand():
    # n = 99, so a p-value is (1 + how many of 1..99 are at or above) / 100
    levels = BenignLevels(one_to(99), (0.05, 0.03, 0.01))
    scores = np.array([-5.0, 94.0, 95.0, 95.5, 96.0, 97.0, 97.5, 99.0, 99.5, 1e9])
    assert levels.levels(scores).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


@given(
    calibration=st.lists(st.integers(0, 30), min_size=20, max_size=150),
    scores=st.lists(st.integers(-1, 31), min_size=1, max_size=20),
    cut_points=st.lists(st.sampled_from([0.5, 0.3, 0.2, 0.1, 0.05]), min_size=1, max_size=5, unique=True).map(
        lambda cuts: sorted(cuts)[::-1]
    ),
)
@settings(deadline=None)  # the first example imports scipy
def test_a_level_is_the_number_of_cut_points_that_the_p_value_does_not_exceed(calibration, scores, cut_points):
    found = BenignLevels(calibration_of(np.array(calibration)), cut_points).levels(np.array(scores, np.float64))
    for level, score in zip(found, scores, strict=True):
        p = (1 + sum(one >= score for one in calibration)) / (len(calibration) + 1)
        assert level == sum(p <= cut_point + 1e-12 for cut_point in cut_points)


def test_the_first_level_is_what_the_threshold_of_that_rate_flags():
    calibration = two_stages()
    scores, stage_a = benign_queries(3000)
    levels, threshold = BenignLevels(calibration), calibration.threshold(CUT_POINTS[0])
    assert np.array_equal((levels.levels(scores) > 0) | (levels.stage_a_levels(stage_a) > 0), threshold.flags(scores, stage_a))


def test_each_level_keeps_its_rate_over_both_stages():
    levels = BenignLevels(two_stages(4000))
    scores, stage_a = benign_queries(4000, seed=3)
    reached = np.maximum(levels.levels(scores), levels.stage_a_levels(stage_a))
    for level, threshold in enumerate(levels.thresholds, start=1):
        low, high = flag_count_range(4000, threshold.k, threshold.n, confidence=0.999)
        assert low <= (reached >= level).sum() <= high


@pytest.mark.parametrize("seed", range(5))
def test_what_stage_a_flags_is_never_charged_less_than_its_score_could_be(seed):
    levels = BenignLevels(two_stages(600, seed), (0.05, 0.02, 0.01, 0.005, 0.002))
    stage_a = np.linspace(-4, 6, 400)
    flagged = levels.stage_a_levels(stage_a)
    assert set(flagged[flagged > 0]) <= set(range(levels.levels(np.array([1e9]))[0], len(levels) + 1))
    assert flagged[-1] == len(levels)


def test_every_level_can_be_reached_by_the_score_at_the_default_cut_points():
    levels = BenignLevels(two_stages())
    assert set(levels.levels(np.linspace(-5, 50, 5000))) == set(range(len(CUT_POINTS) + 1))


def test_where_stage_a_alone_spends_the_budget_the_score_reaches_no_level():
    rng = np.random.default_rng(0)
    shifted = calibration_of(rng.normal(size=500), rng.normal(size=500) + 10, rng.normal(size=500))
    levels = BenignLevels(shifted)
    assert levels.levels(np.array([1e300])).tolist() == [0]
    fresh = levels.stage_a_levels(rng.normal(size=4000) + 10)
    low, high = flag_count_range(4000, levels.thresholds[-1].k, 500, confidence=0.999)
    assert low <= (fresh == len(levels)).sum() <= high


def test_nan_is_at_the_last_level_of_both_stages():
    levels = BenignLevels(two_stages())
    assert levels.levels(np.array([np.nan])).tolist() == levels.stage_a_levels(np.array([np.nan])).tolist() == [len(levels)]


@pytest.mark.parametrize(
    "cut_points", [(), (0.1, 0.1), (0.05, 0.1), (1.0,), (0.1, 0.0), (0.1, np.nan), tuple(0.5 / 2**i for i in range(7))]
)
def test_cut_points_that_are_no_falling_p_values_are_refused(cut_points):
    with pytest.raises(
        ConfigurationError, match=r"cut points must be 1 to 6 benign p-values in \(0, 1\), each below the one before it, got"
    ):
        BenignLevels(one_to(1000), cut_points)


def test_a_calibration_too_small_for_a_cut_point_says_how_many_it_needs():
    with pytest.raises(CalibrationError, match=r"cut points \(0.05, 0.002\): .* needs at least 499 calibration queries, got 99"):
        BenignLevels(one_to(99), (0.05, 0.002))
