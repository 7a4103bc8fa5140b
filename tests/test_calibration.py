"""Calibration: the promise of a threshold against simulation and closed forms, the roles of benign data, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from sameguard.calibration import (
    BiasedCalibrationWarning,
    Calibration,
    Threshold,
    WeakAuxiliaryWarning,
    beta_interval,
    calibrate,
    clopper_pearson,
    conformal_rank,
    flag_count_range,
    queries_needed,
    short_digests,
)
from sameguard.errors import CalibrationError, InvalidQueryError
from sameguard.scoring import ScoreConfig
from sameguard.victim import BlackBox
from stand_ins import CLASSES, IMAGES, WEIGHTS, BlurScorer, Watched, linear_victim, noise_images, smooth_images


def stored(scores: np.ndarray, stage_a_scores: np.ndarray | None = None, statistics_stage_a: np.ndarray | None = None) -> Calibration:
    """A calibration with these scores, and nothing else that matters here."""
    empty = np.empty(0)
    return Calibration(
        scores=np.asarray(scores, np.float64),
        stage_a_scores=empty if stage_a_scores is None else stage_a_scores,
        statistics_stage_a=empty if statistics_stage_a is None else np.sort(statistics_stage_a),
        digests={},
        agreement=1.0,
        biased=False,
        canary_queries=np.empty((0, 1)),
        canary_probs=np.empty((0, 2)),
    )


def keys_of(queries: np.ndarray) -> np.ndarray:
    return short_digests(IMAGES.digests(queries))


# ---------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(("n", "rate", "k"), [(99, 0.01, 1), (198, 0.01, 1), (199, 0.01, 2), (19, 0.05, 1), (999, 0.05, 50), (9, 0.3, 3)])
def test_the_rank_is_the_rate_of_n_plus_one_rounded_down(n, rate, k):
    assert conformal_rank(n, rate) == k


@pytest.mark.parametrize(("n", "rate", "needed"), [(98, 0.01, 99), (0, 0.01, 99), (18, 0.05, 19), (998, 0.001, 999)])
def test_too_few_queries_for_a_rate_are_refused_with_the_number_needed(n, rate, needed):
    assert queries_needed(rate) == needed
    with pytest.raises(CalibrationError, match=rf"of {rate:g} needs at least {needed} calibration queries, got {n}: give more benign"):
        conformal_rank(n, rate)


@given(st.floats(1e-4, 0.9))
def test_the_number_needed_is_the_smallest_that_is_accepted(rate):
    needed = queries_needed(rate)
    assert conformal_rank(max(needed, 1), rate) >= 1
    if needed > 1:
        with pytest.raises(CalibrationError):
            conformal_rank(needed - 1, rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(CalibrationError, match=r"false_positive_rate must be in \(0, 1\), got"):
        conformal_rank(1000, rate)


@pytest.mark.parametrize("n", [1, 19, 99, 299])
def test_the_interval_of_the_largest_and_the_smallest_score_has_a_closed_form(n):
    largest, smallest = beta_interval(1, n), beta_interval(n, n)
    assert largest == pytest.approx((1 - 0.975 ** (1 / n), 1 - 0.025 ** (1 / n)))
    assert smallest == pytest.approx((0.025 ** (1 / n), 0.975 ** (1 / n)))


def test_the_interval_of_ten_in_199_by_scipy():
    assert beta_interval(10, 199) == pytest.approx((beta(10, 190).ppf(0.025), beta(10, 190).ppf(0.975)))
    assert beta_interval(10, 199) == pytest.approx((0.0243, 0.0841), abs=5e-4)


def test_299_queries_bound_the_rate_of_the_maximum_at_one_percent_with_95_percent_confidence():
    assert beta_interval(1, 299, confidence=0.9)[1] == pytest.approx(0.00997, abs=5e-6)
    assert beta_interval(1, 298, confidence=0.9)[1] > 0.01


def test_clopper_pearson_of_the_textbook_cases():
    assert clopper_pearson(0, 299, confidence=0.9)[1] == pytest.approx(0.00997, abs=5e-6)  # one-sided 95 %
    assert clopper_pearson(10, 1000) == pytest.approx((0.0048, 0.0183), abs=5e-5)
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))


def test_flag_counts_of_one_calibration_score_are_uniform():
    assert flag_count_range(99, 1, 1) == (2, 97)


# ---------------------------------------------------------------------- the promise, by simulation


def realised_rates(resamples: int, n: int, rate: float) -> np.ndarray:
    """Benign scores are uniform, so a threshold's realised false-positive rate is 1 - threshold, exactly."""
    rng = np.random.default_rng(0)
    return np.array([1.0 - stored(rng.random(n)).threshold(rate).value for _ in range(resamples)])


def test_realised_rates_average_k_in_n_plus_one_and_follow_their_beta_law():
    rates, (k, n) = realised_rates(800, 199, 0.05), (10, 199)
    law = beta(k, n + 1 - k)
    assert abs(rates.mean() - k / (n + 1)) < 4 * law.std() / np.sqrt(800)
    assert kstest(rates, law.cdf).pvalue > 0.01
    low, high = beta_interval(k, n)
    assert np.mean((rates >= low) & (rates <= high)) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 800))


def test_flags_among_further_queries_lie_in_their_beta_binomial_range_95_percent_of_the_time():
    rng, n, k, m, resamples = np.random.default_rng(1), 199, 10, 300, 2000
    thresholds = np.sort(rng.random((resamples, n)), axis=1)[:, -k]
    flags = (rng.random((resamples, m)) > thresholds[:, None]).sum(axis=1)
    low, high = flag_count_range(m, k, n)
    covered = np.mean((flags >= low) & (flags <= high))
    assert 0.94 < covered < 0.98  # counts are discrete: a little above 95 %
    naive_low, naive_high = (round(m * rate) for rate in clopper_pearson(k, n))  # the wrong object
    assert abs(covered - 0.95) < abs(np.mean((flags >= naive_low) & (flags <= naive_high)) - 0.95)


@pytest.mark.parametrize("coupling", ["independent", "equal", "opposite"])
def test_one_false_positive_budget_covers_both_stages(coupling):
    """Refused before the answer, or scored too high after it: together they follow Beta(k, n + 1 - k), however the two depend."""
    rng, n, rate, k, resamples = np.random.default_rng(2), 399, 0.05, 20, 600
    rates, stage_a_used = [], 0
    for _ in range(resamples):
        scores = rng.random(n)
        stage_a = {"independent": rng.random(n), "equal": scores, "opposite": 1 - scores}[coupling]
        threshold = stored(scores, stage_a, rng.random(n)).threshold(rate)
        cut = min(threshold.stage_a, 1.0)
        allowed = {
            "independent": threshold.value * cut,
            "equal": min(threshold.value, cut),
            "opposite": max(threshold.value - (1 - cut), 0.0),
        }[coupling]
        rates.append(1 - allowed)
        stage_a_used += threshold.stage_a < 1.0
    law = beta(k, n + 1 - k)
    assert stage_a_used > 0.99 * resamples
    assert abs(np.mean(rates) - rate) < 4 * law.std() / np.sqrt(resamples)
    assert kstest(rates, law.cdf).pvalue > 0.01


def test_stage_a_spends_a_tenth_of_the_budget():
    statistics = np.arange(1000.0)
    threshold = stored(np.arange(999.0), np.zeros(999), statistics).threshold(0.05)
    assert np.sum(statistics > threshold.stage_a) == 4  # the fifth largest of 1000: 5 / 1001 is the rate
    assert threshold.stage_a == 995.0


def test_queries_refused_by_stage_a_come_off_the_score_s_budget():
    scores, stage_a = np.arange(99.0), np.zeros(99)
    stage_a[:3] = 2000.0  # three harmless scores that stage A refuses
    threshold = stored(scores, stage_a, np.arange(1000.0)).threshold(0.05)
    assert threshold.k == 5
    flagged = threshold.flags(scores, stage_a)
    assert flagged.sum() == threshold.k - 1  # what exceeds the k-th largest, stage A's three among them
    assert flagged[:3].all()
    assert flagged[-1]


@pytest.mark.parametrize("refused", [5, 40, 99])  # k of them, more, or all
def test_where_stage_a_refuses_the_whole_budget_its_own_cut_rises_and_the_rule_stays_one_ranking(refused):
    scores, stage_a = np.arange(99.0), np.where(np.arange(99) < refused, 5000.0 + np.arange(99), 0.0)
    threshold = stored(scores, stage_a, np.arange(1000.0)).threshold(0.05)
    assert threshold.value == np.inf
    assert threshold.stage_a == 5000.0 + refused - 5  # the fifth largest
    assert threshold.flags(scores, stage_a).sum() == threshold.k - 1
    assert Threshold.from_json(json.loads(json.dumps(threshold.to_json(), allow_nan=False))) == threshold


def test_nan_in_stage_a_of_a_calibration_query_counts_as_refused():
    stage_a = np.zeros(99)
    stage_a[0] = np.nan
    threshold = stored(np.arange(99.0), stage_a, np.arange(1000.0)).threshold(0.05)
    assert threshold.value == 95.0  # the fourth largest of the rest


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.02, 0.9), min_size=2, max_size=5), st.integers(0, 1000))
def test_a_lower_rate_never_has_a_lower_threshold(rates, seed):
    calibration = stored(np.random.default_rng(seed).normal(size=60))
    values = [calibration.threshold(rate).value for rate in sorted(rates)]
    assert values == sorted(values, reverse=True)


def test_ties_only_make_a_threshold_flag_less():
    calibration = stored(np.repeat([0.0, 1.0], [20, 79]))
    threshold = calibration.threshold(0.05)
    assert threshold.value == 1.0
    assert not threshold.flags(calibration.scores).any()


# ---------------------------------------------------------------------- Threshold

THRESHOLD = Threshold(value=2.0, stage_a=3.0, false_positive_rate=0.05, n=99, k=5, interval=(0.0167, 0.1017))


def test_nan_is_flagged_in_either_stage():
    scores = np.array([1.0, 2.0, 2.1, np.nan, 1.0, 1.0, np.inf])
    stage_a = np.array([1.0, 3.0, 1.0, 1.0, np.nan, 3.1, 1.0])
    assert THRESHOLD.flags(scores).tolist() == [False, False, True, True, False, False, True]
    assert THRESHOLD.flags(scores, stage_a).tolist() == [False, False, True, True, True, True, True]


def test_flags_leave_the_scores_alone():
    scores, stage_a = np.array([1.0, np.nan]), np.array([9.0, 0.0])
    THRESHOLD.flags(scores, stage_a)
    assert np.array_equal(scores, [1.0, np.nan], equal_nan=True)
    assert stage_a.tolist() == [9.0, 0.0]


@pytest.mark.parametrize("stage_a", [3.25, np.inf])
def test_thresholds_survive_strict_json(stage_a):
    threshold = dataclasses.replace(THRESHOLD, stage_a=stage_a, biased=True)
    assert Threshold.from_json(json.loads(json.dumps(threshold.to_json(), allow_nan=False))) == threshold


def test_a_threshold_prints_its_promise_and_its_bias():
    promise = "score > 2: at most 5.00% of benign queries flagged (realised rate 1.67% to 10.17%, n = 99)"
    assert str(THRESHOLD) == promise
    assert str(dataclasses.replace(THRESHOLD, biased=True)) == promise + "; biased: calibrated on the victim's training data"


# ---------------------------------------------------------------------- calibrate


@pytest.mark.parametrize("combination", ["typicality", "two_sided", "weighted"])
def test_the_threshold_is_the_kth_largest_score_of_the_calibration_queries(combination):
    scorer, benign = BlurScorer(config=ScoreConfig(combination)), smooth_images(200)
    threshold = calibrate(scorer, benign, linear_victim(), 0.05)
    in_calibration = np.isin(keys_of(benign), scorer.calibration.digests["calibration"])
    scores = scorer.score(benign, linear_victim().answer(benign))
    assert (threshold.n, threshold.k, threshold.false_positive_rate) == (100, 5, 0.05)
    assert threshold.interval == beta_interval(5, 100)
    assert threshold.value == pytest.approx(np.sort(scores[in_calibration])[-5])
    assert not threshold.biased
    assert scorer.calibration.threshold(0.05) == threshold


def test_benign_flags_stay_in_their_range_and_noise_is_flagged():
    scorer, victim = BlurScorer(), linear_victim()
    threshold = calibrate(scorer, smooth_images(400, seed=1), victim, 0.05)
    fresh, noise = smooth_images(300, seed=2), noise_images(100)
    low, high = flag_count_range(300, threshold.k, threshold.n)
    assert low <= threshold.flags(scorer.score(fresh, victim.answer(fresh))).sum() <= high
    assert threshold.flags(scorer.score(noise, victim.answer(noise))).mean() > 0.95


def test_the_mean_false_positive_rate_of_whole_calibrations_is_k_in_n_plus_one():
    victim, rates = linear_victim(), []
    for seed in range(30):
        scorer = BlurScorer(config=ScoreConfig("weighted"))
        pool = smooth_images(400, seed=100 + seed)
        threshold = calibrate(scorer, pool[:160], victim, 0.1)
        rates.append(threshold.flags(scorer.score(pool[160:], victim.answer(pool[160:]))).mean())
    law = beta(8, 73)
    one_run = np.sqrt(law.var() + law.mean() * (1 - law.mean()) / 240)
    assert (threshold.k, threshold.n) == (8, 80)
    assert abs(np.mean(rates) - 8 / 81) < 4 * one_run / np.sqrt(30)


def test_the_victim_answers_each_benign_query_once():
    watched = Watched(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS)
    calibrate(BlurScorer(), smooth_images(120), BlackBox(watched, IMAGES, classes=CLASSES, output="logits"))
    assert sorted(keys_of(watched.rows)) == sorted(keys_of(smooth_images(120)))


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_roles_are_disjoint_by_content_and_copies_buy_nothing(fraction):
    distinct = smooth_images(150)
    benign = np.concatenate([distinct, distinct[:70], distinct[:30]])
    scorer, plain = BlurScorer(), BlurScorer()
    with pytest.warns(BiasedCalibrationWarning, match="100 of 250 benign queries are copies of others and were left out"):
        threshold = calibrate(scorer, benign, linear_victim(), statistics_fraction=fraction)
    roles = scorer.calibration.digests
    assert not set(roles["statistics"]) & set(roles["calibration"])
    assert sorted(np.concatenate([roles["statistics"], roles["calibration"]])) == sorted(keys_of(distinct))
    assert threshold == calibrate(plain, distinct, linear_victim(), statistics_fraction=fraction)


def test_many_copies_of_few_queries_support_no_rate():
    with pytest.warns(BiasedCalibrationWarning, match="copies"), pytest.raises(CalibrationError, match="needs at least 99"):
        calibrate(BlurScorer(), np.repeat(smooth_images(10), 200, axis=0), linear_victim(), 0.01)


def test_the_order_of_the_benign_queries_changes_nothing():
    benign, shuffled = smooth_images(160), np.random.default_rng(0).permutation(160)
    first, second = BlurScorer(), BlurScorer()
    one = calibrate(first, benign, linear_victim())
    other = calibrate(second, benign[shuffled], linear_victim())
    assert one.value == pytest.approx(other.value, rel=1e-4)
    assert np.array_equal(first.calibration.digests["statistics"], second.calibration.digests["statistics"])


def test_another_seed_cuts_the_roles_elsewhere():
    first, second = BlurScorer(), BlurScorer()
    calibrate(first, smooth_images(160), linear_victim(), seed=0)
    calibrate(second, smooth_images(160), linear_victim(), seed=1)
    assert set(first.calibration.digests["statistics"]) != set(second.calibration.digests["statistics"])


def test_canaries_are_statistics_queries_with_the_victims_answers():
    scorer = BlurScorer()
    calibrate(scorer, smooth_images(120), linear_victim())
    canaries = scorer.calibration.canary_queries
    assert len(canaries) == 32
    assert np.isin(keys_of(canaries), scorer.calibration.digests["statistics"]).all()
    assert np.allclose(scorer.calibration.canary_probs, linear_victim().answer(canaries), atol=1e-6)


def test_training_rows_in_the_benign_set_are_left_out_with_a_warning():
    benign = smooth_images(200)
    scorer = BlurScorer()
    with pytest.warns(BiasedCalibrationWarning, match="17 of 200 benign queries are training data of the fit and were left out"):
        threshold = calibrate(scorer, benign, linear_victim(), train_digests=keys_of(benign[40:57]))
    used = np.concatenate(list(scorer.calibration.digests.values()))
    assert sorted(used) == sorted(keys_of(np.concatenate([benign[:40], benign[57:]])))
    assert not threshold.biased


def test_the_scorer_s_own_training_digests_are_the_default():
    benign = smooth_images(200)
    scorer = BlurScorer()
    scorer.train_digests = keys_of(benign[:10])
    with pytest.warns(BiasedCalibrationWarning, match="10 of 200 benign queries"):
        calibrate(scorer, benign, linear_victim())
    scorer.train_digests = np.empty(0, np.uint64)
    calibrate(scorer, benign, linear_victim())  # no digests, no warning: warnings are errors here


def test_a_benign_set_of_nothing_but_training_data_is_refused():
    benign = smooth_images(200)
    with pytest.raises(CalibrationError, match=r"must not be training data, got 200 of 200 that are: .*--from-training-data"):
        calibrate(BlurScorer(), benign, linear_victim(), train_digests=keys_of(benign))


def test_calibrating_on_training_data_works_says_so_and_is_recorded():
    benign, scorer = smooth_images(200), BlurScorer()
    with pytest.warns(BiasedCalibrationWarning, match="calibration uses the victim's own training data"):
        threshold = calibrate(scorer, benign, linear_victim(), train_digests=keys_of(benign), from_training_data=True)
    assert threshold.biased
    assert scorer.calibration.biased
    assert scorer.calibration.threshold(0.1).biased
    assert threshold.n == 100


def test_an_auxiliary_that_disagrees_is_warned_about_and_an_agreeing_one_is_not():
    scorer = BlurScorer()
    calibrate(scorer, smooth_images(120), linear_victim())  # no warning: warnings are errors here
    assert scorer.calibration.agreement > 0.85
    turned = BlurScorer(weights=WEIGHTS[:, [1, 2, 0]])
    with pytest.warns(WeakAuxiliaryWarning, match=r"agrees with the victim on .* of benign queries, below 85%: its deviation says little"):
        calibrate(turned, smooth_images(120), linear_victim())
    assert turned.calibration.agreement < 0.85


def test_98_calibration_queries_are_refused_at_one_percent_and_99_accepted_before_the_victim_is_paid():
    watched = Watched(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS)
    victim = BlackBox(watched, IMAGES, classes=CLASSES, output="logits")
    with pytest.raises(CalibrationError, match=r"0\.01 needs at least 99 calibration queries, got 98"):
        calibrate(BlurScorer(), smooth_images(196), victim, 0.01)
    assert watched.batches == []
    assert calibrate(BlurScorer(), smooth_images(198), victim, 0.01).k == 1


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (100, {"statistics_fraction": 0.3}, "needs at least 40 statistics queries, got 30 of 100 benign ones: give more"),
        (100, {"statistics_fraction": 0.0}, r"statistics_fraction must be in \(0, 1\), got 0.0"),
        (100, {"statistics_fraction": 1.0}, r"statistics_fraction must be in \(0, 1\), got 1.0"),
        (100, {"false_positive_rate": 0.0}, r"false_positive_rate must be in \(0, 1\), got 0.0"),
        (1, {}, "0.05 needs at least 19 calibration queries, got 1"),
    ],
)
def test_what_the_benign_data_cannot_support_is_refused(rows, settings, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(BlurScorer(), smooth_images(rows), linear_victim(), **settings)


@pytest.mark.parametrize(
    ("benign", "message"),
    [
        (np.zeros((0, 1, 4, 4), np.float32), "at least one query, got 0"),
        (np.full((120, 1, 4, 4), np.nan, np.float32), "must be finite, got NaN or infinity in row 0 of 120"),
        (np.zeros((120, 4, 4), np.float32), r"must be \(batch, 1, 4, 4\), got \(120, 4, 4\)"),
        (np.zeros((120, 1, 4, 4), np.uint8), "must be float32, got uint8: what clients send goes through contract.decode"),
    ],
)
def test_benign_queries_that_break_the_contract_are_refused(benign, message):
    with pytest.raises(InvalidQueryError, match=message):
        calibrate(BlurScorer(), benign, linear_victim())


def test_benign_scores_that_are_not_finite_are_refused():
    class Broken(BlurScorer):
        def _auxiliary_logits(self, images):
            logits = super()._auxiliary_logits(images)
            logits[:, 0] = np.where(images[:, 0, 0, 0] > np.median(images[:, 0, 0, 0]), np.nan, logits[:, 0])
            return logits

    with pytest.raises(CalibrationError, match=r"benign scores must be finite, got \d+ that are not: the artefact is damaged"):
        calibrate(Broken(config=ScoreConfig("weighted")), smooth_images(120), linear_victim())


def test_a_score_without_stage_a_calibrates_without_it():
    scorer = BlurScorer(config=ScoreConfig("weighted", reconstruction_weight=0.0))
    threshold = calibrate(scorer, smooth_images(120), linear_victim())
    assert threshold.stage_a == np.inf
    assert len(scorer.calibration.stage_a_scores) == len(scorer.calibration.statistics_stage_a) == 0


def test_a_label_only_victim_is_calibrated_like_any_other():
    victim = BlackBox(lambda raw: (raw.reshape(len(raw), -1) @ WEIGHTS).argmax(axis=1), IMAGES, classes=CLASSES, output="labels")
    scorer = BlurScorer()
    threshold = calibrate(scorer, smooth_images(200), victim, 0.05)
    fresh = smooth_images(300, seed=9)
    assert threshold.flags(scorer.score(fresh, victim.answer(fresh))).sum() <= flag_count_range(300, threshold.k, threshold.n)[1]
