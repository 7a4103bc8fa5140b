"""Challenges read out of refusals, checked, and solved with altcha (serving.md 4.8).

A challenge is a stranger's program for our processor: a single try could be told to run for hours or to fill the memory, and cannot be
interrupted. So a try's own cost is bounded before the first one runs, and the number of tries by time. Solving releases the interpreter
lock (hashlib and argon2 do), so a thread is enough to keep an event loop going.
"""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import altcha

from sameguard.client.errors import CallTooCostlyError, ChallengeTooCostlyError, InvalidChallengeError
from sameguard.errors import ConfigurationError
from sameguard.protocol.challenge import CHALLENGE_PREFIX, CHALLENGE_STATUSES, PROOF_BYTES
from sameguard.protocol.problems import Problem

CHALLENGE_BYTES = 8 * 2**10
LARGEST_ITERATIONS = 2_000_000  # of one PBKDF2: about a second
LARGEST_TRAFFIC = 4 * 2**30  # bytes that one SCRYPT or ARGON2ID moves: a few seconds
KEY_BYTES = 64
MOST_LANES = 16
HEX = re.compile(r"(?:[0-9a-fA-F]{2}){1,64}")
DERIVATIONS: dict[str, Callable[[altcha.ChallengeParameters, bytes, bytes], bytes]] = {
    "PBKDF2/SHA-256": altcha.derive_key_pbkdf2,
    "SCRYPT": altcha.derive_key_scrypt,
    "ARGON2ID": altcha.derive_key_argon2id,
}


@dataclass(frozen=True)
class SolveLimits:
    """What a client spends on proofs. max_seconds: of trying for one challenge, on one core. memory_bytes: of a single try.

    call_seconds: of trying for all challenges of one call, solved or not. A call is one `query()`, one request of a session, or one request
    to the client-proxy, with all the parts that they are split into. An honest guard asks about 5 s for a request at worst.
    """

    max_seconds: float = 60.0
    memory_bytes: int = 256 * 2**20
    call_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not self.max_seconds > 0 or not self.call_seconds > 0 or self.memory_bytes < 1:
            raise ConfigurationError(
                "max_seconds, call_seconds and memory_bytes must be above 0, got "
                f"{self.max_seconds}, {self.call_seconds} and {self.memory_bytes}."
            )


@dataclass
class Spending:
    """What one call has spent on solving so far. seconds: whatever came of them. solved: challenges."""

    seconds: float = 0.0
    solved: int = 0

    def limits(self, limits: SolveLimits) -> SolveLimits:
        """Those for the next challenge. Raises CallTooCostlyError where nothing is left."""
        left = limits.call_seconds - self.seconds
        if not left > 0:
            raise CallTooCostlyError(
                f"challenges of one call must be solved within {limits.call_seconds:g} s in all, got {self.seconds:.3g} s spent and "
                f"{self.solved} solved: ask for fewer rows in one call, or raise call_seconds if you trust this server."
            )
        return replace(limits, max_seconds=min(limits.max_seconds, left))


class FoundChallenge(NamedTuple):
    """document: as the server sent it, unchecked. expires_in: seconds from its arrival, by the server's word; None where it gives none."""

    document: Any
    expires_in: float | None = None


@dataclass(frozen=True)
class Solved:
    """proof: the value of Guard-Proof. tries: key derivations. seconds: from begin to end. cpu_seconds: of the thread that solved."""

    proof: str
    tries: int
    seconds: float
    cpu_seconds: float


def challenge_in(problem: Problem) -> FoundChallenge | None:
    """The challenge that a refusal carries, as `challenge` or in its `error`; None where it carries none.

    Raises InvalidChallengeError where the error text begins like one and does not go on like one.
    """
    if problem.status not in CHALLENGE_STATUSES:
        return None
    document = problem.extensions.get("challenge")
    if document is None:
        return challenge_in_text(problem.error)
    left = problem.extensions.get("expires_in")
    told = type(left) in (int, float) and abs(left) < 2**53  # a larger number is no time, and would not fit a float
    return FoundChallenge(document, float(left) if told else None)


def challenge_in_text(error: str) -> FoundChallenge | None:
    """The challenge in an `error` text: all that clients such as tritonclient keep of a refusal. None where there is none."""
    if not error.startswith(CHALLENGE_PREFIX):
        return None
    text = error.removeprefix(CHALLENGE_PREFIX).strip()
    try:
        if len(text) > 2 * CHALLENGE_BYTES:
            raise ValueError("it is too long")
        return FoundChallenge(json.loads(base64.b64decode(text, validate=True)))
    except (binascii.Error, ValueError, RecursionError) as error_in_it:
        raise InvalidChallengeError(
            f"challenge in the error text must be base64 of JSON, got {text[:20]!a}... ({error_in_it}): ask who runs the server."
        ) from error_in_it


def solve(
    found: FoundChallenge,
    limits: SolveLimits | None = None,
    *,
    waited_seconds: float = 0.0,
    stop: threading.Event | None = None,
    now: Callable[[], float] = time.time,
) -> Solved:
    """The proof of work; runs for as long as it takes, so call it in a thread.

    waited_seconds: since the challenge came in. stop: set from outside, it ends the search before the next try. now: Unix seconds, asked
    only where the server does not say how many are left.

    Raises InvalidChallengeError for what no honest guard would set, ChallengeTooCostlyError where the time is over first.
    """
    limits = limits or SolveLimits()
    challenge = checked_challenge(found.document, limits)
    seconds = _seconds_allowed(found, challenge, limits, waited_seconds, now)
    derive = DERIVATIONS[challenge.parameters.algorithm]
    tries = 0

    def counted(parameters: altcha.ChallengeParameters, salt: bytes, password: bytes) -> bytes:
        nonlocal tries
        if stop is not None and stop.is_set():
            raise _StoppedError
        tries += 1
        return derive(parameters, salt, password)

    began, cpu_began = time.monotonic(), time.thread_time()
    try:
        solution = altcha.solve_challenge(challenge, counted, counter_start=1, timeout=seconds)
    except _StoppedError:
        solution = None
    except Exception as error:  # altcha, hashlib and argon2 each have their own
        raise InvalidChallengeError(f"challenge must be one that can be tried, got {type(error).__name__}: {error}") from error
    cpu_seconds = time.thread_time() - cpu_began
    if solution is None:
        raise ChallengeTooCostlyError(
            f"challenge must be solved within {seconds:.3g} s, got no solution in {tries} tries: allow more seconds, or send fewer rows at once.",
            time.monotonic() - began,
            cpu_seconds,
        )
    proof = altcha.Payload(challenge, solution).to_base64()
    if len(proof) > PROOF_BYTES:
        raise InvalidChallengeError(f"proof must fit a header of {PROOF_BYTES} bytes, got {len(proof)}: the challenge is too long.")
    return Solved(proof, tries, time.monotonic() - began, cpu_seconds)


class _StoppedError(Exception):
    """Nobody waits for the solution any more."""


def _seconds_allowed(
    found: FoundChallenge, challenge: altcha.Challenge, limits: SolveLimits, waited_seconds: float, now: Callable[[], float]
) -> float:
    left = found.expires_in
    expires_at = challenge.parameters.expires_at
    if left is not None:
        left -= waited_seconds
    elif expires_at is not None:
        left = expires_at - now()  # trusts that both clocks agree
    seconds = limits.max_seconds if left is None else min(limits.max_seconds, left)
    if not seconds > 0:
        raise ChallengeTooCostlyError(
            f"challenge must have time left to be solved in, got {seconds:.3g} s: ask for a new one, and check this machine's clock."
        )
    return seconds


# ---------------------------------------------------------------------- what is believed of a challenge


def checked_challenge(document: Any, limits: SolveLimits) -> altcha.Challenge:
    """The challenge, where every member that a try uses has its type and a try costs no more than an honest guard's.

    Raises InvalidChallengeError.
    """
    try:
        size = len(json.dumps(document))
        challenge = altcha.Challenge.from_dict(document)
        parameters = challenge.parameters
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidChallengeError(
            f"challenge must be an object of parameters and signature, got {type(error).__name__}: {error}"
        ) from error
    if size > CHALLENGE_BYTES:
        raise InvalidChallengeError(f"challenge must have at most {CHALLENGE_BYTES} bytes, got {size}.")
    if not isinstance(parameters.algorithm, str) or parameters.algorithm not in DERIVATIONS:
        raise InvalidChallengeError(f"challenge algorithm must be one of {', '.join(DERIVATIONS)}, got {ascii(parameters.algorithm)[:40]}.")
    for name in ("nonce", "salt", "key_prefix"):
        value = getattr(parameters, name)
        if not isinstance(value, str) or HEX.fullmatch(value) is None:
            raise InvalidChallengeError(f"challenge {name} must be 1 to 64 bytes in hexadecimal digits, got {ascii(value)[:40]}.")
    if challenge.signature is not None and not isinstance(challenge.signature, str):
        raise InvalidChallengeError(f"challenge signature must be text, got {ascii(challenge.signature)[:40]}.")
    if parameters.expires_at is not None:
        _whole(parameters.expires_at, "expiry", 1, 2**53)
    _whole(parameters.key_length, "key length", 1, KEY_BYTES)
    if len(parameters.key_prefix) > 2 * parameters.key_length:
        raise InvalidChallengeError("challenge key prefix must not be longer than the key: it could never be found.")
    _check_try(parameters, limits)
    return challenge


def _check_try(parameters: altcha.ChallengeParameters, limits: SolveLimits) -> None:
    """Refuses a key derivation that one try must not cost."""
    if parameters.algorithm == "PBKDF2/SHA-256":
        _whole(parameters.cost, "cost (iterations)", 1, LARGEST_ITERATIONS)
        return
    lanes = _whole(1 if parameters.parallelism is None else parameters.parallelism, "parallelism", 1, MOST_LANES)
    if parameters.algorithm == "SCRYPT":
        block = _whole(8 if parameters.memory_cost is None else parameters.memory_cost, "memory cost (block size)", 1, 64)
        memory = 128 * block * _whole(parameters.cost, "cost (N)", 2, 2**30)
        traffic = 2 * memory * lanes
    else:
        memory = 1024 * _whole(65_536 if parameters.memory_cost is None else parameters.memory_cost, "memory cost (KiB)", 8, 2**30)
        traffic = memory * _whole(parameters.cost, "cost (passes)", 1, 2**30)
    if memory > limits.memory_bytes or traffic > LARGEST_TRAFFIC:
        raise InvalidChallengeError(
            f"challenge must need at most {limits.memory_bytes:,} bytes of memory and move {LARGEST_TRAFFIC:,} for one try, "
            f"got {memory:,} and {traffic:,}: do not trust this server, or allow more."
        )


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:  # a bool is an int, too
        raise InvalidChallengeError(f"challenge {what} must be a whole number from {least} to {most}, got {ascii(value)[:40]}.")
    return value
