"""Model servers that are slow, or fail as they are told to: the latter a raw TCP proxy before a real one, in a thread of its own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from enum import Enum

from rig import DEMO

from sameguard.server.demo_server import DemoServer

GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"


class SlowServer(DemoServer):
    """Takes its time over each inference request. begun: those that have reached it. seconds: may be shortened meanwhile."""

    def __init__(self, seconds: float) -> None:
        super().__init__(DEMO / "victim.onnx")
        self.seconds = seconds
        self.begun = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("raw_path", b"").endswith(b"/infer"):
            self.begun += 1
            began = time.monotonic()
            while time.monotonic() < began + self.seconds:
                await asyncio.sleep(0.02)
        await super().__call__(scope, receive, send)


class Fault(Enum):
    """What bytes cannot say. NONE passes everything; SILENT never answers; DRIBBLE and FLOOD never come to an end, one slowly, one fast."""

    NONE = "none"
    SILENT = "silent"
    DRIBBLE = "dribble"
    FLOOD = "flood"


class Faulty:
    """fault: what inference requests get, bytes or one of the above. begun: inference requests so far. open: connections. Ask by `faulty`."""

    def __init__(self, inner: str) -> None:
        self.inner = inner.removeprefix("http://").split(":")
        self.fault: bytes | Fault = Fault.NONE
        self.begun = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self._listening: asyncio.Server | None = None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.begun += head.startswith(b"POST")
                if self.fault is not Fault.NONE and head.startswith(b"POST"):
                    await self._fail(self.fault, reader, writer)
                else:
                    await self._pass(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body, writer)
        finally:
            self.open.discard(writer)

    async def _pass(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self.inner)
        with contextlib.closing(back):
            back.write(request)
            writer.write(await there.read())
            await writer.drain()

    async def _fail(self, fault: bytes | Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(fault, bytes):
            writer.write(fault)
        elif fault is Fault.SILENT:
            await reader.read()  # until it is given up
        else:
            writer.write(GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            piece, pause = (b"1\r\n[\r\n", 0.05) if fault is Fault.DRIBBLE else (b"10000\r\n" + b" " * 65536 + b"\r\n", 0.0)
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        await writer.drain()

    # ------------------------------------------------------------------ from the test's thread

    def down(self) -> None:
        """Nobody listens any more, and every connection is reset."""
        self._run(self._down())

    def up(self) -> None:
        """It listens again, where it did before."""
        self._run(self._up())

    async def _up(self) -> None:
        self._listening = await asyncio.start_server(self.handle, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for writer in list(self.open):
            writer.transport.abort()
        await asyncio.sleep(0.02)

    def _run(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def end(self) -> None:
        await self._down()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def faulty(inner: str) -> Iterator[tuple[Faulty, str]]:
    """The proxy before a model server's address, and its own."""
    server = Faulty(inner)
    thread = threading.Thread(target=server.loop.run_forever, daemon=True)
    thread.start()
    try:
        server.up()
        yield server, f"http://127.0.0.1:{server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.end(), server.loop).result(20)
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(10)
        server.loop.close()
