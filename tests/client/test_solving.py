"""Solving: honest challenges are found and paid, hostile ones are not even tried."""

import contextlib
import copy
import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_guard import KEY

from sameguard.client import (
    ChallengeTooCostlyError,
    FoundChallenge,
    InvalidChallengeError,
    SolveLimits,
    challenge_in,
    challenge_in_text,
    solve,
)
from sameguard.client.solving import checked_challenge
from sameguard.errors import ConfigurationError
from sameguard.policies import Challenge, Puzzle
from sameguard.protocol import Problem, read_problem
from sameguard.server.proofs import Bound, IssuedChallenge, Proofs

BOUND = Bound("digits", "ab" * 32, bytes(range(32)))
PUZZLES = [
    Puzzle("PBKDF2/SHA-256", cost=2),
    Puzzle("SCRYPT", cost=16, memory_cost=1, parallelism=1),
    Puzzle("ARGON2ID", cost=1, memory_cost=8, parallelism=1),
]
PROOFS = Proofs([KEY], PUZZLES[0])


def issued(work: int = 4, proofs: Proofs = PROOFS) -> IssuedChallenge:
    return proofs.issue(Challenge(1, work), BOUND, time.time())


def refusal(challenge: IssuedChallenge, status: int = 402, **more: object) -> Problem:
    """As it comes back from the wire."""
    sent = Problem("proof-of-work-required", "solve it", status, challenge.error, {"challenge": challenge.document, **more})
    return read_problem(status, sent.to_message().body)


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.algorithm)
def test_a_challenge_is_solved_from_the_problem_and_from_the_error_text_alone(puzzle):
    proofs = Proofs([KEY], puzzle)
    challenge = issued(proofs=proofs)
    for found in (challenge_in(refusal(challenge, expires_in=120)), challenge_in_text(challenge.error)):
        solved = solve(found)
        assert proofs.verify(solved.proof, BOUND, time.time()).result == "valid"
        assert 1 <= solved.tries <= 8
        assert solved.seconds >= 0
        assert solved.cpu_seconds >= 0


@pytest.mark.parametrize("status", [401, 402, 403, 428, 429])
def test_a_challenge_is_found_under_each_status_that_a_guard_may_use(status):
    assert challenge_in(refusal(issued(), status, expires_in=7)).expires_in == 7


def test_other_refusals_carry_none():
    assert challenge_in(Problem("query-rejected", "no")) is None
    assert challenge_in(refusal(issued(), 503)) is None
    assert challenge_in_text("model is not ready") is None


@pytest.mark.parametrize("text", ["%%%", "bm8ganNvbg==", "A" * 20_000])
def test_an_error_text_that_only_begins_like_a_challenge_is_refused(text):
    with pytest.raises(InvalidChallengeError, match="challenge in the error text must be base64 of JSON"):
        challenge_in_text(f"proof of work required: {text}")


# ---------------------------------------------------------------------- hostile challenges


def changed(**members: object) -> dict:
    document = copy.deepcopy(issued().document)
    document["parameters"].update(members)
    return document


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("a text", "must be an object of parameters and signature"),
        ({"parameters": {"algorithm": "SCRYPT"}}, "must be an object of parameters and signature, got KeyError"),
        (changed(data={"pad": "x" * 9000}), "must have at most 8192 bytes"),
        (changed(algorithm="SHA-256"), "algorithm must be one of PBKDF2/SHA-256, SCRYPT, ARGON2ID, got 'SHA-256'"),
        (changed(cost=2**31), r"cost \(iterations\) must be a whole number from 1 to 2000000, got 2147483648"),
        (changed(cost=0), r"cost \(iterations\) must be a whole number"),
        (changed(cost=True), r"cost \(iterations\) must be a whole number"),
        (changed(algorithm="SCRYPT", cost=2**20, memoryCost=8), "must need at most 268,435,456 bytes of memory"),
        (changed(algorithm="SCRYPT", cost=2**17, memoryCost=8, parallelism=17), "parallelism must be a whole number from 1 to 16"),
        (changed(algorithm="ARGON2ID", cost=1, memoryCost=2**20), "must need at most 268,435,456 bytes of memory"),
        (changed(algorithm="ARGON2ID", cost=10_000, memoryCost=65_536), "and move 4,294,967,296 for one try, got 67,108,864 and"),
        (changed(algorithm="ARGON2ID", cost=1, memoryCost="8"), "memory cost .KiB. must be a whole number"),
        (changed(keyLength=2**20), "key length must be a whole number from 1 to 64"),
        (changed(keyPrefix="00" * 33), "key prefix must not be longer than the key"),
        (changed(nonce="zz"), "nonce must be 1 to 64 bytes in hexadecimal digits"),
        (changed(salt=7), "salt must be 1 to 64 bytes in hexadecimal digits"),
        (changed(expiresAt="soon"), "expiry must be a whole number"),
        ({**changed(), "signature": 7}, "signature must be text"),
    ],
)
def test_what_no_honest_guard_would_set_is_not_tried(document, sentence):
    with pytest.raises(InvalidChallengeError, match=sentence):
        solve(FoundChallenge(document, 120.0))


def test_what_the_derivation_itself_refuses_is_an_invalid_challenge():
    with pytest.raises(InvalidChallengeError, match="must be one that can be tried, got"):
        solve(FoundChallenge(changed(algorithm="SCRYPT", cost=3, memoryCost=1), 120.0))  # N must be a power of two


def test_a_proof_that_no_header_holds_is_not_sent():
    with pytest.raises(InvalidChallengeError, match="must fit a header of 4096 bytes"):
        solve(FoundChallenge(changed(data={"pad": "x" * 3000}), 120.0))


ODD = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=2))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*issued().document["parameters"], "memoryCost", "parallelism"]), ODD, max_size=3))
def test_members_of_any_type_are_read_or_refused_and_never_crash(members):
    with contextlib.suppress(InvalidChallengeError):
        checked_challenge(json.loads(json.dumps(changed(**members))), SolveLimits())


# ---------------------------------------------------------------------- time


def test_a_search_ends_when_its_time_is_over_and_says_what_it_cost():
    with pytest.raises(ChallengeTooCostlyError, match=r"must be solved within 0.001 s, got no solution in \d+ tries") as caught:
        solve(FoundChallenge(changed(keyPrefix="00" * 16), 120.0), SolveLimits(max_seconds=0.001))
    assert caught.value.cpu_seconds > 0


def test_what_has_expired_is_not_begun_by_the_servers_word_or_by_the_clock():
    with pytest.raises(ChallengeTooCostlyError, match="must have time left to be solved in, got -2 s"):
        solve(challenge_in(refusal(issued(), expires_in=5)), waited_seconds=7.0)
    with pytest.raises(ChallengeTooCostlyError, match="check this machine's clock"):
        solve(challenge_in_text(issued().error), now=lambda: time.time() + 1000.0)


def test_a_server_whose_clock_is_far_off_is_believed_where_it_says_how_many_seconds_are_left():
    solved = solve(challenge_in(refusal(issued(), expires_in=100)), now=lambda: time.time() + 1000.0)
    assert PROOFS.verify(solved.proof, BOUND, time.time()).result == "valid"


def test_a_search_that_nobody_waits_for_ends_before_its_next_try():
    stop = threading.Event()
    stop.set()
    with pytest.raises(ChallengeTooCostlyError, match="got no solution in 0 tries"):
        solve(FoundChallenge(issued().document, 120.0), stop=stop)


@pytest.mark.parametrize("limits", [{"max_seconds": 0.0}, {"max_seconds": float("nan")}, {"memory_bytes": 0}, {"call_seconds": 0.0}])
def test_limits_must_leave_something(limits):
    with pytest.raises(ConfigurationError, match="max_seconds, call_seconds and memory_bytes must be above 0"):
        SolveLimits(**limits)


def test_an_expiry_that_no_clock_reaches_counts_as_none():
    problem = Problem("proof-of-work-required", "pay", 402, extensions={"challenge": {}, "expires_in": 10**400})
    assert challenge_in(problem).expires_in is None
