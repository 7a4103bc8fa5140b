"""Runs the guard: data plane and admin port in one process, one event loop, one shutdown that finishes what is in flight."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn

from sameguard.errors import ConfigurationError
from sameguard.server.admin import create_admin
from sameguard.server.app import DataPlane
from sameguard.server.connection import bounded_protocol
from sameguard.server.connection_limits import ACCEPTED_AT_ONCE, ADMIN_CONNECTIONS, Connections, affordable_connections
from sameguard.server.service import GuardService
from sameguard.server.settings import Settings

log = structlog.get_logger("sameguard")


async def serve(settings: Settings, started: Callable[[str, str | None], None] = lambda data, admin: None) -> None:
    """Serves until SIGTERM or Ctrl-C; a second one does not wait for what is in flight.

    started: told both addresses once they answer; the second is None without an admin port.

    Raises what `GuardService.start` raises, and ConfigurationError where a port cannot be taken.
    """
    with contextlib.ExitStack() as stack:
        data_socket = stack.enter_context(_listening(settings.listen.host, settings.listen.port, "listen"))
        admin_socket = None
        if settings.admin.port is not None:
            admin_socket = stack.enter_context(_listening(settings.admin.host, settings.admin.port, "admin"))
        service = GuardService(settings)
        try:
            await service.start()
            data = _Server(_config(DataPlane(service), settings, _connections(service)))
            operators = Connections(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS)
            admin = None if admin_socket is None else _Server(_config(create_admin(service, settings.admin), settings, operators))
            await _run(service, data, data_socket, admin, admin_socket, started)
        finally:
            await service.close()


async def _run(
    service: GuardService,
    data: "_Server",
    data_socket: socket.socket,
    admin: "_Server | None",
    admin_socket: socket.socket | None,
    started: Callable[[str, str | None], None],
) -> None:
    """The admin port stays until the last request is answered: whoever watches sees that the guard is draining."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if service.draining:  # asked twice: now
            log.warning("stopping at once")
            for server in (data, admin):
                if server is not None:
                    server.exit_now()
            return
        log.info("stopping", grace_seconds=service.settings.listen.grace_seconds)
        service.draining = True
        data.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        admin_task = None if admin is None else asyncio.create_task(admin.serve(sockets=[admin_socket]))
        data_task = asyncio.create_task(data.serve(sockets=[data_socket]))
        while not data.started and not data_task.done():
            await asyncio.sleep(0.01)
        addresses = _address(data_socket), None if admin_socket is None else _address(admin_socket)
        log.info("listening", guard=addresses[0], admin=addresses[1])
        started(*addresses)
        await data_task
        if admin is not None and admin_task is not None:
            admin.should_exit = True
            await admin_task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Signals are handled once, for both servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def exit_now(self) -> None:
        """Whoever still waits for an answer gets none."""
        self.should_exit = self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _connections(service: GuardService) -> Connections:
    """Of clients, as many as the settings and the process allow."""
    listen = service.settings.listen
    most = affordable_connections(listen.connections, service.settings.upstream.connections)
    return Connections(most, listen.peer_connections, is_trusted=service.identity.is_trusted, shed=service.connection_shed)


def _config(app: Any, settings: Settings, among: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.listen, among),
        backlog=ACCEPTED_AT_ONCE,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="warning",  # where we listen we say ourselves, once for both
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(settings.listen.grace_seconds)),
    )


@contextlib.contextmanager
def _listening(host: str, port: int, section: str) -> Iterator[socket.socket]:
    # asyncio sends small answers at once only where the protocol says TCP, and accepted sockets take it from this one
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(512)
        except OSError as error:
            raise ConfigurationError(f"{section}.host and {section}.port must be free, got {host}:{port}: {error.strerror}.") from error
        yield listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
