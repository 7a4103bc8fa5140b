"""Honest keys, challenges and proofs, for tests that then do something dishonest with them."""

import base64
import json
import time
from typing import Any

import altcha
import numpy as np

from sameguard.policies import Challenge, Puzzle
from sameguard.server.proofs import Bound, IssuedChallenge, ProofKey, Proofs

QUICK = Puzzle("PBKDF2/SHA-256", cost=2, seconds_per_try=1e-5)
OLD, NEW, THIRD = (ProofKey(kid, bytes(np.random.default_rng(seed).integers(0, 256, 32, np.uint8))) for seed, kid in enumerate("abc"))
BOUND = Bound("cifar10", "ab" * 32, bytes(range(32)), "cd" * 8)
CHARGE = Challenge(level=2, work=4)
NOW = time.time() + 86_400.0  # altcha looks at the system's clock as well: to it, these challenges are young


def made(*keys: ProofKey, boot_id: str | None = None, puzzle: Puzzle = QUICK) -> Proofs:
    return Proofs(keys or (NEW,), puzzle, boot_id=boot_id)


def solved(issued: IssuedChallenge) -> dict[str, Any]:
    return proof_of(json.loads(json.dumps(issued.document)))


def proof_of(document: dict[str, Any]) -> dict[str, Any]:
    """The proof that an honest client computes from the document alone, as JSON."""
    challenge = altcha.Challenge.from_dict(document)
    solution = altcha.solve_challenge(challenge)
    assert solution is not None
    return altcha.Payload(challenge, solution).to_dict()


def header_of(proof: Any) -> str:
    return base64.b64encode(json.dumps(proof).encode()).decode()


def result_of(proofs: Proofs, header: str, bound: Bound = BOUND, now: float = NOW) -> str:
    return proofs.verify(header, bound, now).result
