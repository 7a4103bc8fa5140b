"""A proxy for one's own machine that pays: any client in any language talks to it as to the guard, and never sees a challenge.

Requests and answers pass whole and unread; only the headers between two neighbours are dropped. The exception is a batch that the guard
takes in smaller parts only: the rows are sent in halves (`splitting`), in dialects that tell where the rows are. A client that goes away ends
the work for it. The proxy sends on whatever it is given, with its own headers: so it is for loopback, and refuses web pages, which could
otherwise make the browser's machine work.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from sameguard.client.config import ClientConfig
from sameguard.client.errors import EndpointUnavailableError, UnexpectedAnswerError
from sameguard.client.session import GuardSession, Reply
from sameguard.client.splitting import ask_splitting
from sameguard.errors import ConfigurationError
from sameguard.protocol import Problem

BODY_BYTES = 64 * 2**20
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
OF_THE_MESSAGE = frozenset({"host", "content-length", "expect"})  # written anew
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def create_proxy(
    upstream: str,
    *,
    headers: Mapping[str, str] | None = None,
    config: ClientConfig | None = None,
    body_bytes: int = BODY_BYTES,
    hosts: tuple[str, ...] | None = tuple(LOOPBACK_NAMES),
) -> Starlette:
    """The proxy as an ASGI application. headers: added to every request. body_bytes: of a request, at most.

    hosts: names by which clients may call the proxy, which keeps out web pages that had theirs point here; None takes any. Its `state.stop()`
    answers 503 to whatever is under way, for a server that is told to end; `state.traffic` are the session's counts.

    Raises ConfigurationError.
    """
    if body_bytes < 1:
        raise ConfigurationError(f"body_bytes must be at least 1, got {body_bytes}: it is the largest request.")
    session = GuardSession(upstream, headers=headers, config=config)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with session:
            yield

    proxy = _Proxy(session, body_bytes, hosts)
    app = Starlette(lifespan=lifespan, routes=[Mount("/", app=proxy)])
    app.state.traffic = session.traffic
    app.state.stop = proxy.stop
    return app


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a socket bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Proxy:
    """An ASGI application."""

    def __init__(self, session: GuardSession, body_bytes: int, hosts: tuple[str, ...] | None) -> None:
        self.session = session
        self.body_bytes = body_bytes
        self.hosts = hosts
        self._under_way: set[asyncio.Task] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        task = asyncio.create_task(self._answer(Request(scope, receive)))
        self._under_way.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._under_way.discard(task)
            task.cancel()  # nothing where it is done
        response = _of_problem(Problem("unavailable", "this proxy is stopping")) if task.cancelled() else task.result()
        if response is not None:
            await response(scope, receive, send)

    def stop(self) -> None:
        for task in self._under_way:
            task.cancel()

    async def _answer(self, request: Request) -> Response | None:
        """None where the client has gone."""
        problem = self._refusal(request)
        if problem is not None:
            return _of_problem(problem)
        try:
            body = await _bounded_body(request, self.body_bytes)
        except ClientDisconnect:
            return None
        if body is None:
            return _of_problem(Problem("too-large", f"this proxy takes bodies of at most {self.body_bytes} bytes"))
        passing = asyncio.create_task(self._passed_on(request, body))
        leaving = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return passing.result() if passing.done() else None
        finally:
            passing.cancel()  # with it the solving of its proof
            leaving.cancel()

    def _refusal(self, request: Request) -> Problem | None:
        host = _host_name(request.headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            return Problem("about:blank", f"this proxy is called {' or '.join(sorted(self.hosts))}", 403)
        if "origin" in request.headers:
            return Problem("about:blank", "this proxy serves programs, not web pages", 403)
        if not _raw_path(request.scope).startswith("/"):
            return Problem("input-invalid", "the request target must be a path")
        return None

    async def _passed_on(self, request: Request, body: bytes) -> Response:
        headers = _travelling((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw)
        try:
            reply = await ask_splitting(self.session, request.method, _raw_path(request.scope), headers, body)
        except (EndpointUnavailableError, UnexpectedAnswerError) as error:
            return _of_problem(Problem("upstream-error", str(error)))
        response = Response(reply.body, reply.status)
        response.raw_headers = _answer_headers(reply, request.method)
        return response


async def _gone(request: Request) -> None:
    """Returns once the client has left. Its whole body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bounded_body(request: Request, most: int) -> bytes | None:
    """None where it is larger."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _raw_path(scope: Scope) -> str:
    """Path and query string as they came, percent-encoded."""
    query = scope["query_string"].decode("latin-1")
    return scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


def _travelling(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that are meant for whoever is at the other end."""
    given = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in given if name == "connection" for word in value.split(",")}
    return [(name, value) for name, value in given if name not in HOP_BY_HOP | OF_THE_MESSAGE and name not in named]


def _answer_headers(reply: Reply, method: str) -> list[tuple[bytes, bytes]]:
    kept = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in _travelling(reply.headers())]
    if method == "HEAD" or reply.status in (204, 304):  # a length there speaks of a body that is not sent
        length = reply.header("content-length")
        return kept + ([(b"content-length", length.encode("latin-1"))] if length is not None else [])
    return [*kept, (b"content-length", str(len(reply.body)).encode())]


def _of_problem(problem: Problem) -> Response:
    message = problem.to_message()
    return Response(message.body, problem.status, message.headers)
