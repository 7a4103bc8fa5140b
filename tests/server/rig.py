"""A guard on a real port before a real model server, both in threads of this process: the bundled digits artefact, no torch."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from sameguard.protocol import OpenInference, ask
from sameguard.server.app import DataPlane
from sameguard.server.connection import bounded_protocol
from sameguard.server.connection_limits import Connections
from sameguard.server.decision import Decision, Evidence
from sameguard.server.demo_server import DemoServer, demo_contract
from sameguard.server.service import GuardService
from sameguard.server.settings import Settings

DEMO = Path(__file__).resolve().parents[2] / "src" / "sameguard" / "server" / "demo"
DIALECT = OpenInference(demo_contract())
INFER = DIALECT.infer_path


def demo_queries() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, and glyphs of the demonstration's thief; canonical."""
    stored = np.load(DEMO / "queries.npz", allow_pickle=False)
    return stored["digits"].astype(np.float32) / np.float32(255), stored["glyphs"].astype(np.float32) / np.float32(255)


def infer_message(queries: np.ndarray) -> tuple[dict[str, str], bytes]:
    message = DIALECT.build_infer(ask(queries, DIALECT.model))
    return message.headers, message.body


@dataclass
class Noted:
    """An observer that keeps everything."""

    decisions: list[Decision] = field(default_factory=list)
    evidence: list[Evidence | None] = field(default_factory=list)

    def observe(self, decision: Decision, evidence: Evidence | None) -> None:
        self.decisions.append(decision)
        self.evidence.append(evidence)


@contextlib.contextmanager
def served(app: Any, protocol: type[asyncio.Protocol] | str = "h11") -> Iterator[str]:
    """The address of an ASGI application that is served by uvicorn in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=protocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    )

    async def live() -> None:
        await server.serve()
        await asyncio.sleep(0.05)  # closed connections let go of their sockets in a later turn of the loop

    server.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("server did not start")
        thread.join(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass
class Rig:
    """url: of the guard. noted: its decisions. run: a coroutine function on the guard's event loop."""

    url: str
    service: GuardService
    upstream: Any
    noted: Noted
    run: Callable[[Any], Any]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis writes of it: not every decision so far."""
        printer.text(f"Rig({self.url})")


def settings_for(url: str, **changes: Any) -> Settings:
    """Settings of the demo before a model server; changes: sections to merge, or values."""
    known: dict[str, Any] = {
        "artifact": DEMO / "artefact",
        "mode": "enforce",
        "upstream": {"url": url, "model": "digits", "output": "logits", "output_kind": "logits"},
        "proofs": {"puzzle": "pbkdf2", "worst_seconds": 0.3, "ttl_seconds": 60},
        "scorer": {"deadline_seconds": 30.0},  # a busy machine must not shed what a test asks
    }
    for name, value in changes.items():
        known[name] = {**known.get(name, {}), **value} if isinstance(value, dict) else value
    return Settings(**known)


@contextlib.contextmanager
def rigged(
    app: Any = None, *, upstream_url: str | None = None, before: Callable[[GuardService], None] | None = None, **changes: Any
) -> Iterator[Rig]:
    """A started guard. app: the model server, the demo's by default; or upstream_url, where something listens already.

    before: changes the service before it starts.
    """
    with contextlib.ExitStack() as stack:
        app = app if app is not None or upstream_url is not None else DemoServer(DEMO / "victim.onnx")
        url = upstream_url or stack.enter_context(served(app))
        noted = Noted()
        service = GuardService(settings_for(url, **changes), [noted])
        if before is not None:
            before(service)
        loop = asyncio.new_event_loop()
        limits = service.settings.listen
        among = Connections(
            limits.connections, limits.peer_connections, is_trusted=service.identity.is_trusted, shed=service.connection_shed
        )
        config = uvicorn.Config(
            DataPlane(service), port=0, http=bounded_protocol(limits, among), ws="none", lifespan="off",
            log_config=None, timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        failed: list[BaseException] = []

        async def live() -> None:
            try:
                await service.start()
                await server.serve()
            except BaseException as error:
                failed.append(error)
            finally:
                await service.close()
                await asyncio.sleep(0.05)  # closed connections let go of their sockets in a later turn of the loop

        thread = threading.Thread(target=lambda: loop.run_until_complete(live()), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            thread.join(0.005)
        if failed:
            loop.close()
            raise failed[0]
        try:
            yield Rig(
                f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service, app, noted,
                lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(30),
            )  # fmt: skip
        finally:
            server.should_exit = True
            thread.join(20)
            loop.close()
