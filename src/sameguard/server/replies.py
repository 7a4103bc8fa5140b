"""What a client is told when it gets no answer: problems with headers, never a score, a threshold or a rule."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sameguard.protocol import Message, Problem
from sameguard.server.proofs import IssuedChallenge

NO_STORE = {"cache-control": "no-store"}
RETRY_SECONDS = 1  # after overload
FAILED_PROOFS = {
    "expired": "the proof came too late, or was issued in another life of the guard",
    "invalid": "the proof is not one of this guard's, or its solution is wrong",
    "mismatch": "the proof was paid for another query, model or artefact, or at another price",
    "replayed": "the proof was used before",
}


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, whole. headers: lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Refusal(Exception):
    """Ends a request. outcome, reason: for the decision's record."""

    def __init__(self, reply: Reply, outcome: str, reason: str = "") -> None:
        super().__init__(reason)
        self.reply = reply
        self.outcome = outcome
        self.reason = reason


def problem_reply(problem: Problem, action: str = "", headers: Mapping[str, str] | None = None) -> Reply:
    """action: what Guard-Action says, which tells our 4xx from the model server's."""
    message: Message = problem.to_message()
    named = {"guard-action": action} if action else {}
    return Reply(problem.status, {**message.headers, **named, **(headers or {})}, message.body)


def refused() -> Refusal:
    problem = Problem("query-rejected", "this query is not answered")
    return Refusal(problem_reply(problem, "reject"), "refuse")


def too_costly() -> Refusal:
    problem = Problem("batch-too-costly", "this batch costs more than one request may: send fewer rows at once")
    return Refusal(problem_reply(problem, "split"), "too-costly")


def unavailable(reason: str) -> Refusal:
    """One sentence for overload, scorer and store: which it was stands in metrics and logs only."""
    problem = Problem("unavailable", "the service is not available at the moment: try again later")
    return Refusal(problem_reply(problem, "unavailable", {"retry-after": str(RETRY_SECONDS)}), "failed", reason)


def over_quota(seconds: float) -> Refusal:
    problem = Problem("quota", "too many rows were asked in a short time: wait as Retry-After says")
    return Refusal(problem_reply(problem, "quota", {"retry-after": str(max(1, math.ceil(seconds)))}), "denied", "quota")


def challenged(issued: IssuedChallenge, status: int, realm: str, now: float, kind: str = "proof-of-work-required") -> Reply:
    """A challenge; kind: or why the proof that came did not count."""
    if kind == "proof-of-work-required":
        detail = "solve `challenge` and send the same inputs again with header Guard-Proof"
    else:
        detail = f"{FAILED_PROOFS[kind.removeprefix('proof-')]}: solve the new `challenge`"
    left = max(0, issued.expires_at - math.floor(now))
    more = {"challenge": issued.document, "header": "Guard-Proof", "expires_in": left}
    problem = Problem(kind, detail, status, issued.error, more)
    expires = datetime.datetime.fromtimestamp(issued.expires_at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    header = {"www-authenticate": f'PoW realm="{realm}", alg="altcha-v2", expires="{expires}"'}
    return problem_reply(problem, "challenge", header)


def failed_proof(result: str, status: int) -> Reply:
    """Without a new challenge: what a new one would cost is not known before the query is judged again."""
    detail = f"{FAILED_PROOFS[result]}: send the request without Guard-Proof to get a new challenge"
    return problem_reply(Problem(f"proof-{result}", detail, status), "challenge")


def upstream_failed(status: int, reason: str, retry_proof: str | None = None, retry_after: str | None = None) -> Refusal:
    """retry_proof: for a client whose proof is spent: it passes once more with this one. retry_after: when, by the model server's word."""
    detail = "the model server did not answer in time" if status == 504 else "the model server gave no usable answer"
    more = {} if retry_proof is None else {"retry_proof": retry_proof, "header": "Guard-Proof"}
    wait = {} if retry_after is None else {"retry-after": retry_after}
    return Refusal(problem_reply(Problem("upstream-error", detail, status, extensions=more), "upstream-error", wait), "failed", reason)
