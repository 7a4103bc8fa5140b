"""The sockets that the guard listens on."""

import asyncio
import socket

import pytest

from sameguard.errors import ConfigurationError
from sameguard.server.serving import _listening


def test_accepted_connections_send_small_answers_at_once():
    """Otherwise each answer waits for the client's delayed acknowledgement: 40 ms."""

    async def accepted(listening: socket.socket) -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(connected, sock=listening)
        _, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"x")
        flag = await found
        writer.close()
        server.close()
        return flag

    with _listening("127.0.0.1", 0, "listen") as listening:
        assert asyncio.run(accepted(listening)) != 0


def test_a_port_that_is_taken_is_named():
    with (
        _listening("127.0.0.1", 0, "listen") as taken,
        pytest.raises(ConfigurationError, match=r"admin.host and admin.port must be free, got 127.0.0.1"),
        _listening("127.0.0.1", taken.getsockname()[1], "admin"),
    ):
        pass
