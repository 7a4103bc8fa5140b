"""The sockets that the guard listens on, and how it stops."""

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import time

import pytest
from fault_proxy import SlowServer
from processes import asked, guard_process, until
from rig import demo_queries, served

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


def test_a_second_signal_stops_at_once_whatever_is_in_flight(tmp_path):
    upstream = SlowServer(60.0)
    with (
        served(upstream) as address,
        guard_process(address, tmp_path, MODE="shadow", CANARY__ENABLED="false") as guard,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        socket.create_connection(("127.0.0.1", int(guard.admin.rsplit(":", 1)[1]))) as operator,
    ):
        operator.sendall(b"GET /readyz HTTP/1.1\r\n")  # a request that never comes to its end
        waiting = pool.submit(asked, guard.url, demo_queries()[0][:1])
        until(lambda: upstream.begun == 1, "the request is not under way")
        guard.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in guard.log, "it does not say that it stops")
        assert guard.process.poll() is None
        began = time.monotonic()
        guard.process.send_signal(signal.SIGTERM)
        assert guard.process.wait(20) == 0, guard.log
        assert time.monotonic() - began < 10
        with contextlib.suppress(OSError):
            waiting.result()
        upstream.seconds = 0.0
        events = [json.loads(line) for line in guard.log.splitlines() if line.startswith("{")]
    assert "Traceback" not in guard.log
    listening = [event for event in events if event["event"] == "listening"]
    assert [(event["guard"], event["admin"]) for event in listening] == [(guard.url, guard.admin)]
    assert not [event for event in events if "server process" in event["event"]]
