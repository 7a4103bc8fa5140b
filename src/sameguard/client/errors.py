"""What stops a client. Each is also the builtin that a caller would expect.

    SameguardError
    ├── EndpointUnavailableError    ConnectionError   no usable answer, however often it was asked
    ├── UnexpectedAnswerError       RuntimeError      an answer that asking again would not change
    ├── InvalidChallengeError       ValueError        a challenge that is none, or whose single tries cost too much
    └── ChallengeTooCostlyError     TimeoutError      a challenge that was not solved in the time that the client spends

Those about an answer carry it as `reply`, None where there was none.
"""

from typing import TYPE_CHECKING

from sameguard.errors import SameguardError

if TYPE_CHECKING:
    from sameguard.client.session import Reply


class EndpointUnavailableError(SameguardError, ConnectionError):
    """The server gave no usable answer. What a ledger holds is kept: the same run goes on from there."""


class UnexpectedAnswerError(SameguardError, RuntimeError):
    """The server answered in a way that asking again would not change."""


class InvalidChallengeError(SameguardError, ValueError):
    """What the server asks to be solved is no challenge, or one that no honest guard would set."""

    reply: "Reply | None" = None


class ChallengeTooCostlyError(SameguardError, TimeoutError):
    """The challenge was not solved in the time that this client spends on one. cpu_seconds: spent in vain."""

    reply: "Reply | None" = None

    def __init__(self, message: str, cpu_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.cpu_seconds = cpu_seconds
