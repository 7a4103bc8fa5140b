"""Proofs of work over altcha: challenges are signed and forgotten, proofs are checked against nothing but our keys (serving.md 4).

A challenge is bound to one query, model, artefact, price list and key, and it expires; altcha signs all of it. A proof is parsed strictly before altcha
sees it: size first, then base64 and JSON that no other reader can take for something else, every member known and of its type. Nothing in
it is believed before the signature holds, and no key derivation runs on the way: the signed `keySignature` decides. What altcha leaves out,
that a proof is spent once, is `server.replay`: `Verdict.nonce` must be redeemed there before the upstream is asked.
"""

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import altcha
import orjson

from sameguard.errors import ConfigurationError, SameguardError
from sameguard.policies.base import Challenge
from sameguard.policies.proof_of_work import Puzzle
from sameguard.protocol.challenge import CHALLENGE_PREFIX, PROOF_BYTES
from sameguard.protocol.errors import InvalidRequestError
from sameguard.protocol.json_reading import read_json

KEY_BYTES = 32
LARGEST_COUNTER = 2**32 - 1  # altcha appends it to the nonce as four bytes
NAME_BYTES = 256  # of a model's name in a challenge: the proof has to fit its header

REFUND = Puzzle("PBKDF2/SHA-256", cost=1, seconds_per_try=1e-6)
PARAMETERS = {"algorithm", "cost", "keyLength", "keyPrefix", "nonce", "salt", "keySignature", "expiresAt", "data"}
OF_SOME_PUZZLES = {"memoryCost", "parallelism"}
BINDING = {"d", "m", "k", "l", "a", "p"}
HEX_32, HEX_64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
HEX_64_ANY_CASE = re.compile(r"[0-9a-fA-F]{64}")
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")


class InvalidProofError(SameguardError, ValueError):
    """A proof's text is not one that our clients write."""


@dataclass(frozen=True)
class ProofKey:
    """A named secret of at least 32 bytes. Raises ConfigurationError for a shorter one, or one that nobody drew at random."""

    kid: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if KEY_ID.fullmatch(self.kid) is None:
            raise ConfigurationError(f"key id must be 1 to 32 letters, digits, dots, dashes or underscores, got {self.kid!r}.")
        if len(self.secret) < KEY_BYTES or len(set(self.secret)) < 8:
            raise ConfigurationError(
                f"secret of proof key {self.kid} must be at least {KEY_BYTES} random bytes, got {len(self.secret)} of which "
                f"{len(set(self.secret))} differ: openssl rand -hex 32."
            )

    def part(self, purpose: bytes) -> bytes:
        """The secret for one purpose: a signature of one kind is never one of the other."""
        return hmac.new(self.secret, b"sameguard proof 1 " + purpose, hashlib.sha256).digest()


class Bound(NamedTuple):
    """What a proof is good for. query_digest: the canonical one, 32 bytes. prices: names the price list that it was charged by, to us alone."""

    model: str
    artifact_digest: str
    query_digest: bytes
    prices: str = ""


@dataclass(frozen=True)
class IssuedChallenge:
    """document: what the client has to solve, JSON types. expires_at: Unix seconds. nonce: what its proof will be redeemed by."""

    document: dict[str, Any]
    expires_at: int
    nonce: str

    @property
    def error(self) -> str:
        """The whole challenge as text, for clients that keep nothing of an answer but its `error`."""
        return CHALLENGE_PREFIX + base64.b64encode(orjson.dumps(self.document)).decode()


class ProofResult(StrEnum):
    """valid: redeem the nonce next. expired: too old, or of another life of this process. mismatch: paid for something else."""

    VALID = "valid"
    EXPIRED = "expired"
    INVALID = "invalid"
    MISMATCH = "mismatch"


class Verdict(NamedTuple):
    """detail: for the log only. nonce, expires_at and level: of a valid proof."""

    result: ProofResult
    detail: str
    nonce: str = ""
    expires_at: int = 0
    level: int = 0


class Proofs:
    """Issues challenges and verifies proofs.

    keys: one or two; the first signs, both verify, so that a key is rotated without a client noticing. ttl_seconds: life of a challenge,
    at least twice `worst_seconds`, the longest honest solve, and `skew_seconds` between the clocks of instances. boot_id: where spent
    proofs are kept in memory, a name for this life of the process (`new_boot_id`), so that none of an earlier life is good here.

    Raises ConfigurationError where these contradict each other, or the puzzle does not run here.
    """

    def __init__(
        self,
        keys: Sequence[ProofKey],
        puzzle: Puzzle,
        *,
        ttl_seconds: int = 120,
        worst_seconds: float = 5.0,
        skew_seconds: float = 5.0,
        boot_id: str | None = None,
    ) -> None:
        if not 1 <= len(keys) <= 2 or len({key.kid for key in keys}) != len(keys):
            raise ConfigurationError(f"proof keys must be one or two with different ids, got {[key.kid for key in keys]}.")
        if not ttl_seconds >= 2 * worst_seconds + skew_seconds:
            raise ConfigurationError(
                f"ttl_seconds must be at least twice the worst solve of {worst_seconds:g} s and {skew_seconds:g} s of clock skew, got {ttl_seconds}: "
                "a slow client would be late."
            )
        self.puzzle = puzzle
        self.ttl_seconds = ttl_seconds
        self.boot_id = boot_id
        self._keys = {key.kid: (key.part(b"challenge"), key.part(b"solution")) for key in keys}
        self._price_keys = {key.kid: key.part(b"prices") for key in keys}
        self._signing_kid = keys[0].kid
        try:
            seconds_per_try(puzzle, tries=1)
        except Exception as error:  # altcha, hashlib and argon2 each have their own
            raise ConfigurationError(f"puzzle {puzzle} must run here, got {type(error).__name__}: {error}") from error

    def issue(self, charge: Challenge, bound: Bound, now: float) -> IssuedChallenge:
        """A new challenge of mean work `charge.work`. It runs the key derivation once: call it off the event loop.

        now: Unix seconds. Raises ConfigurationError where the work does not fit a counter, or the model's name a header.
        """
        if not 1 <= charge.work <= LARGEST_COUNTER // 2:
            raise ConfigurationError(f"work of a challenge must be 1 to {LARGEST_COUNTER // 2} tries, got {charge.work}.")
        # uniform on [1, 2W]: mean W, and nowhere to start that is better than 1
        counter = 1 + secrets.randbelow(2 * charge.work)
        challenge = self._signed(self.puzzle, counter, charge.level, bound, now)
        return IssuedChallenge(challenge.to_dict(), challenge.parameters.expires_at, challenge.parameters.nonce)

    def refund(self, bound: Bound, now: float) -> str:
        """A solved proof for a client whose proof was spent and whose answer then failed: it passes once more, like any other."""
        challenge = self._signed(REFUND, 1, 0, bound, now)
        solution = altcha.solve_challenge(challenge, counter_start=1)
        return altcha.Payload(challenge, solution).to_base64()

    def verify(self, header: str, bound: Bound, now: float) -> Verdict:
        """What a Guard-Proof header is worth for this query; never raises for what a client sent.

        Expiry is judged by `now` and, inside altcha, by the system's clock: the earlier end counts.
        """
        try:
            payload = read_proof(header)
        except InvalidProofError as error:
            return Verdict(ProofResult.INVALID, str(error))
        parameters = payload.challenge.parameters
        secret, key_secret = self._keys.get(parameters.data["k"], (None, None))
        if secret is None:
            return Verdict(ProofResult.INVALID, "its key is not, or no longer, one of ours")
        found = altcha.verify_solution(payload, secret, hmac_key_secret=key_secret)
        if found.expired and not _is_signed(payload.challenge, secret):  # altcha has looked at nothing else
            return Verdict(ProofResult.INVALID, "its challenge was not signed by us, and its time is over")
        if not (found.expired or found.verified):
            return Verdict(ProofResult.INVALID, "its solution is wrong" if found.invalid_solution else "its challenge was not signed by us")
        if parameters.expires_at < now:
            return Verdict(ProofResult.EXPIRED, "its time is over")
        if found.expired:
            return Verdict(ProofResult.EXPIRED, "its time is over by the system's clock")
        return self._signed_verdict(parameters, bound)

    def _signed_verdict(self, parameters: altcha.ChallengeParameters, bound: Bound) -> Verdict:
        """The verdict on a proof whose signature and solution hold."""
        data = parameters.data
        if data.get("b") != self.boot_id:
            return Verdict(ProofResult.EXPIRED, "it was issued in another life of this process, or with another store")
        for name, wanted in self._binding(bound, data["k"]).items():
            if data[name] != wanted:
                return Verdict(ProofResult.MISMATCH, f"it is for another {WHAT[name]}")
        return Verdict(ProofResult.VALID, "", parameters.nonce, parameters.expires_at, data["l"])

    def _binding(self, bound: Bound, kid: str) -> dict[str, str]:
        # under a key: whoever guesses cut points and prices must not see that he is right
        prices = hmac.new(self._price_keys[kid], bound.prices.encode(), hashlib.sha256).hexdigest()[:16]
        return {"d": _digest_text(bound.query_digest), "m": bound.model, "a": bound.artifact_digest, "p": prices}

    def _signed(self, puzzle: Puzzle, counter: int, level: int, bound: Bound, now: float) -> altcha.Challenge:
        if len(bound.model.encode()) > NAME_BYTES or len(bound.artifact_digest.encode()) > NAME_BYTES:
            raise ConfigurationError(f"names in a challenge must have at most {NAME_BYTES} bytes, got model {bound.model[:40]!r}...")
        secret, key_secret = self._keys[self._signing_kid]
        data: dict[str, Any] = {**self._binding(bound, self._signing_kid), "k": self._signing_kid, "l": level}
        if self.boot_id is not None:
            data["b"] = self.boot_id
        return altcha.create_challenge(
            puzzle.algorithm,
            puzzle.cost,
            counter=counter,
            memory_cost=puzzle.memory_cost,
            parallelism=puzzle.parallelism,
            expires_at=math.floor(now) + self.ttl_seconds,
            data=data,
            key_length=32,
            key_prefix_length=16,  # half of the key: the other half is what the solver has to show
            hmac_secret=secret,
            hmac_key_secret=key_secret,
        )


WHAT = {"d": "query", "m": "model", "a": "artefact", "p": "price list"}


def new_boot_id() -> str:
    """A name for one life of a process."""
    return secrets.token_hex(8)


def seconds_per_try(puzzle: Puzzle, *, tries: int = 8) -> float:
    """How long one try takes on this core, by altcha's own key derivation: the mean of a few."""
    began = time.perf_counter()
    for counter in range(1, tries + 1):
        altcha.create_challenge(
            puzzle.algorithm, puzzle.cost, counter=counter, memory_cost=puzzle.memory_cost, parallelism=puzzle.parallelism
        )
    return (time.perf_counter() - began) / tries


# ---------------------------------------------------------------------- reading what a client sent


def read_proof(header: str) -> altcha.Payload:
    """The proof in a header, unverified, with every member of a type that altcha expects.

    Raises InvalidProofError for what is too long, not strict base64 of strict JSON, or holds a member too many, too few, or of another type.
    """
    if len(header) > PROOF_BYTES:
        raise InvalidProofError(f"proof must have at most {PROOF_BYTES} bytes, got more.")
    try:
        text = base64.b64decode(header, validate=True)
    except ValueError as error:
        raise InvalidProofError("proof must be strict base64, got something else.") from error
    if base64.b64encode(text).decode() != header:
        raise InvalidProofError("proof must be canonical base64, got unused bits that are not 0.")
    try:
        document = read_json(text)
    except InvalidRequestError as error:
        raise InvalidProofError("proof must be base64 of strict JSON, got something else.") from error
    proof = _members(document, "proof", {"challenge", "solution"})
    challenge = _members(proof["challenge"], "challenge", {"parameters", "signature"})
    _check_parameters(_members(challenge["parameters"], "parameters", PARAMETERS, OF_SOME_PUZZLES))
    _check_text(challenge, "signature", HEX_64)
    solution = _members(proof["solution"], "solution", {"counter", "derivedKey"}, {"time"})
    _check_number(solution, "counter", LARGEST_COUNTER)
    _check_text(solution, "derivedKey", HEX_64_ANY_CASE)
    if type(solution.get("time", 0)) not in (int, float):
        raise InvalidProofError("solution time must be a number, got something else.")
    return altcha.Payload.from_dict(proof)


def _check_parameters(parameters: dict[str, Any]) -> None:
    for name in ("cost", "keyLength", "expiresAt", *(OF_SOME_PUZZLES & parameters.keys())):
        _check_number(parameters, name, 2**53)
    for name, pattern in (("nonce", HEX_32), ("salt", HEX_32), ("keyPrefix", HEX_32), ("keySignature", HEX_64)):
        _check_text(parameters, name, pattern)
    _check_text(parameters, "algorithm", None)
    data = _members(parameters["data"], "data", BINDING, {"b"})
    for name in data.keys() - {"l"}:
        _check_text(data, name, None)
    _check_number(data, "l", 2**53)


def _members(value: object, what: str, needed: set[str], allowed: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not needed <= value.keys() <= needed | (allowed or set()):
        raise InvalidProofError(f"{what} must be an object of {', '.join(sorted(needed))}, got another.")
    return value


def _check_text(holder: dict[str, Any], name: str, pattern: re.Pattern[str] | None) -> None:
    value = holder[name]
    if not isinstance(value, str) or (pattern is not None and pattern.fullmatch(value) is None):
        raise InvalidProofError(f"{name} must be text{' of hexadecimal digits' if pattern else ''}, got something else.")


def _check_number(holder: dict[str, Any], name: str, most: int) -> None:
    value = holder[name]
    if type(value) is not int or not 0 <= value <= most:  # a bool is an int, too
        raise InvalidProofError(f"{name} must be a whole number from 0 to {most}, got something else.")


def _is_signed(challenge: altcha.Challenge, secret: bytes) -> bool:
    """Whether we made it, as altcha signs: HMAC-SHA-256 of its parameters as JSON without blanks, members by name."""
    text = json.dumps(challenge.parameters.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    wanted = hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    return hmac.compare_digest(challenge.signature, wanted)


def _digest_text(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"
