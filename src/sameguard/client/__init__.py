"""The client side of the guard: it solves proofs of work, splits batches and comes back when told to. Runs without torch.

`RemoteEndpoint` is a model behind a URL as an Endpoint, `RemoteVictim` the same as a victim, `GuardSession` the building block for clients
of your own (with `ask_splitting` for batches that are bytes), `create_proxy` for those in other languages.
"""

from sameguard.client.answer_book import AnswerBook
from sameguard.client.config import ClientConfig
from sameguard.client.errors import (
    CallTooCostlyError,
    ChallengeTooCostlyError,
    EndpointUnavailableError,
    InvalidChallengeError,
    UnexpectedAnswerError,
)
from sameguard.client.proxy import create_proxy
from sameguard.client.remote_endpoint import RemoteEndpoint, Rows, ServerDescription
from sameguard.client.remote_victim import RemoteVictim
from sameguard.client.session import GuardSession, Reply, Traffic
from sameguard.client.solving import FoundChallenge, Solved, SolveLimits, Spending, challenge_in, challenge_in_text, solve
from sameguard.client.splitting import ask_splitting

__all__ = [
    "AnswerBook",
    "CallTooCostlyError",
    "ChallengeTooCostlyError",
    "ClientConfig",
    "EndpointUnavailableError",
    "FoundChallenge",
    "GuardSession",
    "InvalidChallengeError",
    "RemoteEndpoint",
    "RemoteVictim",
    "Reply",
    "Rows",
    "ServerDescription",
    "SolveLimits",
    "Solved",
    "Spending",
    "Traffic",
    "UnexpectedAnswerError",
    "ask_splitting",
    "challenge_in",
    "challenge_in_text",
    "create_proxy",
    "solve",
]
