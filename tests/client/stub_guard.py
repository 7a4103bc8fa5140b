"""A guard on loopback for the client to meet: real HTTP, real proofs, a toy rule for suspicion, and faults on order."""

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import uvicorn

from sameguard.policies import Challenge, Puzzle
from sameguard.protocol import InferResponse, Message, ModelContract, OpenInference, Problem, Tensor, WireError, read_headers
from sameguard.server.proofs import Bound, ProofKey, Proofs
from sameguard.server.replay import MemoryReplayStore
from sameguard.victim import BlackBox
from stand_ins import CLASSES, IMAGES, linear_victim

KEY = ProofKey("k", bytes(np.random.default_rng(5).integers(0, 256, 32, np.uint8)))
QUICK = Puzzle("PBKDF2/SHA-256", cost=2, seconds_per_try=1e-5)
MODEL = ModelContract("digits", IMAGES, CLASSES, "probs", max_rows=8)
Fault = Callable[[Any, Any], Awaitable[None]]  # an ASGI answer: receive, send


class Heard(NamedTuple):
    """One inference request as it came in. rows: 0 where a fault answered before it was read."""

    rows: int
    headers: dict[str, str]
    body: bytes


class StubGuard:
    """Answers ordinary queries; those that begin with a white pixel are suspicious. It is an ASGI application.

    suspicion: `allow`, `reject` or `challenge`. costly_rows: a batch with more suspicious rows is too costly. largest_body: in bytes.
    faults: the next requests are answered by these instead. heard: every inference request so far.
    """

    def __init__(
        self, victim: BlackBox | None = None, suspicion: str = "challenge", *, model: ModelContract = MODEL, work: int = 4
    ) -> None:
        self.victim = victim or linear_victim()
        self.model = model
        self.dialect = OpenInference(model)
        self.suspicion = suspicion
        self.work = work
        self.costly_rows = 10**9
        self.largest_body = 10**9
        self.status = 402
        self.text_only = False  # the challenge in `error` alone
        self.extensions = ["binary_tensor_data"]
        self.metadata: dict[str, Any] | None = {
            "name": model.name,
            "platform": "stub",
            "inputs": [{"name": model.input.name, "datatype": model.input.dtype, "shape": [-1, *model.input.raw_shape]}],
            "outputs": [{"name": model.output, "datatype": "FP32", "shape": [-1, model.classes]}],
        }
        self.faults: deque[Fault | None] = deque()
        self.heard: list[Heard] = []
        self.proofs = Proofs([KEY], QUICK)
        self.store = MemoryReplayStore()

    @property
    def batches(self) -> list[int]:
        return [heard.rows for heard in self.heard]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, method = scope["raw_path"].decode(), scope["method"]
        if method == "GET" and path in (self.dialect.metadata_path, "/v2"):
            document = self.metadata if path != "/v2" else {"name": "stub", "version": "1", "extensions": self.extensions}
            await respond(200 if document else 404, {}, Message({}, b"{}" if document is None else _json(document)).body)(receive, send)
            return
        body = await _body(receive)
        fault = self.faults.popleft() if self.faults else None
        headers = read_headers(scope["headers"])
        if fault is not None:
            self.heard.append(Heard(0, headers, body))
            await fault(receive, send)
            return
        await respond(*await self._infer(path, headers, body))(receive, send)

    async def _infer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path != self.dialect.infer_path:
            return _refusal(Problem("not-found", "there is no such door"))
        if len(body) > self.largest_body:
            self.heard.append(Heard(0, headers, body))
            return 413, {"content-type": "text/html"}, b"<html>413 Request Entity Too Large</html>"
        try:
            request = self.dialect.parse_infer(body, headers)
        except WireError as error:
            return _refusal(Problem.of(error))
        self.heard.append(Heard(len(request.queries), headers, body))
        suspicious = int((request.queries.reshape(len(request.queries), -1)[:, 0] == 1).sum())
        bound = Bound(self.model.name, "ab" * 32, request.digest(self.model))
        proof = headers.get("guard-proof")
        if proof is not None:
            verdict = self.proofs.verify(proof, bound, time.time())
            if verdict.result != "valid":
                return _refusal(Problem(f"proof-{verdict.result}", "this proof does not count"))
            if not await self.store.redeem(verdict.nonce, verdict.expires_at):
                return _refusal(Problem("proof-replayed", "the proof was used before"))
        elif suspicious and self.suspicion == "reject":
            return _refusal(Problem("query-rejected", "this query is not answered"))
        elif suspicious and self.suspicion == "challenge":
            if suspicious > self.costly_rows:
                return _refusal(Problem("batch-too-costly", "send fewer rows at once"))
            return self.challenge(bound, suspicious)
        probs = self.victim.answer(request.queries)
        response = InferResponse((Tensor(self.model.output, "FP32", probs),), probs, self.model.name)
        message = self.dialect.build_infer_response(response, request)
        return 200, message.headers, message.body

    def challenge(self, bound: Bound, rows: int) -> tuple[int, dict[str, str], bytes]:
        issued = self.proofs.issue(Challenge(1, self.work * rows), bound, time.time())
        more = {} if self.text_only else {"challenge": issued.document, "header": "Guard-Proof", "expires_in": 120}
        return _refusal(Problem("proof-of-work-required", "solve `challenge`", self.status, issued.error, more))


# ---------------------------------------------------------------------- faults


def respond(status: int, headers: dict[str, str], body: bytes = b"") -> Fault:
    async def fault(receive: Any, send: Any) -> None:
        raw = [(name.encode(), value.encode()) for name, value in {"content-length": str(len(body)), **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    return fault


def problem(kind: str, status: int = 0, headers: dict[str, str] | None = None, **extensions: Any) -> Fault:
    message = Problem(kind, f"about {kind}", status, extensions=extensions).to_message()
    return respond(status or 503, {**message.headers, **(headers or {})}, message.body)


async def die_half_way(receive: Any, send: Any) -> None:
    """Promises more bytes than come before the connection is cut."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    raise ConnectionAbortedError


async def never_answer(receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(refused: Problem) -> tuple[int, dict[str, str], bytes]:
    message = refused.to_message()
    return refused.status, message.headers, message.body


def _json(document: Any) -> bytes:
    import json

    return json.dumps(document).encode()


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


# ---------------------------------------------------------------------- serving


@contextmanager
def served(app: Any, lifespan: str = "off") -> Iterator[str]:
    """The address of the application, served from another thread on a free port of loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)  # so that nobody has to wait for the thread
    config = uvicorn.Config(
        app, log_level=60, lifespan=lifespan, ws="none", timeout_graceful_shutdown=1, server_header=False, loop="asyncio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Sleeps(list):
    """An asyncio.sleep that only remembers for how long."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
