"""An asynchronous HTTP session with a guard: it solves challenges, comes back when told to, and gives the answers as bytes.

What a body means is the caller's: RemoteEndpoint and the client-proxy are both built on this, and so may be a client of your own. One base
address, one pool of connections, no redirects, no cookies, bounded answers.
"""

import asyncio
import email.utils
import functools
import random
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from sameguard.client.config import ClientConfig
from sameguard.client.errors import (
    CallTooCostlyError,
    ChallengeTooCostlyError,
    EndpointUnavailableError,
    InvalidChallengeError,
    UnexpectedAnswerError,
)
from sameguard.client.solving import FoundChallenge, Solved, Spending, challenge_in, solve
from sameguard.errors import ConfigurationError
from sameguard.protocol import Limits, Problem, WireError, inflate, read_problem
from sameguard.protocol.challenge import PROOF_BYTES, PROOF_HEADER, RETRY_PROOF

TRY_AGAIN = (408, 425, 429, 502, 503, 504)
IDLE_SECONDS = 4.0  # servers close idle connections after 5 s; a request must not go out on one that is just being closed
PROBLEM_BYTES = 64 * 2**10
RETRY_TOKEN = re.compile(rf"[A-Za-z0-9+/=_.-]{{1,{PROOF_BYTES}}}")
NOT_OURS = (
    "User-Agent",
    "Content-Type",
    "Accept",
    "Accept-Encoding",
)  # sent only where the caller says so: tritonclient sends no media type

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer, whole. raw_headers: as they came. body: as it came, still compressed."""

    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of that lower-case name."""
        return next((value for found, value in self.headers() if found.lower() == name), None)

    def headers(self) -> list[tuple[str, str]]:
        """As they came, in text."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]

    @functools.cached_property
    def problem(self) -> Problem:
        """What the server says instead of an answer."""
        body = self.body
        try:
            body = inflate(body, self.header("content-encoding") or "", Limits(PROBLEM_BYTES))
        except WireError:
            body = body[:PROBLEM_BYTES]
        return read_problem(self.status, body)

    def said(self) -> str:
        """The problem in a few words, for error messages."""
        problem = self.problem
        text = problem.detail if problem.kind == "about:blank" else f"{problem.kind}, {problem.detail}"
        return f"status {self.status}: {text if len(text) <= 300 else text[:297] + '...'}"


@dataclass
class Traffic:
    """What a session has sent and spent so far. challenges: solved. tries, solve_seconds, cpu_seconds: on solving, in vain or not."""

    requests: int = 0
    retries: int = 0
    challenges: int = 0
    unsolved: int = 0
    tries: int = 0
    solve_seconds: float = 0.0
    cpu_seconds: float = 0.0


class GuardSession:
    """An open session with the server at `url`; use it as an asynchronous context manager, in one event loop.

    headers: sent with every request, such as an API key. traffic: counts. sleep, clock: of the event loop, replaced in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        config: ClientConfig | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = checked_url(url)
        self.headers = dict(headers or {})
        self.config = config or ClientConfig()
        self.traffic = Traffic()
        self._sleep = sleep
        self._clock = clock
        self._next_start = -float("inf")
        self._jitter = random.Random()
        self._http: aiohttp.ClientSession | None = None
        self._solvers: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> "GuardSession":
        self._solvers = ThreadPoolExecutor(self.config.solvers, thread_name_prefix="sameguard-solver")
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.config.connections, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self.config.timeout_seconds, sock_connect=self.config.connect_seconds),
            auto_decompress=False,  # unbounded there
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=NOT_OURS,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, where: TracebackType | None = None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._solvers is not None:
            self._solvers.shutdown(wait=False, cancel_futures=True)
            self._solvers = None

    async def get(self, path: str, headers: Headers = (), *, response_bytes: int | None = None) -> Reply:
        """See request."""
        return await self.request("GET", path, headers, response_bytes=response_bytes)

    async def post(self, path: str, headers: Headers, body: bytes, *, spending: Spending | None = None) -> Reply:
        """See request."""
        return await self.request("POST", path, headers, body, spending=spending)

    async def request(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        spending: Spending | None = None,
        response_bytes: int | None = None,
    ) -> Reply:
        """The answer once challenges are solved and waiting has helped or has not; whatever its status, it is the caller's to judge.

        path: absolute, percent-encoded, sent as it is. spending: of the call that this request is a part of. response_bytes: read at most,
        instead of the config's.

        Raises ConfigurationError for another path, EndpointUnavailableError where the last attempt brought no answer at all,
        UnexpectedAnswerError for an answer that is too large, InvalidChallengeError, ChallengeTooCostlyError and CallTooCostlyError where
        the client does not pay; these carry the reply that asks for it.
        """
        if not path.startswith("/"):  # an @ there would make it another host
            raise ConfigurationError(f"path must be absolute, got {path!r}.")
        given = list(headers.items() if isinstance(headers, Mapping) else headers)
        proof = next((value for name, value in given if name.lower() == PROOF_HEADER), None)
        sent = [(name, value) for name, value in (*self.headers.items(), *given) if name.lower() != PROOF_HEADER]
        spending = spending or Spending()
        most = response_bytes or self.config.response_bytes
        challenges = failures = 0
        while True:
            own = [] if proof is None else [(PROOF_HEADER, proof)]
            outcome = await self._attempt(method, path, [*sent, *own], body, most)
            reply = outcome if isinstance(outcome, Reply) else None
            if reply is not None and self.config.solve and challenges < self.config.most_challenges:
                settled, proof = await self._settled(reply, proof, spending)
                if settled:
                    challenges += proof is not None
                    continue
            if reply is not None and reply.status not in TRY_AGAIN:
                return reply
            failures += 1
            if failures >= self.config.attempts:
                if reply is not None:
                    return reply
                raise EndpointUnavailableError(
                    f"{self.url} must answer, got {outcome} at the last of {failures} attempts: try again once it is back. What a ledger "
                    "holds is kept, and the same run goes on from there."
                )
            self.traffic.retries += 1
            after = None if reply is None else _retry_after(reply.header("retry-after"))
            await self._sleep(self.config.wait_seconds(failures, after, self._jitter))

    # ------------------------------------------------------------------ paying

    async def _settled(self, reply: Reply, proof: str | None, spending: Spending) -> tuple[bool, str | None]:
        """Whether asking again at once may help, and with which proof."""
        try:
            found = challenge_in(reply.problem)
            if found is not None:
                return True, await self._solved(found, spending)
        except (InvalidChallengeError, ChallengeTooCostlyError, CallTooCostlyError) as error:
            self.traffic.unsolved += 1
            error.reply = reply
            raise
        if proof is not None and reply.problem.kind in ("proof-expired", "proof-replayed", "proof-invalid", "proof-mismatch"):
            return True, None  # without a proof the query is judged again, and a new challenge comes
        token = reply.problem.extensions.get(RETRY_PROOF)
        if reply.status in (502, 504) and isinstance(token, str) and RETRY_TOKEN.fullmatch(token):
            return False, token  # paid already: after the wait, this one passes
        return False, proof

    async def _solved(self, found: FoundChallenge, spending: Spending) -> str:
        arrived, stop = time.monotonic(), threading.Event()
        limits = spending.limits(self.config.solving)

        def work() -> Solved:
            return solve(found, limits, waited_seconds=time.monotonic() - arrived, stop=stop)

        try:
            solved = await asyncio.get_running_loop().run_in_executor(self._solvers, work)
        except ChallengeTooCostlyError as error:
            self.traffic.cpu_seconds += error.cpu_seconds
            spending.seconds += error.seconds
            spending.limits(self.config.solving)  # where the call has nothing left, that is what to say
            raise
        finally:
            stop.set()  # whoever waited may be gone before the thread is done
        spending.seconds += solved.seconds
        spending.solved += 1
        self.traffic.challenges += 1
        self.traffic.tries += solved.tries
        self.traffic.solve_seconds += solved.seconds
        self.traffic.cpu_seconds += solved.cpu_seconds
        return solved.proof

    # ------------------------------------------------------------------ asking

    async def _attempt(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes | None, most: int) -> Reply | str:
        """The reply, or what stood in its way."""
        if self._http is None:
            raise RuntimeError("session must be open before it asks: async with GuardSession(...) as session.")
        await self._paced()
        self.traffic.requests += 1
        url = URL(self.url + path, encoded=True)
        try:
            async with self._http.request(method, url, headers=headers, data=body or None, allow_redirects=False) as response:
                content = await _bounded(response, most)
                return Reply(response.status, tuple(response.raw_headers), content)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, aiohttp.InvalidURL, ssl.SSLError) as error:
            raise EndpointUnavailableError(f"{self.url} must be reachable, got {type(error).__name__}: {error}") from error
        except TimeoutError:
            return f"no answer within {self.config.timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    async def _paced(self) -> None:
        if self.config.requests_per_second is None:
            return
        now = self._clock()
        start = max(now, self._next_start)
        self._next_start = start + 1.0 / self.config.requests_per_second
        if start > now:
            await self._sleep(start - now)


def checked_url(url: str) -> str:
    """The base address without a slash at its end. Raises ConfigurationError for what is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good or parts.query or parts.fragment or parts.username or not url.isascii() or any(letter <= " " for letter in url):
        raise ConfigurationError(f"url must be http://host[:port][/prefix] or https://..., without user, query or fragment, got {url!r}.")
    return url.rstrip("/")


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body. Raises UnexpectedAnswerError where it is larger than `most` bytes."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most:
            raise UnexpectedAnswerError(
                f"answer of {response.url} must have at most {most:,} bytes, got {size:,} and more: ask for fewer rows at once, raise "
                "response_bytes, or do not trust this server."
            )
        pieces.append(piece)
    return b"".join(pieces)


def _retry_after(text: str | None) -> float | None:
    """Seconds, from seconds or a date."""
    if text is None:
        return None
    if text.isascii() and text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
