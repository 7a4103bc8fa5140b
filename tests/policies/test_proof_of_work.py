"""Proof of work: ordinary traffic is free, the price multiplies with the level, and no honest solve passes the cap."""

import dataclasses
import itertools

import numpy as np
import pytest
from calibrations import benign_queries, one_to, two_stages
from hypothesis import given
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.policies import PUZZLES, Allow, Challenge, Policy, Pricing, ProofOfWork, Puzzle, Refuse, Reject, action_of_batch
from sameguard.policies.base import Coarsen, TooCostly
from sameguard.testing.policies import check_policy

TENTH = Puzzle("PBKDF2/SHA-256", cost=1000, seconds_per_try=0.1)


def test_work_multiplies_from_level_to_level():
    pricing = Pricing(TENTH, first_work=0.5, factor=4.0, worst_seconds=30.0)
    policy = ProofOfWork(one_to(99), cut_points=(0.05, 0.03, 0.01), pricing=pricing)
    free, first, second, third = policy.decide(np.array([95.0, 95.5, 97.5, 99.5]))
    assert (free, first, second, third) == (Allow(), Challenge(1, 2), Challenge(2, 8), Challenge(3, 32))


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_by_default_the_last_level_takes_the_five_seconds_at_worst_and_no_more(name):
    pricing = Pricing(PUZZLES[name])
    policy = ProofOfWork(one_to(999), pricing=pricing)
    lines = policy.describe()
    assert [line.level for line in lines] == [1, 2, 3, 4]
    assert 5.0 - 4 * PUZZLES[name].seconds_per_try < lines[-1].worst_seconds <= 5.0
    assert policy.largest_work == lines[-1].work
    for before, after in itertools.pairwise(lines):
        assert before.work < after.work
        assert before.benign_share > after.benign_share
    for line in lines:
        assert line.worst_seconds == pytest.approx(2 * line.expected_seconds)
        assert line.interval[0] < line.benign_share < line.interval[1]
        assert line.action == "challenge"


@given(
    seconds=st.floats(1e-5, 1.0),
    factor=st.floats(1.1, 20.0),
    levels=st.integers(1, 6),
    worst_seconds=st.floats(2.0, 60.0),
    share=st.floats(0.01, 1),
)
def test_no_level_passes_the_cap_and_none_is_cheaper_than_the_one_below(seconds, factor, levels, worst_seconds, share):
    puzzle = Puzzle("PBKDF2/SHA-256", cost=1, seconds_per_try=seconds)
    spread = Pricing(puzzle, factor=factor, worst_seconds=worst_seconds)
    for pricing in (spread, dataclasses.replace(spread, first_work=share * spread.largest_work / factor**levels)):
        works = pricing.works(levels)
        assert list(works) == sorted(works)
        assert all(1 <= work <= pricing.largest_work for work in works)
        assert pricing.worst_seconds_of(works[-1]) <= worst_seconds * (1 + 1e-9)


def test_a_price_beyond_the_cap_is_refused_with_what_it_would_take():
    with pytest.raises(
        ConfigurationError, match=r"level 4 must be solved within 5 s on one core at worst, got 51.2 s for 256 tries on average"
    ):
        ProofOfWork(one_to(99), pricing=Pricing(TENTH, first_work=1.0))


def test_prices_and_puzzles_out_of_range_are_refused():
    for settings in ({"factor": 1.0}, {"factor": float("nan")}, {"first_work": 0.0}):
        with pytest.raises(ConfigurationError, match="factor must be above 1 and first_work above 0, got"):
            Pricing(**settings)
    with pytest.raises(ConfigurationError, match=r"worst_seconds must leave room for two tries of 0\.1 s, got 0\.1"):
        Pricing(TENTH, worst_seconds=0.1)
    with pytest.raises(ConfigurationError, match=r"puzzle algorithm must be one of PBKDF2/SHA-256, SCRYPT, ARGON2ID, got 'SHA-1'"):
        Puzzle("SHA-1", cost=1)
    with pytest.raises(ConfigurationError, match=r"puzzle cost and seconds_per_try must be above 0, got 0 and 0\.01"):
        Puzzle("SCRYPT", cost=0)


def test_what_is_charged_is_what_reject_would_refuse():
    calibration = two_stages()
    scores, stage_a = benign_queries(2000)
    priced, strict = ProofOfWork(calibration), Reject(calibration.threshold(0.05))
    for stage, values in (("decide", scores), ("decide_stage_a", stage_a)):
        charged = [isinstance(action, Challenge) for action in getattr(priced, stage)(values)]
        assert charged == [isinstance(action, Refuse) for action in getattr(strict, stage)(values)]
        assert 0 < sum(charged) < len(charged)


def test_a_score_that_is_no_number_or_infinite_cannot_be_paid_for():
    policy = ProofOfWork(two_stages())
    for decide in (policy.decide, policy.decide_stage_a):
        assert decide(np.array([np.nan, np.inf, -np.inf])) == [Refuse(), Refuse(), Allow()]


def test_proof_of_work_keeps_the_contract_of_a_policy():
    policy = ProofOfWork(two_stages())
    assert isinstance(policy, Policy)
    check_policy(policy, np.linspace(-4, 8, 200))


# ---------------------------------------------------------------------- batches


def test_a_batch_pays_the_sum_of_its_rows_at_the_level_of_its_worst():
    rows = [Allow(), Challenge(1, 5), Challenge(3, 70), Challenge(1, 5)]
    assert action_of_batch(rows) == Challenge(3, 80)
    assert action_of_batch([*rows, Coarsen()]) == TooCostly()  # what is paid for goes out whole: a coarsened row must not travel along
    assert action_of_batch(rows, largest_work=80) == Challenge(3, 80)


def test_a_batch_beyond_the_cap_is_too_costly_and_never_cheaper():
    assert action_of_batch([Challenge(3, 70), Challenge(1, 5)], largest_work=74) == TooCostly()


def test_a_batch_with_one_refused_row_is_refused_whatever_it_would_pay():
    assert action_of_batch([Challenge(3, 70), Refuse(), Allow()], largest_work=10) == Refuse()
    assert action_of_batch([Allow(), Coarsen(2), Coarsen()]) == Coarsen()
    assert action_of_batch([Allow(), Allow()]) == Allow()


def test_actions_are_ordered_from_mild_to_severe():
    ordered = [Allow(), Coarsen(6), Coarsen(1), Coarsen(), Challenge(1, 9), Challenge(2, 9), Challenge(900, 9), TooCostly(), Refuse()]
    severities = [action.severity for action in ordered]
    assert severities == sorted(set(severities))
