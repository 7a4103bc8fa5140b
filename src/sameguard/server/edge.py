"""The edge of the data plane: one HTTP request as ASGI brings it, read within limits, dropped when its client goes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from sameguard.protocol import BodyTooLargeError, InvalidRequestError
from sameguard.server.replies import Reply
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


class Readers:
    """Bodies that are on their way, at most `most`: beyond it the one that began first is given up, so that slow senders keep nobody out."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._patience: dict[asyncio.Timeout, None] = {}  # in order of arrival

    @contextlib.asynccontextmanager
    async def reading(self, seconds: float) -> AsyncIterator[None]:
        """Raises TimeoutError after so many seconds, or sooner to make room."""
        async with asyncio.timeout(seconds) as patience:
            self._patience[patience] = None
            if len(self._patience) > self.most:
                oldest = next(iter(self._patience))
                del self._patience[oldest]
                if not oldest.expired():
                    oldest.reschedule(asyncio.get_running_loop().time())
            try:
                yield
            finally:
                self._patience.pop(patience, None)


async def read_body(receive: Receive, headers: dict[str, str], limits: ListenSettings, readers: Readers | None = None) -> bytes:
    """The whole body. Raises BodyTooLargeError, BodyTimeoutError, InvalidRequestError (too many pieces), ClientGoneError."""
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise InvalidRequestError("Content-Length must be a whole number.")
    if int(declared) > limits.body_bytes:
        raise _too_large(limits)
    pieces: list[bytes] = []
    size = 0
    try:
        async with (readers or Readers(1)).reading(limits.body_seconds):
            for _ in range(limits.body_pieces):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                size += len(message.get("body", b""))
                if size > limits.body_bytes:
                    raise _too_large(limits)
                pieces.append(message.get("body", b""))
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


def _too_large(limits: ListenSettings) -> BodyTooLargeError:
    return BodyTooLargeError(f"body must have at most {limits.body_bytes} bytes, got more: send fewer rows at once.")
