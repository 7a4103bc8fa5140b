"""Reject: allow up to the threshold, never milder for a higher score, NaN strictest."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.calibration import Threshold
from sameguard.policies import Allow, Policy, Refuse, Reject

THRESHOLD = Threshold(value=2.0, stage_a=3.0, false_positive_rate=0.05, n=99, k=5, interval=(0.01, 0.1))
numbers = st.floats(allow_nan=True, allow_infinity=True)


def test_the_threshold_itself_is_allowed_and_what_exceeds_it_refused():
    assert Reject(THRESHOLD).decide(np.array([2.0, np.nextafter(2.0, 3.0), -np.inf, np.inf])) == [Allow(), Refuse(), Allow(), Refuse()]


def test_stage_a_has_its_own_cut_off():
    assert Reject(THRESHOLD).decide_stage_a(np.array([2.5, 3.0, 3.5])) == [Allow(), Allow(), Refuse()]


def test_an_infinite_stage_a_refuses_nothing_but_nan():
    policy = Reject(dataclasses.replace(THRESHOLD, stage_a=np.inf))
    assert policy.decide_stage_a(np.array([1e300, np.inf, np.nan])) == [Allow(), Allow(), Refuse()]


@pytest.mark.parametrize("decide", ["decide", "decide_stage_a"])
@given(scores=st.lists(numbers, min_size=2, max_size=12), value=numbers, stage_a=numbers)
def test_a_higher_score_never_gets_a_milder_action_and_nan_gets_the_strictest(decide, scores, value, stage_a):
    policy = Reject(dataclasses.replace(THRESHOLD, value=value, stage_a=stage_a))
    ordered = np.sort(np.array(scores))  # NaN last
    severities = [action.severity for action in getattr(policy, decide)(ordered)]
    assert severities == sorted(severities)
    assert all(severity == Refuse().severity for score, severity in zip(ordered, severities, strict=True) if np.isnan(score))


@given(scores=st.lists(numbers, min_size=1, max_size=12), value=numbers, stage_a=numbers)
def test_what_the_policy_refuses_is_what_the_threshold_flags(scores, value, stage_a):
    threshold = dataclasses.replace(THRESHOLD, value=value, stage_a=stage_a)
    policy, rows = Reject(threshold), np.array(scores)
    refused = [isinstance(action, Refuse) for action in policy.decide(rows)]
    refused_before = [isinstance(action, Refuse) for action in policy.decide_stage_a(rows)]
    assert threshold.flags(rows).tolist() == refused
    assert threshold.flags(rows, rows).tolist() == [a or b for a, b in zip(refused, refused_before, strict=True)]


def test_reject_is_a_policy_and_refusal_is_the_more_severe_action():
    assert isinstance(Reject(THRESHOLD), Policy)
    assert Refuse().severity > Allow().severity
