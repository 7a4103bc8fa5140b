"""The model server behind the guard: one base address, one pool of connections, no redirects, no second attempts, bounded answers."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from sameguard.errors import SameguardError
from sameguard.protocol import Message
from sameguard.server.settings import UpstreamSettings

ERROR_BYTES = 64 * 2**10  # of an answer that is passed on unread
GLANCE_SECONDS = 1.0
IDLE_SECONDS = 4.0  # many servers close idle connections after 5 s; no request may go out on one that is just being closed


class UpstreamFailedError(SameguardError, RuntimeError):
    """No answer from the model server. status: 502, or 504 where it was too slow. reason: for metrics and logs."""

    def __init__(self, message: str, reason: str, status: int = 502) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


@dataclass(frozen=True)
class UpstreamAnswer:
    """headers: lower-case names. body: as it came, still compressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Upstream:
    """Asks the model server. Open it in the event loop that uses it.

    failures: since it last answered an inference request: no answer, 5xx, or one that is no answer (`misunderstood`). That it is healthy, by
    its own word, ends no row of them.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.failures = 0
        self._session: aiohttp.ClientSession | None = None
        self._glances: dict[str, asyncio.Future[UpstreamAnswer]] = {}  # path -> the last look, over or not
        self._glanced: dict[str, float] = {}  # path -> when it was over

    async def open(self) -> None:
        chosen = self.settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=chosen.connections, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=chosen.timeout_seconds, sock_connect=chosen.connect_seconds),
            auto_decompress=False,  # unbounded there: `inflate` has limits
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type"),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        for look in self._glances.values():
            look.cancel()
        if self._session is not None:
            await self._session.close()

    async def infer(self, path: str, message: Message, headers: Mapping[str, str]) -> UpstreamAnswer:
        """The answer to one inference request; whoever reads it says whether it was `understood`. headers: the client's that travel.

        Raises UpstreamFailedError.
        """
        answer = await self._ask("POST", path, {**headers, **message.headers}, message.body, self.settings.response_bytes)
        if 400 <= answer.status < 500:  # it is well; the request was not
            self.understood()
        elif answer.status < 400 and answer.status != 200:  # neither an answer nor an error
            self.misunderstood()
        return answer

    def understood(self) -> None:
        """The last inference was answered."""
        self.failures = 0

    def misunderstood(self) -> None:
        """What came with status 200 is no answer to the request."""
        self.failures += 1

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> UpstreamAnswer:
        """Metadata or health. Raises UpstreamFailedError."""
        return await self._ask("GET", path, dict(headers or {}), None, self.settings.response_bytes)

    async def glance(self, path: str) -> UpstreamAnswer:
        """As `get`, at most a second old: whoever asks meanwhile gets the same answer, so that no number of them costs more than one.

        path: one of the dialect's own, which are few. Raises UpstreamFailedError.
        """
        asked = self._glances.get(path)
        if asked is None or (
            asked.done() and (asked.cancelled() or asked.exception() or self._glanced[path] + GLANCE_SECONDS <= time.monotonic())
        ):
            asked = self._glances[path] = asyncio.ensure_future(self._glance(path))
        return await asyncio.shield(asked)  # it is not this client's alone

    async def _glance(self, path: str) -> UpstreamAnswer:
        answer = await self.get(path)
        self._glanced[path] = time.monotonic()
        return answer

    async def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None, most: int) -> UpstreamAnswer:
        if self._session is None:
            raise RuntimeError("upstream must be opened before it is asked.")
        url = self.settings.url + path
        try:
            async with self._session.request(method, _exact(url), headers=headers, data=body, allow_redirects=False) as response:
                content = await _bounded(response, most)
                answer = UpstreamAnswer(response.status, {name.lower(): value for name, value in response.headers.items()}, content)
        except TimeoutError as error:
            raise self._failed(
                f"model server {url} must answer in {self.settings.timeout_seconds:g} s, got nothing.", "upstream-timeout", 504
            ) from error
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise self._failed(
                f"model server {url} must be reachable, got {type(error).__name__}: {error}", "upstream-unreachable"
            ) from error
        if answer.status >= 500:
            self.failures += 1
        return answer

    def _failed(self, message: str, reason: str, status: int = 502) -> UpstreamFailedError:
        self.failures += 1
        return UpstreamFailedError(message, reason, status)


def _exact(url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)  # our own path, which nobody normalises


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body up to `most` bytes."""
    if (response.content_length or 0) > most:
        raise aiohttp.ClientPayloadError(f"answer of {response.content_length} bytes, more than {most}")
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most:
            raise aiohttp.ClientPayloadError(f"answer of more than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def wait_until(check: Any, *, seconds: float, interval: float = 0.5) -> None:
    """Tries `check()` again while it raises UpstreamFailedError, for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await check()
        except UpstreamFailedError:
            if time.monotonic() + interval > deadline:
                raise
            await asyncio.sleep(interval)
