"""Replay stores: one success for each nonce, whoever races for it; nothing forgotten while it could be spent; honest when they are down."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.server.replay import MemoryReplayStore, RedisReplayStore, ReplayStore, ReplayStoreWarning, StoreUnavailableError, open_redis
from sameguard.testing.replay_stores import check_replay_store

fakeredis = pytest.importorskip("fakeredis")

NOW = 1_800_000_000.0
NONCES = [f"{number:032x}" for number in range(300)]


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def faked(server: Any, clock: Callable[[], float], **settings: Any) -> RedisReplayStore:
    return RedisReplayStore(fakeredis.FakeAsyncRedis(server=server), clock=clock, **settings)


# ---------------------------------------------------------------------- the contract


def test_the_memory_store_keeps_the_contract():
    check_replay_store(lambda clock: MemoryReplayStore(clock=clock), now=NOW)


def test_the_redis_store_keeps_the_contract_over_two_clients():
    server = fakeredis.FakeServer()
    check_replay_store(lambda clock: faked(server, clock), now=NOW)


class Forgetful(MemoryReplayStore):
    """Looks, lets others run, then writes: two tasks may both find the nonce unspent."""

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        if nonce in self._spent:
            return False
        await asyncio.sleep(0)
        await super().redeem(nonce, expires_at)
        return True


class Eternal(MemoryReplayStore):
    """Does not look at the time."""

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        return await super().redeem(nonce, expires_at + 10**9)


class Credulous(MemoryReplayStore):
    """Takes any text for a nonce."""

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        return await super().redeem(nonce, expires_at) or len(nonce) < 32


class Generous(MemoryReplayStore):
    """Never remembers."""

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        return True


class Stingy(MemoryReplayStore):
    """Takes one nonce and no other."""

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        return len(self) == 0 and await super().redeem(nonce, expires_at)


@pytest.mark.parametrize(
    ("store", "rule"),
    [
        (Forgetful, "200 tasks that redeem one nonce at once must have exactly 1 success, got 200"),
        (Eternal, "an expired nonce must not be redeemed"),
        (Credulous, "what is not a nonce of ours must not be redeemed"),
        (Generous, "a nonce must be redeemed once, got a second time"),
        (Stingy, "a nonce must not be spent by another one"),
    ],
)
def test_a_broken_store_is_found_out(store, rule):
    with pytest.raises(AssertionError, match=rule):
        check_replay_store(lambda clock: store(clock=clock), now=NOW)


def test_what_cannot_redeem_is_no_store():
    with pytest.raises(AssertionError, match="a replay store must have shared, redeem, check and close, got set"):
        check_replay_store(lambda _: set(), now=NOW)


# ---------------------------------------------------------------------- memory


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(-5, 20)), max_size=60), skew=st.sampled_from([0.0, 5.0]))
def test_no_nonce_is_ever_redeemed_twice_however_the_clock_runs(steps, skew):
    async def play() -> None:
        clock = Clock()
        store = MemoryReplayStore(skew_seconds=skew, clock=clock)
        ends: dict[str, int] = {}
        won: list[str] = []
        for nonce, life, passed in steps:
            clock.now += passed  # and back, sometimes
            name = NONCES[nonce]
            if await store.redeem(name, ends.setdefault(name, int(clock.now) + life)):
                won.append(name)
        assert len(won) == len(set(won))

    asyncio.run(play())


async def _memory_is_bounded_and_freed() -> None:
    clock = Clock()
    store = MemoryReplayStore(capacity=10, skew_seconds=5.0, clock=clock)
    for number, nonce in enumerate(NONCES[:10]):
        assert await store.redeem(nonce, int(NOW) + 10 + number)
    with pytest.raises(StoreUnavailableError, match="replay store must hold at most 10 spent proofs, got one more"):
        await store.redeem(NONCES[10], int(NOW) + 60)
    assert not await store.redeem(NONCES[0], int(NOW) + 10)  # what is held is still known
    clock.now = NOW + 15.5  # the first is over, by more than the skew
    assert await store.redeem(NONCES[10], int(NOW) + 60)
    assert len(store) == 10
    clock.now = NOW + 1000
    assert not await store.redeem(NONCES[11], int(NOW) + 60)
    assert len(store) == 0


def test_the_memory_store_is_bounded_and_forgets_only_what_is_over():
    asyncio.run(_memory_is_bounded_and_freed())


def test_a_proof_is_taken_until_its_end_and_the_skew_and_no_later():
    async def play() -> None:
        clock = Clock()
        for store in (MemoryReplayStore(skew_seconds=5.0, clock=clock), faked(fakeredis.FakeServer(), clock, skew_seconds=5.0)):
            clock.now = NOW + 5.0
            assert await store.redeem(NONCES[0], int(NOW))
            clock.now = NOW + 5.1
            assert not await store.redeem(NONCES[1], int(NOW))

    asyncio.run(play())


@pytest.mark.parametrize("settings", [{"capacity": 0}, {"skew_seconds": -1.0}])
def test_memory_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigurationError, match="capacity must be at least 1 and skew_seconds at least 0, got"):
        MemoryReplayStore(**settings)


# ---------------------------------------------------------------------- Redis, faked


def test_a_redis_store_that_is_down_says_so_and_is_well_again_when_it_is_back():
    async def play() -> None:
        server = fakeredis.FakeServer()
        store = faked(server, Clock())
        assert await store.redeem(NONCES[0], int(NOW) + 60)
        server.connected = False
        with pytest.raises(StoreUnavailableError, match="replay store must answer in time, got ConnectionError"):
            await store.redeem(NONCES[1], int(NOW) + 60)
        with pytest.raises(StoreUnavailableError, match="replay store must answer"):
            await store.check()
        server.connected = True
        await store.check()
        assert await store.redeem(NONCES[1], int(NOW) + 60)
        assert not await store.redeem(NONCES[0], int(NOW) + 60)

    asyncio.run(play())


def test_redis_holds_a_nonce_for_longer_than_any_instance_would_take_it():
    async def play() -> None:
        client = fakeredis.FakeAsyncRedis()
        store = RedisReplayStore(client, skew_seconds=5.0, clock=Clock(), prefix="mine:")
        await store.redeem(NONCES[0], int(NOW) + 60)
        assert await client.get("mine:" + NONCES[0]) == b"1"
        assert 70 <= await client.ttl("mine:" + NONCES[0]) <= 71  # 60 and the skew of either clock
        await store.redeem("x" * 32, int(NOW) + 60)
        assert await client.keys("*") == [b"mine:" + NONCES[0].encode()]

    asyncio.run(play())


@pytest.mark.parametrize(("policy", "warned"), [(b"noeviction", False), ("noeviction", False), (b"allkeys-lru", True), (None, True)])
def test_a_server_that_may_evict_is_warned_of(policy, warned):
    class Configured:
        async def ping(self) -> bool:
            return True

        async def config_get(self, name: str) -> dict:
            if policy is None:
                raise OSError("CONFIG is not allowed here")
            return {name: policy}

    store = RedisReplayStore(Configured(), clock=Clock())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(store.start())
    assert [type(warning.message) for warning in seen] == ([ReplayStoreWarning] if warned else [])
    assert not warned or "should be noeviction, got" in str(seen[0].message)


def test_redis_settings_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match=r"skew_seconds must be at least 0, got -1\.0"):
        faked(fakeredis.FakeServer(), Clock(), skew_seconds=-1.0)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost", "redis://localhost:99999", "redis://localhost/x?foo=hunter22", "redis://localhost?db=hunter22",
        "redis://user:hunter22", "rediss://localhost?ssl_cert_reqs=hunter22", "redis://localhost?retry=1",
    ],
)  # fmt: skip
def test_a_redis_address_that_cannot_be_used_is_one_sentence_that_does_not_show_it(url):
    with pytest.raises(
        ConfigurationError, match="replay store URL must be redis://, rediss:// or unix://, a port up to 65535, and"
    ) as caught:
        asyncio.run(open_redis(url))
    assert "hunter22" not in str(caught.value)


def test_a_server_that_nobody_reaches_refuses_the_start_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(StoreUnavailableError, match="replay store must answer in time, got ConnectionError"):
            asyncio.run(open_redis(f"redis://127.0.0.1:{taken.getsockname()[1]}/0"))


def test_a_server_that_accepts_and_says_nothing_is_given_up_soon():
    async def play() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(StoreUnavailableError, match=r"got TimeoutError"):
            await open_redis(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        return loop.time() - began

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert asyncio.run(play()) < 2.0


def test_without_the_redis_package_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"needs the redis package, which is not installed: pip install 'sameguard\[redis\]'"):
        asyncio.run(open_redis("redis://localhost"))


# ---------------------------------------------------------------------- Redis or Valkey, real

BINARY = next((found for name in ("redis-server", "valkey-server") if (found := shutil.which(name))), None)
PATIENT = 5.0  # seconds: what is tested with it is who wins, not how soon, and this machine may be busy
real = pytest.mark.skipif(BINARY is None, reason="no redis-server or valkey-server here: apt-get install redis-server")


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server of our own on a Unix socket, with nothing on disk; its socket."""
    directory = tmp_path_factory.mktemp("redis")
    path = directory / "redis.sock"
    settings = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = subprocess.Popen([str(BINARY), *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_listening(path, process))
        yield path
    finally:
        process.terminate()
        process.wait(timeout=10)


async def _listening(path: Path, process: subprocess.Popen) -> None:
    async with asyncio.timeout(20):
        while process.poll() is None:
            try:
                store = await open_redis(f"unix://{path}")
            except StoreUnavailableError:
                await asyncio.sleep(0.02)
                continue
            await store.close()
            return
    raise AssertionError(f"the server must keep running, got exit code {process.returncode}.")


@real
@pytest.mark.parametrize("attempt", range(3))
def test_a_real_server_keeps_the_contract(real_server, attempt):
    async def opened(clock: Callable[[], float]) -> ReplayStore:
        return await open_redis(f"unix://{real_server}", socket_seconds=PATIENT, clock=clock, prefix=f"contract-{attempt}:")

    check_replay_store(opened, now=NOW)


SPENDER = """
import asyncio, sys
from sameguard.server.replay import open_redis

async def main(url, nonces):
    store = await open_redis(url, socket_seconds=5.0, prefix="race:")
    print("ready", flush=True)
    sys.stdin.readline()
    won = await asyncio.gather(*(store.redeem(nonce, 4_000_000_000) for nonce in nonces for _ in range(100)))
    print(*[sum(won[100 * i : 100 * i + 100]) for i in range(len(nonces))])
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2:]))
"""


@real
def test_two_processes_that_race_for_the_same_proofs_win_each_once(real_server):
    nonces = NONCES[:3]
    command = [sys.executable, "-c", SPENDER, f"unix://{real_server}", *nonces]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    counts = [[int(count) for count in racer.communicate(timeout=60)[0].split()] for racer in racers]
    assert [sum(both) for both in zip(*counts, strict=True)] == [1] * 3


@real
def test_a_real_server_that_pauses_is_unavailable_and_then_well_again(real_server):
    async def play() -> None:
        async with _two_clients(real_server) as (store, other):
            assert await store.redeem(NONCES[20], int(NOW) + 60)
            await other.client.execute_command("CLIENT", "PAUSE", "400", "ALL")
            with pytest.raises(StoreUnavailableError, match="got TimeoutError"):
                await store.redeem(NONCES[21], int(NOW) + 60)
            async with asyncio.timeout(5):
                while True:
                    try:
                        await store.check()
                        break
                    except StoreUnavailableError:
                        continue
            assert not await store.redeem(NONCES[20], int(NOW) + 60)
            assert await store.redeem(NONCES[22], int(NOW) + 60)

    asyncio.run(play())


@contextlib.asynccontextmanager
async def _two_clients(path: Path) -> AsyncIterator[tuple[RedisReplayStore, RedisReplayStore]]:
    first = await open_redis(f"unix://{path}", clock=Clock())
    second = await open_redis(f"unix://{path}", socket_seconds=PATIENT, clock=Clock())
    try:
        yield first, second
    finally:
        await first.close()
        await second.close()


@real
def test_a_real_server_that_evicts_is_warned_of(real_server):
    async def play() -> None:
        async with _two_clients(real_server) as (store, _):
            await store.client.config_set("maxmemory-policy", "allkeys-lru")
            try:
                with pytest.warns(ReplayStoreWarning, match="should be noeviction, got allkeys-lru"):
                    await store.start()
            finally:
                await store.client.config_set("maxmemory-policy", "noeviction")

    asyncio.run(play())
