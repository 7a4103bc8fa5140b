"""More than the guard can carry, and clients that are slow, greedy or gone: the rest is refused at once, what is carried is answered, nothing is left."""

import asyncio
import concurrent.futures
import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from fault_proxy import SlowServer
from processes import answer_of, asked, guard_process, raw_request, sockets_to, until
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged, served

from sameguard.protocol import read_problem
from sameguard.server.demo_server import DemoServer
from sameguard.server.replies import Reply
from sameguard.server.scoring import Found, Job, LocalBackend, ScoringQueue
from sameguard.server.settings import ListenSettings

DIGITS = demo_queries()[0]
MIB = 2**20


class SlowBackend:
    """The scorer, which takes so many seconds more for a batch; none is begun while it is shut."""

    parallel = 1

    def __init__(self, inner: LocalBackend, seconds: float) -> None:
        self.inner = inner
        self.seconds = seconds
        self.open = threading.Event()
        self.open.set()

    def run(self, jobs: list[Job]) -> list[Found]:
        self.open.wait(60)
        time.sleep(self.seconds)
        return self.inner.run(jobs)

    def close(self) -> None:
        self.open.set()


def slowed(rig: Rig, *, seconds: float, waiting_rows: int) -> SlowBackend:
    """Gives a guard a slow scorer, one row at a time."""
    snapshot = rig.service.snapshot
    backend = SlowBackend(LocalBackend(snapshot.scorer), seconds)
    object.__setattr__(snapshot, "queue", ScoringQueue(backend, batch_rows=1, waiting_rows=waiting_rows, deadline_seconds=20.0))
    return backend


def allowed(url: str) -> np.ndarray:
    return next(digit[None] for digit in DIGITS if asked(url, digit[None])[0] == 200)


# ---------------------------------------------------------------------- the scorer's queue


@pytest.fixture(scope="module")
def rig():
    """Refuses instead of charging, and caches nothing."""
    with rigged(policy={"kind": "reject"}, cache={"seconds": 0}) as running:
        yield running


async def _offered(url: str, query: np.ndarray, *, clients: int, seconds: float, pause: float) -> list[tuple[int, float]]:
    """Status and seconds of each request of so many clients, each of which waits `pause` after an answer."""
    headers, body = infer_message(query)
    found: list[tuple[int, float]] = []

    async def client(session: aiohttp.ClientSession) -> None:
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            async with session.post(url + INFER, data=body, headers=headers) as response:
                await response.read()
                found.append((response.status, time.monotonic() - began))
            await asyncio.sleep(pause)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return found


def test_beyond_what_the_scorer_carries_the_rest_is_refused_at_once_and_goodput_stays(rig):
    query = allowed(rig.url)
    slowed(rig, seconds=0.05, waiting_rows=6)
    calm = asyncio.run(_offered(rig.url, query, clients=3, seconds=2.0, pause=0.0))
    storm = asyncio.run(_offered(rig.url, query, clients=30, seconds=3.0, pause=0.2))
    assert {status for status, _ in calm} == {200}
    assert {status for status, _ in storm} == {200, 503}
    answered, refused = ([seconds for status, seconds in storm if status == wanted] for wanted in (200, 503))
    assert len(refused) > 2 * len(answered)
    assert len(answered) / 3.0 > 0.5 * len(calm) / 2.0
    assert np.median(refused) < 0.5 * np.median(answered)
    assert max(answered) < 5.0  # what is taken is soon done: the queue is short
    shed = [decision for decision in rig.noted.decisions if decision.status == 503]
    assert {decision.reason for decision in shed} == {"queue-full"}
    assert not any("upstream" in decision.seconds for decision in shed)  # nobody is sent away half-way
    until(lambda: rig.service.snapshot.queue.waiting_rows == 0, "rows still wait")
    assert [asked(rig.url, query)[0] for _ in range(5)] == [200] * 5


def test_clients_that_leave_while_they_wait_leave_the_queue_and_cost_no_call(rig):
    query = allowed(rig.url)
    backend = slowed(rig, seconds=0.0, waiting_rows=64)
    queue = rig.service.snapshot.queue
    backend.open.clear()
    before, files = rig.upstream.answered, len(os.listdir("/proc/self/fd"))
    clients = sockets_to(rig.url, 21)
    for client in clients:
        client.sendall(raw_request(query))
    until(lambda: queue.waiting_rows == 20, "not all of them wait")  # one is at work
    for client in clients[1:]:
        client.close()
    until(lambda: queue.waiting_rows == 0, "who has left still waits")
    backend.open.set()
    assert clients[0].recv(1000).startswith(b"HTTP/1.1 200")
    clients[0].close()
    until(lambda: not rig.service._users, "requests are still under way")
    assert rig.upstream.answered == before + 1
    assert [decision.reason for decision in rig.noted.decisions[-21:]].count("client-gone") == 20
    until(lambda: len(os.listdir("/proc/self/fd")) <= files + 3, "files stay open")


# ---------------------------------------------------------------------- places


def test_beyond_its_concurrency_a_guard_refuses_at_once_and_has_room_again():
    upstream = SlowServer(30.0)
    with (
        rigged(upstream, mode="shadow", listen={"concurrency": 4}, canary={"enabled": False}) as rig,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(asked, rig.url, DIGITS[:1]) for _ in range(4)]
        until(lambda: upstream.begun == 4, "the requests did not arrive")
        status, body = asked(rig.url, DIGITS[:1])
        assert (status, read_problem(status, body).kind) == (503, "unavailable")
        assert answer_of(rig.url + "/v2/models/digits/ready")[0] == 503
        assert upstream.begun == 4
        upstream.seconds = 0.0
        assert [future.result()[0] for future in waiting] == [200] * 4
        assert asked(rig.url, DIGITS[:1])[0] == 200


def test_slow_bodies_take_nobodys_place_and_the_oldest_makes_room_for_the_next():
    with rigged(mode="shadow", listen={"concurrency": 4, "body_seconds": 60.0}) as rig:
        slow = sockets_to(rig.url, 12)
        for client in slow:
            client.sendall(raw_request(DIGITS[:1])[:-1])
            time.sleep(0.01)  # in this order
        assert [asked(rig.url, DIGITS[:1])[0] for _ in range(5)] == [200] * 5
        found = []
        for client in slow[:8]:
            found.append(client.recv(20))
        slow[-1].sendall(raw_request(DIGITS[:1])[-1:])  # the youngest was slow, and is answered
        found.append(slow[-1].recv(20))
        for client in slow:
            client.close()
    assert [first[9:12] for first in found] == [b"408"] * 8 + [b"200"]


def test_a_body_has_at_most_its_number_of_pieces():
    assert ListenSettings().body_pieces == 65_536
    tensor = {"name": "digit", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": DIGITS[:1].ravel().tolist()}
    with rigged(mode="shadow") as rig:
        statuses = []
        for pieces in (65_536, 65_537):
            body = str({"inputs": [tensor]}).replace("'", '"').encode().ljust(pieces)
            content = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
            [client] = sockets_to(rig.url, 1)
            head = f"POST {INFER} HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            with contextlib.suppress(ConnectionError):
                client.sendall(head.encode() + content)
            statuses.append(client.recv(20)[9:12])
            client.close()
    assert statuses == [b"200", b"400"]


# ---------------------------------------------------------------------- greedy clients


class Talkative(DemoServer):
    """Its server metadata are long."""

    async def _replied(self, scope, receive) -> Reply:
        reply = await super()._replied(scope, receive)
        return Reply(200, reply.headers, reply.body + b" " * 8 * MIB) if scope["raw_path"] == b"/v2" else reply


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    """In a process of its own, whose files and memory can be counted."""
    with (
        served(Talkative(DEMO / "victim.onnx")) as model,
        guard_process(
            model, tmp_path_factory.mktemp("greedy"), MODE="shadow", LISTEN__SEND_SECONDS="1", LISTEN__HEADER_SECONDS="1",
            LISTEN__BODY_SECONDS="1", CACHE__SECONDS="0",
        ) as running,
    ):  # fmt: skip
        yield running


def test_clients_that_never_read_their_answers_are_let_go(guard):
    asked(guard.url, DIGITS[:1])
    before = guard.open_files
    clients = sockets_to(guard.url, 8, receive_bytes=4096)
    for client in clients:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: guard\r\n\r\n")
    until(lambda: guard.open_files >= before + 6, "they are not connected")  # of the first one something may have closed meanwhile
    until(lambda: guard.open_files <= before + 3, "their connections stay open")
    for client in clients:
        client.close()
    assert asked(guard.url, DIGITS[:1])[0] == 200


def test_clients_that_are_slow_in_every_way_are_let_go(guard):
    before = guard.open_files
    request = raw_request(DIGITS[:1])
    clients = sockets_to(guard.url, 60)
    for client, length in zip(clients, [0, 4, 60, 120, len(request) - 1] * 12, strict=True):
        client.sendall(request[:length])
    assert asked(guard.url, DIGITS[:1])[0] == 200
    until(lambda: guard.open_files <= before + 3, "their connections stay open")
    for client in clients:
        client.close()


def test_requests_that_pile_up_on_one_connection_do_not_pile_up_in_memory(guard):
    request = raw_request(DIGITS[:1]) * 2000
    asked(guard.url, DIGITS[:1])
    before, answered = guard.memory_bytes, 0
    [client] = sockets_to(guard.url, 1)
    client.setblocking(False)
    end, position = time.monotonic() + 4.0, 0
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            position = (position + client.send(request[position:])) % len(request)
        try:
            answered += client.recv(MIB).count(b"HTTP/1.1 200")
        except BlockingIOError:
            time.sleep(0.002)
    assert answered > 20  # they are answered, one after the other
    assert guard.memory_bytes < before + 64 * MIB
    client.close()
    assert asked(guard.url, DIGITS[:1])[0] == 200


# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return ballast


def audit_state(rig: Rig) -> str:
    return next(check.state for check in rig.run(rig.service.readiness()).checks if check.name == "audit log")


def test_a_full_disk_loses_records_and_counts_them_and_no_answer(small_disk):
    path = small_disk / "audit.jsonl"
    with rigged(policy={"kind": "reject"}, audit={"path": path, "waiting": 8}) as rig:
        query = allowed(rig.url)
        ballast = fill(small_disk)
        assert {asked(rig.url, query)[0] for _ in range(60)} == {200}
        until(lambda: rig.service.audit.dropped > 0, "nothing is counted as lost")
        readiness = rig.run(rig.service.readiness())
        assert readiness.ready
        assert any("audit log" in warning for warning in readiness.warnings)
        assert b"audit-dropped" in rig.service.telemetry.render()[0]
        ballast.unlink()
        until(lambda: rig.service.audit.ready, "the log did not recover")
        size = path.stat().st_size
        assert asked(rig.url, query)[0] == 200
        until(lambda: path.stat().st_size > size, "nothing is written again")


def test_with_block_a_full_disk_stops_answers_until_there_is_room(small_disk):
    with rigged(policy={"kind": "reject"}, audit={"path": small_disk / "audit.jsonl", "waiting": 100, "block": True}) as rig:
        query = allowed(rig.url)
        ballast = fill(small_disk)
        until(lambda: asked(rig.url, query)[0] == 503, "it goes on answering")
        status, body = asked(rig.url, query)
        assert (status, read_problem(status, body).kind) == (503, "unavailable")
        assert b"audit" not in body
        assert audit_state(rig) == "failed"
        ballast.unlink()
        until(lambda: asked(rig.url, query)[0] == 200, "it did not recover")
        assert audit_state(rig) in ("ok", "warning")
        answers = sum(decision.status == 200 for decision in rig.noted.decisions)
    lines = (small_disk / "audit.jsonl").read_text().splitlines()
    assert sum('"status":200' in line for line in lines) == answers  # each answer has its record
