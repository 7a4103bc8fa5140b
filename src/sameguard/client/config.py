"""How patient a client is, what it pays, and how fast it may ask."""

import math
import random
from dataclasses import dataclass, field

from sameguard.client.solving import SolveLimits
from sameguard.errors import ConfigurationError


@dataclass(frozen=True)
class ClientConfig:
    """Settings of a `GuardSession`, and of whatever asks through one.

    solve: pay with proofs of work; without it a challenge is a refusal. most_challenges: for one request, since a proof may come too late, or
    another process with the same key may have spent the one for the same query first.
    solvers: challenges solved at once. attempts: how often a request is sent before an overloaded, silent or broken server is given up on.
    first_wait_seconds, longest_wait_seconds: between attempts; it doubles, a quarter of it by chance, and Retry-After lengthens it up to the
    longest. requests_per_second: of this session, None for no limit. timeout_seconds: of one attempt. response_bytes: of an answer at most, as
    it comes and once inflated.
    """

    solve: bool = True
    solving: SolveLimits = field(default_factory=SolveLimits)
    most_challenges: int = 8
    solvers: int = 1
    attempts: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    requests_per_second: float | None = None
    timeout_seconds: float = 60.0
    connect_seconds: float = 10.0
    response_bytes: int = 16 * 2**20
    connections: int = 16

    def __post_init__(self) -> None:
        for name in ("most_challenges", "solvers", "attempts", "response_bytes", "connections"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("first_wait_seconds", "longest_wait_seconds", "timeout_seconds", "connect_seconds", "requests_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(f"{name} must be above 0 and finite, got {value}.")

    def wait_seconds(self, failures: int, retry_after: float | None, jitter: random.Random) -> float:
        """How long to wait after so many failures in a row."""
        doubled = self.first_wait_seconds * 2.0 ** min(failures - 1, 60)
        waited = min(doubled, self.longest_wait_seconds) * jitter.uniform(
            0.75, 1.0
        )  # clients that failed together must not return together
        return max(waited, min(retry_after or 0.0, self.longest_wait_seconds))
