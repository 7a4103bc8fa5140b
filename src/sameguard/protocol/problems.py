"""Refusals as RFC 9457 problem documents that also carry `error`, the one member that inference clients look for.

What stands in a problem is public: never a score, a threshold or a rule. Which action is taken is decided elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from sameguard.protocol.errors import WireError
from sameguard.protocol.json_reading import write_json
from sameguard.protocol.messages import Message

TYPE_PREFIX = "urn:sameguard:problem:"
PROBLEMS = {
    "proof-of-work-required": (402, "Proof of work required"),
    "proof-invalid": (402, "The proof is not valid"),
    "proof-expired": (402, "The proof has expired"),
    "proof-replayed": (402, "The proof was used before"),
    "proof-mismatch": (402, "The proof belongs to another query"),
    "query-rejected": (403, "The query is rejected"),
    "input-invalid": (400, "The request is not understood"),
    "not-found": (404, "There is no such door"),
    "too-large": (413, "The request is too large"),
    "batch-too-costly": (413, "The batch is too costly: send fewer rows at once"),
    "quota": (429, "Too many requests"),
    "unavailable": (503, "Not available at the moment"),
    "upstream-error": (502, "The model server failed"),
}
RESERVED = frozenset({"type", "title", "status", "detail", "error"})


@dataclass(frozen=True)
class Problem:
    """kind: a key of PROBLEMS, or about:blank for what others sent. error: what clients that know no problems show; detail by default.

    extensions: further members, such as the challenge. status: the kind's own unless given.
    """

    kind: str
    detail: str
    status: int = 0
    error: str = ""
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.status:
            object.__setattr__(self, "status", PROBLEMS[self.kind][0])
        if not self.error:
            object.__setattr__(self, "error", self.detail)
        if RESERVED & self.extensions.keys():
            raise ValueError(f"problem extensions must not be named {', '.join(sorted(RESERVED))}, got {sorted(self.extensions)}.")

    @property
    def title(self) -> str:
        return PROBLEMS[self.kind][1] if self.kind in PROBLEMS else _phrase(self.status)

    @classmethod
    def of(cls, error: WireError) -> "Problem":
        """What the client is told of a message that could not be handled; the error's detail stays here."""
        return cls(error.problem, error.public_reason, error.status)

    def to_message(self) -> Message:
        """The body, never to be stored."""
        kind = TYPE_PREFIX + self.kind if self.kind in PROBLEMS else self.kind
        document = {"type": kind, "title": self.title, "status": self.status, "detail": self.detail}
        headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
        return Message(headers, write_json({**document, "error": self.error, **self.extensions}))


def read_problem(status: int, body: bytes) -> Problem:
    """What a server answered instead of tensors: a problem of ours, {"error"} of a model server, or any other text. Never raises."""
    try:
        document = json.loads(body[: 64 * 2**10])
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        text = body[:200].decode("utf-8", "replace").strip() or _phrase(status)
        return Problem("about:blank", text, status)
    kind = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
    error = str(document.get("error") or document.get("detail") or "")
    return Problem(
        kind if kind in PROBLEMS else "about:blank",
        str(document.get("detail") or error),
        status,
        error,
        {name: value for name, value in document.items() if name not in RESERVED},
    )


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else f"HTTP status {status}"
