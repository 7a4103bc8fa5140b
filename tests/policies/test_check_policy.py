"""check_policy finds each way to break a policy's contract, and passes our own."""

from collections.abc import Callable

import numpy as np
import pytest

from sameguard.calibration import Threshold
from sameguard.policies import Allow, Refuse, Reject
from sameguard.testing.policies import check_policy

THRESHOLD = Threshold(value=2.0, stage_a=3.0, false_positive_rate=0.05, n=99, k=5, interval=(0.01, 0.1))
SCORES = np.linspace(0, 5, 30)


class Made:
    """A policy of one function from scores to actions, for both stages."""

    def __init__(self, decide: Callable) -> None:
        self.decide = decide
        self.decide_stage_a = decide


def strict(scores: np.ndarray) -> list:
    return [Allow() if score <= 2.0 else Refuse() for score in scores]


def overwriting(scores: np.ndarray) -> list:
    actions = strict(scores)
    scores[:] = 0.0
    return actions


BROKEN = {
    "a higher score must never get a milder action": lambda scores: [Refuse() if score <= 2.0 else Allow() for score in scores],
    "NaN must get the strictest action": lambda scores: [Refuse() if score > 2.0 else Allow() for score in scores],
    "NaN must get the strictest action and never be allowed": lambda scores: [Allow() for _ in scores],
    "must give one action for each of": lambda scores: strict(scores)[:-1],
    "must have a severity": lambda scores: ["refuse" for _ in scores],
    "must not change the scores": overwriting,
    "an empty batch must get no actions": lambda scores: strict(scores) or [Refuse()],
}


def test_our_own_policy_passes():
    check_policy(Reject(THRESHOLD), SCORES)
    check_policy(Made(strict), SCORES)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule):
    with pytest.raises(AssertionError, match=rule):
        check_policy(Made(BROKEN[rule]), SCORES)


def test_a_row_that_depends_on_its_batch_is_found():
    calls = iter(range(10**6))
    moody = Made(lambda scores: strict(scores) if len(scores) != 1 or np.isnan(scores[0]) or next(calls) % 2 else [Refuse()])
    with pytest.raises(AssertionError, match="a row must get the same action from decide alone as in a batch"):
        check_policy(moody, SCORES)


def test_an_action_that_depends_on_the_order_is_found():
    by_place = Made(lambda scores: [Allow() if place < 20 and score <= 2 else Refuse() for place, score in enumerate(scores)])
    with pytest.raises(AssertionError, match="reordered rows must get their own actions again from decide"):
        check_policy(by_place, SCORES)


def test_a_nan_that_spoils_its_batch_is_found():
    spoilt = Made(lambda scores: strict(scores) if len(scores) == 1 or not np.isnan(scores).any() else [Refuse() for _ in scores])
    with pytest.raises(AssertionError, match="a NaN beside it must not change a row's action from decide"):
        check_policy(spoilt, SCORES)


def test_what_has_no_decisions_is_no_policy():
    with pytest.raises(AssertionError, match="a policy must have decide and decide_stage_a, got dict without them"):
        check_policy({}, SCORES)


def fragile(scores: np.ndarray) -> list:
    if np.isnan(scores).any():
        raise ValueError("cannot convert float NaN to integer")
    return strict(scores)


def test_what_a_policy_itself_raises_is_told_as_the_rule_that_it_breaks():
    with pytest.raises(
        AssertionError, match="decide must give an action for any score, NaN, infinity and an empty batch included, got ValueError"
    ):
        check_policy(Made(fragile), SCORES)
    with pytest.raises(AssertionError, match="decide must give one action for one row, got 0"):
        check_policy(Made(lambda scores: [] if np.isnan(scores).all() else strict(scores)), SCORES)
