"""What stops a client. Each is also the builtin that a caller would expect.

    SameguardError
    ├── EndpointUnavailableError    ConnectionError   no usable answer, however often it was asked
    ├── UnexpectedAnswerError       RuntimeError      an answer that asking again would not change
    ├── InvalidChallengeError       ValueError        a challenge that is none, or whose single tries cost too much
    ├── ChallengeTooCostlyError     TimeoutError      a challenge that was not solved in the time that the client spends on one
    └── CallTooCostlyError          TimeoutError      challenges that together take more than the client spends on one call

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
    """The challenge was not solved in the time that this client spends on one. seconds, cpu_seconds: spent in vain."""

    reply: "Reply | None" = None

    def __init__(self, message: str, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.cpu_seconds = cpu_seconds


class CallTooCostlyError(SameguardError, TimeoutError):
    """The challenges of one call would take more than this client spends on it: what was answered before is lost with the call."""

    reply: "Reply | None" = None
