"""Runs the client-proxy until it is told to stop: once for what is under way to be finished, twice for now."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from sameguard.errors import ConfigurationError

GRACE_SECONDS = 5  # for what is under way when the first signal comes


async def serve_proxy(app: Starlette, host: str, port: int, concurrency: int, started: Callable[[int], None] = lambda port: None) -> None:
    """Serves an application of `create_proxy` until SIGTERM or Ctrl-C. started: told the port once it listens.

    concurrency: requests at once; more get 503. Raises ConfigurationError where the port cannot be taken.
    """
    with _listening(host, port) as listening:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, date_header=False, ws="none", lifespan="off",
            limit_concurrency=concurrency + 1, timeout_graceful_shutdown=GRACE_SECONDS + 1,
        )  # fmt: skip
        server = _Server(config)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if server.should_exit:
                app.state.stop()
            server.should_exit = True
            loop.call_later(GRACE_SECONDS, app.state.stop)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            async with app.router.lifespan_context(app):
                started(listening.getsockname()[1])
                await server.serve(sockets=[listening])
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Signals are handled above: uvicorn would raise them once more at its end, and a second one in the middle of it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    # asyncio sends small answers at once only where the protocol says TCP, and accepted sockets take it from this one
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(512)
        except OSError as error:
            raise ConfigurationError(f"--host and --port must be free, got {host}:{port}: {error.strerror}.") from error
        yield listening
