"""Proofs: what altcha's own solver solves is accepted for one query, while it lives; see test_forged_proofs for what is not."""

import base64
import dataclasses
import json
import time
from typing import Any

import altcha
import numpy as np
import pytest
from honest_proofs import BOUND, CHARGE, NEW, NOW, OLD, QUICK, THIRD, header_of, made, result_of, solved

from sameguard.errors import ConfigurationError
from sameguard.policies import PUZZLES, Challenge, Puzzle
from sameguard.server.proofs import CHALLENGE_PREFIX, PROOF_BYTES, Bound, ProofKey, ProofResult, Proofs, new_boot_id, seconds_per_try


@pytest.fixture(scope="module")
def proof() -> dict[str, Any]:
    return solved(made().issue(CHARGE, BOUND, NOW))


# ---------------------------------------------------------------------- the honest way


def test_an_honest_proof_is_valid_and_says_what_to_redeem():
    proofs = made(boot_id=new_boot_id())
    issued = proofs.issue(CHARGE, BOUND, NOW)
    verdict = proofs.verify(header_of(solved(issued)), BOUND, NOW)
    assert (verdict.result, verdict.nonce, verdict.level) == (ProofResult.VALID, issued.nonce, 2)
    assert verdict.expires_at == issued.expires_at == int(NOW) + 120
    assert issued.document["parameters"]["nonce"] == issued.nonce


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_every_puzzle_is_issued_solved_and_verified(name):
    proofs = made(puzzle=PUZZLES[name])
    assert result_of(proofs, header_of(solved(proofs.issue(Challenge(1, 1), BOUND, NOW)))) == "valid"


def test_altchas_own_header_is_accepted_and_fits(proof):
    long_names = Bound("m" * 256, "sha256:" + "f" * 64, bytes(32))
    proofs = made(
        dataclasses.replace(NEW, kid="k" * 32), boot_id=new_boot_id(), puzzle=dataclasses.replace(PUZZLES["argon2id"], memory_cost=64)
    )
    challenge = altcha.Challenge.from_dict(proofs.issue(CHARGE, long_names, NOW).document)
    header = altcha.Payload(challenge, altcha.solve_challenge(challenge)).to_base64()
    assert len(header) < PROOF_BYTES
    assert result_of(proofs, header, long_names) == "valid"


def test_the_error_text_carries_the_whole_challenge():
    issued = made().issue(CHARGE, BOUND, NOW)
    assert issued.error.startswith(CHALLENGE_PREFIX)
    assert json.loads(base64.b64decode(issued.error.removeprefix(CHALLENGE_PREFIX), validate=True)) == issued.document
    assert len(issued.error) < 8192


def test_the_challenge_tells_level_and_binding_and_nothing_of_a_score():
    document = made(boot_id="life").issue(CHARGE, BOUND, NOW).document
    digest = "sha-256=:" + base64.b64encode(BOUND.query_digest).decode() + ":"
    data = document["parameters"]["data"]
    prices = data.pop("p")
    assert data == {"d": digest, "m": "cifar10", "k": NEW.kid, "l": 2, "a": "ab" * 32, "b": "life"}
    assert len(prices) == 16
    assert prices != made(OLD).issue(CHARGE, BOUND, NOW).document["parameters"]["data"]["p"]  # told under a key
    assert set(document) == {"parameters", "signature"}


def test_a_model_of_any_name_can_be_signed():
    bound = BOUND._replace(model='modèle "é" \\ \u2028 \U0001f600 \x7f')
    proofs = made()
    assert result_of(proofs, header_of(solved(proofs.issue(CHARGE, bound, NOW))), bound) == "valid"


def test_tries_are_drawn_uniformly_from_one_to_twice_the_work(monkeypatch):
    drawn: list[int] = []
    real = altcha.create_challenge

    def watched(*args: Any, counter: int, **settings: Any) -> altcha.Challenge:
        drawn.append(counter)
        return real(*args, counter=counter, **settings)

    proofs = made()
    monkeypatch.setattr(altcha, "create_challenge", watched)
    for _ in range(4000):
        proofs.issue(Challenge(1, 10), BOUND, NOW)
    counts = np.bincount(drawn, minlength=21)
    assert counts[0] == 0
    assert len(counts) == 21
    assert np.abs(counts[1:] - 200).max() < 5 * np.sqrt(200)
    assert abs(np.mean(drawn) - 10.5) < 0.5


def test_the_solver_needs_the_drawn_number_of_tries_wherever_it_begins():
    counters = [solved(made().issue(Challenge(1, 3), BOUND, NOW))["solution"]["counter"] for _ in range(60)]
    assert set(counters) <= set(range(1, 7))
    assert len(set(counters)) > 3


# ---------------------------------------------------------------------- bound, once, and not for long


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        (BOUND._replace(model="cifar100"), "another model"),
        (BOUND._replace(artifact_digest="cd" * 32), "another artefact"),
        (BOUND._replace(query_digest=bytes(32)), "another query"),
        (BOUND._replace(prices="ef" * 8), "another price list"),
    ],
)
def test_a_proof_is_good_for_one_query_model_and_artefact(proof, other, detail):
    verdict = made().verify(header_of(proof), other, NOW)
    assert (verdict.result, verdict.nonce) == ("mismatch", "")
    assert detail in verdict.detail


@pytest.mark.parametrize(("after", "wanted"), [(0.0, "valid"), (119.0, "valid"), (121.0, "expired"), (1e6, "expired")])
def test_a_proof_expires_with_its_challenge(proof, after, wanted):
    expires_at = proof["challenge"]["parameters"]["expiresAt"]
    assert result_of(made(), header_of(proof), now=expires_at - 120 + after) == wanted


def test_the_last_second_is_sharp(proof):
    expires_at = proof["challenge"]["parameters"]["expiresAt"]
    assert result_of(made(), header_of(proof), now=float(expires_at)) == "valid"
    assert result_of(made(), header_of(proof), now=expires_at + 0.001) == "expired"


def test_the_systems_clock_counts_where_ours_is_behind():
    past = time.time() - 500
    long_ago = solved(made().issue(CHARGE, BOUND, past))
    assert made().verify(header_of(long_ago), BOUND, past)[:2] == ("expired", "its time is over by the system's clock")


def test_the_old_key_verifies_until_it_is_taken_away():
    old_proof = header_of(solved(made(OLD).issue(CHARGE, BOUND, NOW)))
    rotated = made(NEW, OLD)
    assert result_of(rotated, old_proof) == "valid"
    assert rotated.issue(CHARGE, BOUND, NOW).document["parameters"]["data"]["k"] == NEW.kid
    assert result_of(made(THIRD, NEW), old_proof) == "invalid"


def test_a_key_id_is_no_key():
    forged = made(dataclasses.replace(OLD, kid=NEW.kid))
    assert result_of(made(), header_of(solved(forged.issue(CHARGE, BOUND, NOW)))) == "invalid"


def test_a_proof_of_an_earlier_life_dies_with_it():
    first, second, shared = made(boot_id=new_boot_id()), made(boot_id=new_boot_id()), made()
    kept = header_of(solved(first.issue(CHARGE, BOUND, NOW)))
    assert result_of(first, kept) == "valid"
    assert result_of(second, kept) == result_of(shared, kept) == "expired"
    assert result_of(first, header_of(solved(shared.issue(CHARGE, BOUND, NOW)))) == "expired"


def test_a_refund_passes_once_more_and_only_for_the_same_query():
    proofs = made(boot_id=new_boot_id())
    first, second = proofs.refund(BOUND, NOW), proofs.refund(BOUND, NOW)
    verdict = proofs.verify(first, BOUND, NOW)
    assert (verdict.result, verdict.level) == ("valid", 0)
    assert verdict.nonce != proofs.verify(second, BOUND, NOW).nonce
    assert result_of(proofs, first, BOUND._replace(query_digest=bytes(32))) == "mismatch"
    assert result_of(proofs, first, now=NOW + 200) == "expired"


# ---------------------------------------------------------------------- settings


def test_keys_that_nobody_drew_are_refused_and_none_is_printed():
    with pytest.raises(ConfigurationError, match="secret of proof key a must be at least 32 random bytes, got 31 of which"):
        ProofKey("a", OLD.secret[:31])
    for weak in (b"0" * 64, b"secret" * 8, bytes(32)):
        with pytest.raises(ConfigurationError, match=r"random bytes, got .* differ: openssl rand -hex 32"):
            ProofKey("a", weak)
    with pytest.raises(ConfigurationError, match="key id must be 1 to 32 letters"):
        ProofKey("", OLD.secret)
    with pytest.raises(ConfigurationError, match="key id must be 1 to 32 letters"):
        ProofKey("2026/11", OLD.secret)
    assert repr(OLD.secret)[2:-1] not in repr(OLD)
    assert "secret" not in repr(OLD)


@pytest.mark.parametrize("keys", [(), (OLD, NEW, THIRD), (OLD, OLD)])
def test_one_or_two_keys_of_different_names_are_needed(keys):
    with pytest.raises(ConfigurationError, match="proof keys must be one or two with different ids"):
        Proofs(keys, QUICK)


def test_a_life_that_is_too_short_for_an_honest_solve_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"ttl_seconds must be at least twice the worst solve of 5 s and 5 s of clock skew, got 14"
    ):
        Proofs((NEW,), QUICK, ttl_seconds=14)
    Proofs((NEW,), QUICK, ttl_seconds=15)


def test_a_puzzle_that_does_not_run_here_is_refused_at_the_start():
    for puzzle in (Puzzle("SCRYPT", cost=1000, memory_cost=8), Puzzle("ARGON2ID", cost=1, memory_cost=1, parallelism=1)):
        with pytest.raises(ConfigurationError, match="must run here, got"):
            made(puzzle=puzzle)


@pytest.mark.parametrize("work", [0, -1, 2**31])
def test_work_that_fits_no_counter_is_refused(work):
    with pytest.raises(ConfigurationError, match="work of a challenge must be 1 to 2147483647 tries, got"):
        made().issue(Challenge(1, work), BOUND, NOW)


def test_names_that_do_not_fit_a_header_are_refused():
    with pytest.raises(ConfigurationError, match="names in a challenge must have at most 256 bytes, got model 'mmm"):
        made().issue(CHARGE, BOUND._replace(model="m" * 257), NOW)


def test_the_time_of_a_try_is_measured():
    assert 0.0 < seconds_per_try(QUICK, tries=3) < seconds_per_try(dataclasses.replace(QUICK, cost=200_000), tries=1)
