"""The processes that bench_guard.py measures: a model server stub, a relay, and guards with stand-in scorers. Prints its port, runs until killed.

python benchmarks/guard_processes.py stub
python benchmarks/guard_processes.py relay UPSTREAM_URL
python benchmarks/guard_processes.py guard open|real|slow UPSTREAM_URL
"""

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sameguard.protocol import InferResponse, OpenInference, Tensor, ask
from sameguard.scoring.two_stage import Reconstruction
from sameguard.server.app import DataPlane
from sameguard.server.demo_server import demo_contract, demo_folder
from sameguard.server.scoring import Found, ScoringQueue, StageA
from sameguard.server.service import GuardService
from sameguard.server.settings import Settings

ROWS = 12  # of 8x8 float32 values: 3 kB
SLOW_SECONDS = 0.02


class StandIn:
    """A scorer that finds nothing suspicious, after `seconds` for each row of stage A."""

    parallel = 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, jobs):
        rows = sum(len(job.queries) for job in jobs if isinstance(job, StageA))
        if self.seconds:
            time.sleep(self.seconds * rows)
        return [
            Found(np.zeros(len(job.queries)), Reconstruction(job.queries, {}, {}))
            if isinstance(job, StageA)
            else Found(np.full(len(job.reconstruction), -1e9))
            for job in jobs
        ]

    def close(self) -> None: ...


def stub() -> Starlette:
    """Reads the body and answers a fixed tensor."""
    dialect = OpenInference(demo_contract())
    request = ask(np.zeros((ROWS, 1, 8, 8), np.float32), dialect.model)
    logits = Tensor("logits", "FP32", np.zeros((ROWS, 10), np.float32))
    message = dialect.build_infer_response(InferResponse((logits,), np.empty((0, 10), np.float32), model_name="digits"), request)
    one = ask(np.zeros((1, 1, 8, 8), np.float32), dialect.model)
    single = dialect.build_infer_response(
        InferResponse((Tensor("logits", "FP32", logits.array[:1]),), np.empty((0, 10), np.float32), model_name="digits"), one
    )

    async def infer(request: Request) -> Response:
        body = await request.body()
        chosen = message if len(body) > 2000 else single
        return Response(chosen.body, headers=chosen.headers)

    async def extensions(request: Request) -> Response:
        return Response(b'{"name":"stub","extensions":["binary_tensor_data"]}', media_type="application/json")

    async def ready(request: Request) -> Response:
        return Response(b"")

    return Starlette(
        routes=[
            Route("/v2", extensions),
            Route("/v2/models/digits/ready", ready),
            Route("/v2/models/digits/infer", infer, methods=["POST"]),
        ]
    )


def relay(upstream: str) -> Callable[..., Awaitable[None]]:
    """The least that a proxy on the same libraries can do: it reads a body, sends it on with aiohttp, and sends the answer back."""
    session: aiohttp.ClientSession | None = None

    async def app(
        scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        if session is None:
            session = aiohttp.ClientSession(auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name not in (b"host", b"content-length")}
        async with session.post(upstream + scope["path"], data=body, headers=headers) as answer:
            content = await answer.read()
            kept = [
                (name.lower().encode(), value.encode()) for name, value in answer.headers.items() if name.lower() not in ("date", "server")
            ]
        await send({"type": "http.response.start", "status": answer.status, "headers": kept})
        await send({"type": "http.response.body", "body": content})

    return app


def guard(kind: str, upstream: str) -> DataPlane:
    with demo_folder() as folder:
        settings = Settings(
            artifact=folder / "artefact",
            mode="shadow" if kind == "real" else "enforce",  # the stub's even answers look suspicious to a real scorer
            upstream={"url": upstream, "model": "digits", "output": "logits", "output_kind": "logits"},
            policy={"kind": "reject"},
            cache={"seconds": 0},
            canary={"enabled": False},
        )
    service = GuardService(settings)
    app = DataPlane(service)
    started = service.start

    async def start() -> None:
        await started()
        if kind != "real":
            slow = kind == "slow"
            queue = ScoringQueue(
                StandIn(SLOW_SECONDS if slow else 0.0), batch_rows=32, waiting_rows=64 if slow else 4096, deadline_seconds=2.0
            )
            object.__setattr__(service.snapshot, "queue", queue)

    service.start = start
    return app


def main() -> None:
    app = {"stub": stub, "relay": relay, "guard": guard}[sys.argv[1]](*sys.argv[2:])
    config = uvicorn.Config(app, port=0, http="h11", ws="none", log_config=None, access_log=False, proxy_headers=False)
    server = uvicorn.Server(config)
    startup = server.startup

    async def announced(sockets=None) -> None:
        await startup(sockets)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    server.startup = announced
    server.run()


if __name__ == "__main__":
    main()
