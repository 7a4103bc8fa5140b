"""The data plane as a bare ASGI application: routes by exact path, reads within limits, hands inference to the flow, passes the rest on."""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import structlog

from sameguard.protocol import Problem, Route, RouteKind, WireError, read_headers
from sameguard.server import replies
from sameguard.server.decision import Observer
from sameguard.server.edge import (
    Bodies,
    BodyTimeoutError,
    ClientGoneError,
    Receive,
    Send,
    header_bytes,
    read_body,
    send_reply,
    unless_gone,
)
from sameguard.server.flow import Asked, passed_on
from sameguard.server.identity import Principal
from sameguard.server.replies import Refusal, Reply, problem_reply
from sameguard.server.service import GuardService
from sameguard.server.settings import Settings
from sameguard.server.snapshot import Snapshot
from sameguard.server.trace import Trace
from sameguard.server.upstream import UpstreamFailedError

THREADED_BYTES = 256 * 2**10  # a larger body is parsed off the event loop: 2.8 MB of JSON would block it for 20 ms
log = structlog.get_logger("sameguard")


class DataPlane:
    """ASGI application. Its lifespan starts and closes the service, so any ASGI server may run it; one process only with a memory store."""

    def __init__(self, service: GuardService) -> None:
        self.service = service
        self.settings = service.settings
        self._in_flight = 0
        self._bodies = Bodies(service.settings.listen.concurrency, service.settings.listen.body_bytes_in_flight)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.service.start()
        except Exception as error:
            await self.service.close()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if self.service.snapshot is None:  # an ASGI server that runs no lifespan has not started it
            await send_reply(send, replies.unavailable("not-started").reply, "")
            return
        async with self.service.using() as snapshot:
            trace = Trace(snapshot.model.name, snapshot.artifact_digest)
            route = snapshot.dialect.routes.classify(scope["method"], scope.get("raw_path") or b"")
            try:
                reply = await self._replied(route, snapshot, trace, scope, receive)
                trace.status = reply.status
                async with asyncio.timeout(self.settings.listen.send_seconds):
                    await send_reply(send, reply, trace.request_id)
            except ClientGoneError:
                trace.status, trace.outcome, trace.reason = 499, "failed", "client-gone"
            except TimeoutError:  # it does not read what it asked for: the server closes what is left open
                trace.reason = "client-slow"
            finally:
                if route.kind in (RouteKind.INFER, RouteKind.DENIED):
                    if not trace.principal:  # refused before its headers were read
                        trace.principal = self.service.identity.principal({}, _peer(scope)).name
                    self._observed(trace)
                else:
                    self.service.telemetry.passed(trace.status, trace.reason if trace.outcome == "failed" else "")

    async def _replied(self, route: Route, snapshot: Snapshot, trace: Trace, scope: dict[str, Any], receive: Receive) -> Reply:
        """Every way out ends here as a reply; what nobody foresaw is a refusal, too."""
        try:
            return await self._handled(route, snapshot, trace, scope, receive)
        except Refusal as refusal:
            trace.outcome, trace.reason = refusal.outcome, refusal.reason
            return refusal.reply
        except WireError as error:
            trace.outcome, trace.reason, trace.detail = "denied", error.problem, str(error)
            ends = {"connection": "close"} if isinstance(error, BodyTimeoutError) else {}  # the rest may still come, as something else
            return problem_reply(Problem.of(error), "deny", ends)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            if not self.service.draining:
                raise
            trace.outcome, trace.reason = "failed", "shutdown"  # the grace is over
            return replies.unavailable("shutdown").reply
        except Exception as error:
            log.exception("unforeseen", request_id=trace.request_id)
            trace.outcome, trace.reason, trace.detail = "failed", "unforeseen", type(error).__name__
            return replies.unavailable("unforeseen").reply

    async def _handled(self, route: Route, snapshot: Snapshot, trace: Trace, scope: dict[str, Any], receive: Receive) -> Reply:
        if self._in_flight >= self.settings.listen.concurrency:
            raise replies.unavailable("concurrency")
        if header_bytes(scope) > self.settings.listen.header_bytes:
            raise _denied("input-invalid", f"headers must have at most {self.settings.listen.header_bytes} bytes together", "headers", 431)
        headers = read_headers(scope["headers"], also_once=self.service.identity.once)
        principal = self.service.identity.principal(headers, _peer(scope))
        trace.principal = principal.name  # a refusal has somebody's name, too
        if route.kind is RouteKind.DENIED:
            raise _denied("not-found", "there is no such door here", "not-found")
        if scope.get("query_string"):
            raise _denied("input-invalid", "query strings are not understood here: leave it out", "query-string")
        if route.kind is not RouteKind.INFER:
            return await unless_gone(self._passed(route), receive)
        if not self.service.checked and self.settings.mode == "enforce" and principal.within(self.settings.rollout):
            raise replies.unavailable("upstream-unchecked")  # whoever is only watched is passed on
        if self.service.audit is not None and self.service.audit.must_refuse:
            raise replies.unavailable("audit")
        with self._bodies.body(principal.address) as held:
            with trace.stage("body"):
                most = snapshot.model.request_limits.body_bytes
                body = await read_body(receive, headers, self.settings.listen, held, most_bytes=most)
            with self._admitted():  # only now: whoever sends slowly takes nobody's place
                return await unless_gone(self._inferred(body, headers, principal, snapshot, trace), receive)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self.settings.listen.concurrency:
            raise replies.unavailable("concurrency")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _inferred(self, body: bytes, headers: dict[str, str], principal: Principal, snapshot: Snapshot, trace: Trace) -> Reply:
        self._charge(principal.name, 1)  # also for what is not understood
        with trace.stage("parse"):
            parse = snapshot.dialect.parse_infer
            threaded = len(body) > THREADED_BYTES or "content-encoding" in headers  # a small body may be a large one inside
            request = await asyncio.to_thread(parse, body, headers) if threaded else parse(body, headers)
            digest = self._digest(request.digest(snapshot.model), headers)
        trace.digest, trace.rows = digest.hex(), len(request.queries)
        if trace.rows > 1:
            self._charge(principal.name, trace.rows - 1)
        return await self.service.flow.answer(Asked(request, digest, headers, principal), snapshot, trace)

    def _charge(self, principal: str, rows: int) -> None:
        seconds = self.service.quotas.take(principal, rows)
        if seconds is not None:
            raise replies.over_quota(seconds)

    def _digest(self, digest: bytes, headers: dict[str, str]) -> bytes:
        """Of everything of a request that the model server may answer by: inputs, and the headers that a setting lets through.

        Authorization among them: a model server that is shown it may answer each tenant with a model of its own, and a verdict or a proof for
        one would be good for the other.
        """
        upstream = self.settings.upstream
        names = (*upstream.pass_headers, *(("authorization",) if upstream.pass_authorization else ()))
        told = {name: headers[name.lower()] for name in sorted(names) if name.lower() in headers}
        return hashlib.sha256(digest + orjson.dumps(told)).digest() if told else digest

    async def _passed(self, route: Route) -> Reply:
        """Metadata and health, unscored, the same for everybody."""
        try:
            answer = await self.service.upstream.glance(route.upstream_path)
        except UpstreamFailedError as error:
            raise replies.upstream_failed(error.status, error.reason) from error
        if 300 <= answer.status < 400:
            raise replies.upstream_failed(502, f"upstream-status-{answer.status}")
        return passed_on(answer)

    def _observed(self, trace: Trace) -> None:
        decision = trace.decision()
        if self.service.observe(decision, trace.evidence) and trace.detail:
            log.info(
                "request", request_id=trace.request_id, outcome=trace.outcome, reason=trace.reason or trace.degraded, detail=trace.detail
            )


def create_app(settings: Settings, observers: Sequence[Observer] = ()) -> DataPlane:
    """The guard for an ASGI server of your own. observers: told of every decision, see `server.decision`.

    Raises ConfigurationError for settings that contradict each other; what needs artefact, store or model server is checked at its start.
    """
    return DataPlane(GuardService(settings, observers))


def _peer(scope: dict[str, Any]) -> str:
    return (scope.get("client") or ("",))[0]


def _denied(kind: str, detail: str, reason: str, status: int = 0) -> Refusal:
    return Refusal(problem_reply(Problem(kind, detail, status), "deny"), "denied", reason)
