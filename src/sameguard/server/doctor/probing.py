"""Harmless questions to a host: does this path exist, does this port open, does HTTP/2 answer there. A few at a time, briefly."""

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

BODY_BYTES = 256 * 2**10
AT_ONCE = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and an empty SETTINGS frame
SETTINGS_FRAME = 4
HTTP_PORTS = {"http": 80, "https": 443}


class Reply(NamedTuple):
    """status None: nothing came, for the reason in `error`."""

    status: int | None
    body: bytes = b""
    error: str = ""

    def document(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


class Prober:
    """Asks the model server at `url` and its host's ports. Use it as an asynchronous context."""

    def __init__(self, url: str, *, seconds: float) -> None:
        parts = urlsplit(url)
        self.url = url
        self.host = str(parts.hostname)
        self.port = parts.port or HTTP_PORTS[parts.scheme]
        self.seconds = seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Prober":
        timeout = aiohttp.ClientTimeout(total=self.seconds)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, base: str | None = None) -> Reply:
        """The answer to GET, the beginning of its body, redirects not followed."""
        if self._session is None:
            raise RuntimeError("prober must be entered before it asks.")
        url = URL((self.url if base is None else base) + path, encoded=True)
        async with self._turns:
            try:
                async with self._session.get(url, allow_redirects=False) as response:
                    return Reply(response.status, await response.content.read(BODY_BYTES))
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                return Reply(None, error=f"{type(error).__name__}: {error}".rstrip(": "))

    async def connects(self, host: str, port: int) -> bool:
        """Whether a TCP connection opens."""
        return await self._connected(host, port, b"") is not None

    async def speaks_http2(self, host: str, port: int) -> bool:
        """Whether a server answers HTTP/2's greeting without TLS, as gRPC servers do."""
        answer = await self._connected(host, port, PREFACE)
        return answer is not None and len(answer) >= 9 and answer[3] == SETTINGS_FRAME

    async def _connected(self, host: str, port: int, greeting: bytes) -> bytes | None:
        """The first bytes that come back to a greeting; None where nobody listens."""
        async with self._turns:
            try:
                async with asyncio.timeout(self.seconds):
                    reader, writer = await asyncio.open_connection(host, port)
            except (TimeoutError, OSError):
                return None
            answer = b""
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                if greeting:
                    async with asyncio.timeout(self.seconds):
                        writer.write(greeting)
                        await writer.drain()
                        answer = await reader.readexactly(9)  # the head of a frame
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return answer

    async def addresses(self) -> list[str]:
        """What the host's name resolves to; empty where it does not."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            return []
        return sorted({str(address[4][0]) for address in found})


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def machine_addresses() -> list[str]:
    """Addresses of this machine other than loopback, as far as names and routes tell."""
    found = set()
    with contextlib.suppress(OSError):
        found |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # reserved for documentation: nothing is sent
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))
            found.add(str(probe.getsockname()[0]))
    return sorted(address for address in found if not is_loopback(address))
