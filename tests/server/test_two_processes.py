"""Guards as processes: what they share holds at each of them, and a store or a guard that is paused, killed or stopped loses no answer and no payment."""

import asyncio
import concurrent.futures
import http.client
import signal
import threading
import time

import pytest
from fault_proxy import SlowServer
from processes import (
    GLYPHS,
    NO_REDIS,
    REDIS,
    answer_of,
    asked,
    challenged,
    free_port,
    guard_process,
    key,
    paid_for,
    raw_request,
    redis_process,
    sockets_to,
    until,
)  # fmt: skip
from rig import DEMO, demo_queries, served

from sameguard.protocol import read_problem
from sameguard.server.demo_server import DemoServer
from sameguard.server.replay import StoreUnavailableError, open_redis

DIGITS = demo_queries()[0]
needs_redis = pytest.mark.skipif(REDIS is None, reason=NO_REDIS)


# ---------------------------------------------------------------------- one store, two guards


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two guards before one model server and one store; the second has a newer key, and still the first one's. Store process, then both."""
    folder, upstream = tmp_path_factory.mktemp("pair"), DemoServer(DEMO / "victim.onnx")
    old, new = key("old", 1), key("new", 2)
    with (
        redis_process() as (store, address),
        served(upstream) as model,
        guard_process(model, folder, PROOFS__STORE=address, PROOFS__KEYS=old) as first,
        guard_process(model, folder, PROOFS__STORE=address, PROOFS__KEYS=f"{new},{old}", CACHE__SECONDS="0") as second,
    ):
        yield store, upstream, first, second


@needs_redis
def test_a_challenge_of_one_guard_is_paid_at_the_other_and_spent_at_both(pair):
    _, upstream, first, second = pair
    query, proof = challenged(first.url)
    before = upstream.answered
    assert asked(second.url, query, proof)[0] == 200
    assert upstream.answered == before + 1
    status, body = asked(first.url, query, proof)
    assert (status, read_problem(status, body).kind) == (402, "proof-replayed")
    assert upstream.answered == before + 1


@needs_redis
def test_a_key_that_a_guard_does_not_have_yet_buys_nothing_there(pair):
    _, upstream, first, second = pair
    query, proof = challenged(second.url)
    before = upstream.answered
    status, body = asked(first.url, query, proof)
    assert (status, read_problem(status, body).kind) == (402, "proof-invalid")
    assert upstream.answered == before
    assert asked(second.url, query, proof)[0] == 200


@needs_redis
def test_while_the_store_is_silent_proofs_wait_and_other_traffic_flows(pair):
    store, upstream, first, _ = pair
    query, proof = challenged(first.url, GLYPHS[5:])
    digit = next(digit[None] for digit in DIGITS if asked(first.url, digit[None])[0] == 200)
    store.send_signal(signal.SIGSTOP)
    try:
        before = upstream.answered
        status, body = asked(first.url, query, proof)
        assert (status, read_problem(status, body).kind) == (503, "unavailable")
        assert b"redis" not in body.lower()
        assert upstream.answered == before
        assert asked(first.url, digit)[0] == 200
        assert asked(first.url, query)[0] == 402
        status, body = answer_of(first.admin + "/readyz")
        assert status == 503
        assert b"replay store" in body
    finally:
        store.send_signal(signal.SIGCONT)
    assert until(first.ready, "the guard did not recover") <= 5.0
    before = upstream.answered
    again = asked(first.url, query, proof)  # the store may have spent it without our hearing of it
    fresh = None if again[0] == 200 else asked(first.url, query, paid_for(again[1]))
    assert again[0] in (200, 402)
    assert fresh is None or fresh[0] == 200
    assert upstream.answered == before + 1


@needs_redis
def test_a_store_that_is_killed_and_started_again_is_used_again(tmp_path):
    port = free_port()
    with (
        served(DemoServer(DEMO / "victim.onnx")) as model,
        redis_process(port) as (store, address),
        guard_process(model, tmp_path, PROOFS__STORE=address, PROOFS__KEYS=key("one", 1)) as guard,
    ):
        query, proof = challenged(guard.url)
        store.kill()
        store.wait(10)
        status, body = asked(guard.url, query, proof)
        assert (status, read_problem(status, body).kind) == (503, "unavailable")
        assert not guard.ready()
        with redis_process(port):
            assert until(guard.ready, "the guard did not recover") <= 5.0
            assert asked(guard.url, query, proof)[0] == 200
            assert asked(guard.url, query, proof)[0] == 402


@needs_redis
def test_with_a_shared_store_a_killed_guard_forgets_nothing(tmp_path):
    settings = {"PROOFS__KEYS": key("one", 1)}
    with served(DemoServer(DEMO / "victim.onnx")) as model, redis_process() as (_, address):
        with guard_process(model, tmp_path, PROOFS__STORE=address, **settings) as guard:
            spent = challenged(guard.url)
            assert asked(guard.url, *spent)[0] == 200
            unspent = challenged(guard.url, GLYPHS[5:])
            guard.process.kill()
            guard.process.wait(20)
        with guard_process(model, tmp_path, PROOFS__STORE=address, **settings) as guard:
            status, body = asked(guard.url, *spent)
            assert (status, read_problem(status, body).kind) == (402, "proof-replayed")
            assert asked(guard.url, *unspent)[0] == 200


@needs_redis
def test_answers_of_the_store_never_reach_another_request():
    """Clients that leave while their proof is being redeemed: a reply that is left on a connection would be read as somebody else's."""
    nonces = [f"{number:032x}" for number in range(60)]

    async def play(process, address: str) -> list[bool]:
        store = await open_redis(address, socket_seconds=5.0)
        end = int(time.time()) + 600
        assert all([await store.redeem(nonce, end) for nonce in nonces[:20]])
        process.send_signal(signal.SIGSTOP)
        leaving = [asyncio.create_task(store.redeem(nonce, end)) for nonce in nonces[20:40]]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(5):
            while True:
                try:
                    await store.check()
                    break
                except StoreUnavailableError:
                    continue
        found = await asyncio.gather(*(store.redeem(nonce, end) for pair in zip(nonces[:20], nonces[40:], strict=True) for nonce in pair))
        await store.close()
        return found

    with redis_process() as (process, address):
        assert asyncio.run(play(process, address)) == [False, True] * 20


# ---------------------------------------------------------------------- the end of a guard


def test_sigterm_under_load_drops_nothing_that_has_begun(tmp_path):
    upstream, statuses, broken, refused = SlowServer(0.2), [], [], threading.Event()
    stopping = threading.Event()

    def client(url: str) -> None:
        """Asks again and again, each time on a new connection, until there is no server."""
        while not refused.is_set():
            try:
                statuses.append(asked(url, DIGITS[:1])[0])
            except ConnectionRefusedError:
                refused.set()
            except (OSError, http.client.HTTPException) as error:
                if "refused" in str(error):
                    refused.set()
                else:
                    broken.append(error)
            assert stopping.is_set() or not refused.is_set()

    with (
        served(upstream) as model,
        guard_process(model, tmp_path, MODE="shadow", CANARY__ENABLED="false") as guard,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        clients = [pool.submit(client, guard.url) for _ in range(12)]
        until(lambda: len(statuses) >= 30, "no load")
        stopping.set()
        guard.process.send_signal(signal.SIGTERM)
        for future in clients:
            future.result(60)
        assert guard.process.wait(30) == 0
    assert set(statuses) == {200}
    assert statuses.count(200) == upstream.begun == upstream.answered  # connections that it never accepted may break; no request does


def test_a_guard_that_is_stopping_says_so_refuses_newcomers_and_ends_after_its_grace(tmp_path):
    upstream = SlowServer(120.0)
    with (
        served(upstream) as model,
        guard_process(
            model, tmp_path, MODE="shadow", CANARY__ENABLED="false", LISTEN__GRACE_SECONDS="4", UPSTREAM__TIMEOUT_SECONDS="120"
        ) as guard,
    ):
        [waiting] = sockets_to(guard.url, 1)
        waiting.sendall(raw_request(DIGITS[:1]))
        until(lambda: upstream.begun == 1, "the request did not arrive")
        guard.process.send_signal(signal.SIGTERM)
        until(lambda: not guard.ready(), "it still says that it is ready")
        assert b"finishing what is in flight" in answer_of(guard.admin + "/readyz")[1]
        until(lambda: _refused(guard.url), "it still accepts connections")
        assert guard.process.wait(30) == 0
        assert waiting.recv(1000).startswith(b"HTTP/1.1 503")
        waiting.close()
        upstream.seconds = 0.0
    assert "Traceback" not in guard.log


def test_who_asks_twice_need_not_wait(tmp_path):
    upstream = SlowServer(120.0)
    with (
        served(upstream) as model,
        guard_process(model, tmp_path, MODE="shadow", CANARY__ENABLED="false", UPSTREAM__TIMEOUT_SECONDS="120") as guard,
    ):
        [waiting] = sockets_to(guard.url, 1)
        waiting.sendall(raw_request(DIGITS[:1]))
        until(lambda: upstream.begun == 1, "the request did not arrive")
        guard.process.send_signal(signal.SIGTERM)
        until(lambda: _refused(guard.url), "it still accepts connections")
        assert guard.process.poll() is None
        guard.process.send_signal(signal.SIGTERM)
        assert guard.process.wait(15) == 0
        waiting.close()
        upstream.seconds = 0.0


def _refused(url: str) -> bool:
    try:
        sockets_to(url, 1)[0].close()
    except OSError:
        return True
    return False
