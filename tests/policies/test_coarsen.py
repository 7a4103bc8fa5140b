"""Coarse answers: valid probabilities that tell less, for what the threshold flags."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.calibration import Threshold
from sameguard.errors import ConfigurationError
from sameguard.policies import Allow, CoarseAnswers, Coarsen, Policy, Refuse, coarsened, parse_coarsening
from sameguard.testing.policies import check_policy
from sameguard.victim import checked_probs

THRESHOLD = Threshold(value=2.0, stage_a=3.0, false_positive_rate=0.05, n=99, k=5, interval=(0.01, 0.1))


def probs_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_the_top_class_alone_is_one_hot():
    assert coarsened(probs_of([0.2, 0.5, 0.3], [0.4, 0.3, 0.3]), Coarsen()).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_missing_units_go_to_the_classes_that_lost_most():
    found = coarsened(probs_of([0.46, 0.35, 0.19], [0.34, 0.33, 0.33], [0.3, 0.7, 0.0]), Coarsen(1))
    assert np.allclose(found, [[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.3, 0.7, 0.0]])


@given(
    weights=st.lists(
        st.lists(st.floats(0.0, 1.0, width=32), min_size=5, max_size=5).filter(lambda row: sum(row) > 0.01), min_size=1, max_size=6
    ),
    decimals=st.integers(1, 6),
)
def test_rounded_answers_are_probabilities_close_by_in_the_same_order(weights, decimals):
    probs = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    probs = probs.astype(np.float32)
    found = coarsened(probs, Coarsen(decimals))
    unit = 10.0**-decimals
    assert np.allclose(checked_probs(found, len(found), 5, "probs"), found, atol=1e-6)
    assert np.abs(found - probs).max() < unit + 1e-6
    assert np.abs(found / unit - np.rint(found / unit)).max() < 0.1
    for row in range(len(probs)):
        order = np.argsort(probs[row], kind="stable")
        assert (np.diff(found[row][order]) >= -1e-6 - (np.diff(probs[row][order]) < 1e-6) * unit).all()


def test_coarsening_twice_changes_nothing_more():
    probs = np.random.default_rng(0).dirichlet(np.ones(10), 200).astype(np.float32)
    for coarsening in (Coarsen(), Coarsen(1), Coarsen(3)):
        once = coarsened(probs, coarsening)
        assert np.allclose(coarsened(once, coarsening), once, atol=1e-7)


def test_suspicious_rows_get_the_coarse_answer_and_nan_none():
    policy = CoarseAnswers(THRESHOLD, Coarsen(2))
    assert policy.decide(np.array([2.0, 2.1, np.nan, np.inf])) == [Allow(), Coarsen(2), Refuse(), Coarsen(2)]
    assert policy.decide_stage_a(np.array([2.9, 3.1])) == [Allow(), Coarsen(2)]
    assert CoarseAnswers(THRESHOLD).decide(np.array([5.0])) == [Coarsen()]


@pytest.mark.parametrize("stage_a", [3.0, np.inf])
def test_coarse_answers_keep_the_contract_of_a_policy(stage_a):
    policy = CoarseAnswers(dataclasses.replace(THRESHOLD, stage_a=stage_a))
    assert isinstance(policy, Policy)
    check_policy(policy, np.linspace(0, 5, 50))


def test_settings_name_a_coarsening():
    assert parse_coarsening("top1") == Coarsen()
    assert parse_coarsening("rounded(3)") == Coarsen(3)


@pytest.mark.parametrize("text", ["top5", "rounded", "rounded(0)", "rounded(7)", "rounded(10)", " top1", "rounded(2)\n"])
def test_a_setting_that_names_none_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"coarsening must be top1 or rounded\(k\) with k from 1 to 6, got"):
        parse_coarsening(text)


@pytest.mark.parametrize("decimals", [0, 7, -1])
def test_decimals_out_of_range_are_refused(decimals):
    with pytest.raises(ConfigurationError, match="decimals of a coarsened answer must be 1 to 6, got"):
        Coarsen(decimals)
