"""The ladder: allow, coarsen, challenge, refuse, at falling benign p-values, never milder for a higher score."""

import numpy as np
import pytest
from calibrations import benign_queries, one_to, two_stages
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.policies import Allow, Challenge, Coarsen, Ladder, Policy, Pricing, Puzzle, Refuse
from sameguard.testing.policies import check_policy

PRICING = Pricing(Puzzle("PBKDF2/SHA-256", cost=1000, seconds_per_try=0.01), first_work=1.0, factor=2.0)


def test_the_rungs_are_those_of_the_p_values_counted_by_hand():
    ladder = Ladder(one_to(99), coarsening=Coarsen(2), pricing=PRICING)  # p-values are hundredths
    assert ladder.decide(np.array([95.0, 95.5, 97.0, 97.5, 98.5, 99.5])) == [
        Allow(), Coarsen(2), Coarsen(2), Challenge(1, 2), Challenge(2, 4), Refuse()
    ]  # fmt: skip


def test_rungs_can_be_left_out():
    score = np.array([0.0, 96.5, 99.5])
    assert Ladder(one_to(99), coarsen_at=None, refuse_at=None, challenge_at=(0.04,), pricing=PRICING).decide(score) == [
        Allow(), Challenge(1, 2), Challenge(1, 2)
    ]  # fmt: skip
    assert Ladder(one_to(99), coarsen_at=None, challenge_at=(), refuse_at=0.02).decide(score) == [Allow(), Allow(), Refuse()]
    with pytest.raises(ConfigurationError, match="a ladder must have at least one rung, got none"):
        Ladder(one_to(99), coarsen_at=None, challenge_at=(), refuse_at=None)


def test_a_harder_rung_must_lie_below_the_milder_ones():
    with pytest.raises(ConfigurationError, match=r"each below the one before it, got \(0.05, 0.1, 0.01\)"):
        Ladder(one_to(999), challenge_at=(0.1,))


def test_a_rung_that_the_calibration_cannot_support_is_refused():
    with pytest.raises(CalibrationError, match="needs at least 999 calibration queries, got 99"):
        Ladder(one_to(99), refuse_at=0.001)


def test_the_description_has_a_price_where_there_is_one():
    lines = Ladder(one_to(999), pricing=PRICING).describe()
    assert [(line.action, line.benign_share, line.work) for line in lines] == [
        ("coarsen", 0.05, None), ("challenge", 0.03, 2), ("challenge", 0.02, 4), ("refuse", 0.01, None)
    ]  # fmt: skip
    assert lines[1].worst_seconds == pytest.approx(0.04)
    assert lines[0].expected_seconds is None


def test_the_ladder_keeps_the_contract_of_a_policy():
    ladder = Ladder(two_stages())
    assert isinstance(ladder, Policy)
    check_policy(ladder, np.linspace(-4, 8, 200))
    assert ladder.decide(np.array([np.nan])) == ladder.decide_stage_a(np.array([np.nan])) == [Refuse()]


@given(seed=st.integers(0, 10_000))
@settings(deadline=None)  # the first example imports scipy
def test_what_stage_a_settles_is_settled_no_milder_than_the_score_could(seed):
    ladder = Ladder(two_stages(400, seed % 7))
    hardest_by_score = max(action.severity for action in ladder.decide(np.linspace(-5, 50, 300)))
    _, stage_a = benign_queries(500, seed)
    settled = [action.severity for action in ladder.decide_stage_a(stage_a) if action != Allow()]
    assert all(severity >= hardest_by_score for severity in settled)
