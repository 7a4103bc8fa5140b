"""The operators' port: dashboard, metrics, health, and the one thing that changes state, a reload of the artefact.

It answers to its own names only, or a page in an operator's browser could reach it by pointing a name of its own here; a request that
carries the token comes from no such page. The artefact is a secret: nothing here serves a file but the page's own three. On loopback the
token guards what changes state; on any other address it guards everything but the probes, which then say as little as they can.
"""

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sameguard.errors import ConfigurationError, SameguardError
from sameguard.server.history import History
from sameguard.server.pages import STATIC_FILES, render_dashboard
from sameguard.server.pages.dashboard import HOURS, read_static
from sameguard.server.settings import TOKEN_CHARACTERS, AdminSettings
from sameguard.server.telemetry import Telemetry

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PROBES = ("/healthz", "/readyz")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
log = structlog.get_logger("sameguard.admin")


@runtime_checkable
class ReadinessView(Protocol):
    """checks: (name, state, detail), state ok, warning or failed."""

    @property
    def ready(self) -> bool: ...

    @property
    def checks(self) -> Sequence[tuple[str, str, str]]: ...

    @property
    def warnings(self) -> Sequence[str]: ...


@runtime_checkable
class AdminView(Protocol):
    """What the admin port asks of a guard.

    description: mode, rollout, model, upstream, artifact, engine, policy, policy_lines, threshold (inf: none), false_positive_rate.
    openapi: of the data plane. benign_scores: the calibration's, of the artefact in service. reload: the new artefact's digest; where it
    raises, the old stays, and a SameguardError says why.
    """

    telemetry: Telemetry
    history: History

    @property
    def benign_scores(self) -> np.ndarray: ...

    def description(self) -> dict[str, Any]: ...

    def openapi(self) -> dict[str, Any]: ...

    async def readiness(self) -> ReadinessView: ...

    async def reload(self) -> str: ...


def create_admin(guard: AdminView, settings: AdminSettings) -> "Admin":
    """The admin port's ASGI app. Raises ConfigurationError for an address beyond loopback without a token, or a token that can be guessed."""
    if settings.host not in LOOPBACK and settings.token is None:
        raise ConfigurationError(f"admin.host {settings.host} is not loopback and needs admin.token, got none.")
    if settings.token is not None and len(settings.token.get_secret_value()) < TOKEN_CHARACTERS:
        raise ConfigurationError(f"admin.token must have at least {TOKEN_CHARACTERS} characters: openssl rand -hex 32.")
    pages = _Pages(guard, settings)
    routes = [
        Route("/", pages.dashboard, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/openapi.json", pages.openapi, methods=["GET"]),
        Route("/healthz", pages.alive, methods=["GET"]),
        Route("/readyz", pages.ready, methods=["GET"]),
        Route("/reload", pages.reload, methods=["POST"]),
        Route("/static/{name}", pages.static, methods=["GET"]),
    ]
    return Admin(Starlette(routes=routes), settings)


class Admin:
    """Who may ask, and the headers of every answer; what is answered is the inner app's."""

    def __init__(self, inner: ASGIApp, settings: AdminSettings) -> None:
        self.inner = inner
        self.settings = settings
        self._token = None if settings.token is None else settings.token.get_secret_value().encode()
        own = {*LOOPBACK, *settings.hosts, settings.host} - {"0.0.0.0", "::"}
        self._names = {(f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name).lower() for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        await (self.inner if refusal is None else refusal)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why this request is not answered; None where it is."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "POST"):
            return JSONResponse({"error": "only GET and POST are answered here"}, 405, {"Allow": "GET, POST"})
        known = self._carries_token(headers)
        scope["sameguard.full"] = known or (self._own_name(headers) and self.settings.host in LOOPBACK)
        if scope["path"] in PROBES and scope["method"] == "GET":  # a kubelet asks by the pod's address and has no token
            return None
        if not known and not self._own_name(headers):
            return JSONResponse({"error": "this host name is not one of ours: add it to admin.hosts"}, 421)
        if known or (scope["method"] == "GET" and self.settings.host in LOOPBACK):
            return None
        if self._token is None:
            return JSONResponse(
                {
                    "error": "what changes state needs a token: set admin.token (SAMEGUARD_ADMIN__TOKEN) and send it as Authorization: Bearer"
                },
                403,
            )
        return JSONResponse({"error": "token missing or wrong: send it as Authorization: Bearer"}, 401, {"WWW-Authenticate": "Bearer"})

    def _carries_token(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        if self._token is None or len(given) != 1:
            return False
        scheme, _, token = given[0].partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode("latin-1"), self._token)

    def _own_name(self, headers: Headers) -> bool:
        """The Host header names us. Its port may be any, as that of a forwarded one is, unless admin.hosts gives it."""
        given = headers.getlist("host")
        found = HOST.fullmatch(given[0]) if len(given) == 1 else None
        return found is not None and bool({found[0].lower(), found[1].lower()} & self._names)


class _Pages:
    """The routes."""

    def __init__(self, guard: AdminView, settings: AdminSettings) -> None:
        self.guard = guard
        self.settings = settings
        self._static = {name: read_static(name) for name in STATIC_FILES}

    async def dashboard(self, request: Request) -> Response:
        asked = request.query_params.get("hours", "1")
        if asked not in map(str, HOURS):
            return JSONResponse({"error": f"hours must be {' or '.join(map(str, HOURS))}"}, 400)
        hours, readiness = int(asked), await self.guard.readiness()
        description, benign_scores = self.guard.description(), self.guard.benign_scores

        def page() -> str:
            return render_dashboard(
                self.guard.history.view(60 * hours),
                hours,
                description,
                readiness,
                benign_scores,
                thumbnails=self.settings.thumbnails,
                address=str(request.base_url),
                now=time.time(),
            )

        return HTMLResponse(await run_in_threadpool(page))  # tens of milliseconds that requests must not wait for

    async def metrics(self, request: Request) -> Response:
        content, content_type = self.guard.telemetry.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self.guard.openapi())

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(self, request: Request) -> Response:
        readiness = await self.guard.readiness()
        told: dict[str, Any] = {"ready": readiness.ready}
        if request.scope["sameguard.full"]:
            told["checks"] = [{"name": name, "state": state, "detail": detail} for name, state, detail in readiness.checks]
            told["warnings"] = list(readiness.warnings)
        return JSONResponse(told, 200 if readiness.ready else 503)

    async def reload(self, request: Request) -> Response:
        try:
            digest = await self.guard.reload()
        except SameguardError as error:
            log.warning("reload failed", error=str(error))
            told = str(error)
        except Exception as error:
            log.exception("reload failed")
            told = f"the artefact could not be taken into service, got {type(error).__name__}: the guard's log has more."
        else:
            return JSONResponse({"artifact": digest})
        return JSONResponse({"error": told, "artifact": self.guard.description()["artifact"]}, 409)

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            return JSONResponse({"error": "no such page"}, 404)
        return Response(self._static[name], media_type=STATIC_FILES[name])
