"""The edge of the data plane: one HTTP request as ASGI brings it, read within limits, dropped when its client goes."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sameguard.protocol import BodyTooLargeError, InvalidRequestError
from sameguard.server.replies import Reply, unavailable
from sameguard.server.settings import ListenSettings

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client has closed its connection: nobody waits for an answer."""


class BodyTimeoutError(InvalidRequestError):
    """The body did not come within the time that is allowed."""

    status = 408


def header_bytes(scope: dict[str, Any]) -> int:
    return sum(len(name) + len(value) for name, value in scope["headers"])


class Bodies:
    """Bodies on their way, at most `most`, and in memory, at most `most_bytes` of those on their way and of those at work together.

    Beyond either, the peer that holds the most on its way gives up what it began first: who opens many keeps nobody out but himself.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self._coming: dict[Body, None] = {}  # in order of arrival

    @contextlib.contextmanager
    def body(self, peer: str) -> Iterator["Body"]:
        """A body of this peer's, which counts until its request is through."""
        body = Body(peer, self)
        try:
            yield body
        finally:
            self.held_bytes -= body.size

    @contextlib.contextmanager
    def coming(self, body: "Body") -> Iterator[None]:
        self._coming[body] = None
        if len(self._coming) > self.most:
            self._give_up(self._first_of_greediest(lambda other: 1))
        try:
            yield
        finally:
            self._coming.pop(body, None)

    def expect(self, size: int) -> None:
        """Raises Refusal where not even giving up all that is on its way would make room for so many bytes."""
        if self.held_bytes + size > self.most_bytes:
            at_work = self.held_bytes - sum(body.size for body in self._coming)
            if at_work + size > self.most_bytes:
                raise unavailable("body-bytes")

    def grow(self, body: "Body", count: int) -> None:
        """Counts bytes that have come. Raises Refusal where this body is the one to be given up for them."""
        if body not in self._coming:  # given up already: its reader is about to wake
            return
        body.size += count
        self.held_bytes += count
        while self.held_bytes > self.most_bytes:
            given_up = self._first_of_greediest(lambda other: other.size)
            self._give_up(given_up)
            if given_up is body:
                raise unavailable("body-bytes")

    def _first_of_greediest(self, weight: Callable[["Body"], int]) -> "Body":
        held: Counter[str] = Counter()
        for body in self._coming:
            held[body.peer] += weight(body)
        greediest = max(held, key=lambda peer: held[peer])
        return next(body for body in self._coming if body.peer == greediest and weight(body))

    def _give_up(self, body: "Body") -> None:
        """Its bytes go when its reader wakes, in the next turn of the loop: they count no more."""
        del self._coming[body]
        self.held_bytes -= body.size
        body.size = 0
        if body.patience is not None and not body.patience.expired():
            body.patience.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False)
class Body:
    """One body of a peer's. size: bytes of it in memory. patience: with its reader."""

    peer: str
    bodies: Bodies
    size: int = 0
    patience: asyncio.Timeout | None = None


async def read_body(
    receive: Receive, headers: dict[str, str], limits: ListenSettings, body: Body | None = None, *, most_bytes: int | None = None
) -> bytes:
    """The whole body, of at most `most_bytes`, by default the listener's limit. body: where it is counted among others.

    Raises BodyTooLargeError, BodyTimeoutError, InvalidRequestError (too many pieces), ClientGoneError; Refusal where there is no room.
    """
    most = limits.body_bytes if most_bytes is None else min(most_bytes, limits.body_bytes)
    body = body or Body("", Bodies(1, most))
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise InvalidRequestError("Content-Length must be a whole number.")
    if int(declared) > most:
        raise _too_large(most)
    body.bodies.expect(int(declared))
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds) as body.patience:
            with body.bodies.coming(body):
                for _ in range(limits.body_pieces):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > most:
                        raise _too_large(most)
                    body.bodies.grow(body, len(piece))
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
    except TimeoutError as error:
        raise BodyTimeoutError(f"body must arrive within {limits.body_seconds:g} s, got {size} bytes so far.") from error
    raise InvalidRequestError(f"body must come in at most {limits.body_pieces} pieces, got more.")


async def unless_gone(work: Awaitable[Result], receive: Receive) -> Result:
    """The work's result; the work is cancelled when the client goes. Raises ClientGoneError."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_reply(send: Send, reply: Reply, request_id: str) -> None:
    headers = {**reply.headers, "content-length": str(len(reply.body)), "guard-request-id": request_id}
    await send({
        "type": "http.response.start",
        "status": reply.status,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": reply.body})


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"body must have at most {most} bytes, got more: send fewer rows at once.")
