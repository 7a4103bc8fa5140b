"""Where spent proofs are remembered: a nonce is redeemed once, whoever else tries at the same moment.

`MemoryReplayStore` serves one process, and challenges die with it (`Proofs(boot_id=...)`); `RedisReplayStore` serves many, over Redis or
Valkey. Both refuse a nonce whose time is over, so that it may be forgotten. What they cannot do: a Redis that loses its memory, by a
restart without an append-only file or by eviction, forgets which of the proofs that are still alive were spent.
"""

import heapq
import math
import re
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sameguard.errors import ConfigurationError, SameguardError

if TYPE_CHECKING:
    from redis.asyncio import Redis

NONCE = re.compile(r"[0-9a-f]{32}")  # as altcha draws them
SOCKET_SECONDS = 0.2
CONNECTIONS = 8  # a command takes a fraction of a millisecond: more connections only compete for this process
WAIT_SECONDS = 1.0  # for one of them, in a burst


class StoreUnavailableError(SameguardError, RuntimeError):
    """The replay store cannot say whether a proof was spent: no proof can be redeemed now."""


class ReplayStoreWarning(UserWarning):
    """The replay store may forget spent proofs."""


@runtime_checkable
class ReplayStore(Protocol):
    """Remembers spent nonces. shared: whether other processes see what is spent here."""

    shared: bool

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        """True for the first who redeems this nonce before it expires, False ever after. Raises StoreUnavailableError."""
        ...

    async def check(self) -> None:
        """Returns where proofs can be redeemed. Raises StoreUnavailableError."""
        ...

    async def close(self) -> None: ...


class MemoryReplayStore:
    """Spent nonces of one process, until they expire.

    capacity: nonces held at most; when full, nothing is redeemed until some expire, because forgetting one would let it be spent twice.
    clock: Unix seconds. skew_seconds: how long after its expiry a nonce is still accepted.
    """

    shared = False

    def __init__(self, *, capacity: int = 200_000, skew_seconds: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        if capacity < 1 or skew_seconds < 0:
            raise ConfigurationError(f"capacity must be at least 1 and skew_seconds at least 0, got {capacity} and {skew_seconds}.")
        self.capacity = capacity
        self.skew_seconds = skew_seconds
        self.clock = clock
        self._spent: set[str] = set()
        self._by_end: list[tuple[float, str]] = []
        self._forgotten = -math.inf  # the last end that was forgotten

    def __len__(self) -> int:
        return len(self._spent)

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        """Nothing is awaited here: no two tasks of a loop can both find the nonce unspent."""
        now = self.clock()
        self._forget(now)
        end = expires_at + self.skew_seconds
        # a clock that is set back must not revive what was forgotten; what ends later never was
        if end < now or end <= self._forgotten or nonce in self._spent or NONCE.fullmatch(nonce) is None:
            return False
        if len(self._spent) >= self.capacity:
            raise StoreUnavailableError(
                f"replay store must hold at most {self.capacity} spent proofs, got one more: none is taken for now."
            )
        self._spent.add(nonce)
        heapq.heappush(self._by_end, (end, nonce))
        return True

    async def check(self) -> None:
        """Always ready."""

    async def close(self) -> None:
        """Nothing to close."""

    def _forget(self, now: float) -> None:
        while self._by_end and self._by_end[0][0] < now:
            end, nonce = heapq.heappop(self._by_end)
            self._spent.discard(nonce)
            self._forgotten = max(self._forgotten, end)


class RedisReplayStore:
    """Spent nonces shared by many processes: one SET NX EX each, which Redis does as one step.

    client: see `open_redis`. There is no second attempt: a SET that was done and not heard of would then read as a replay. Either way the
    proof is spent, and the client is asked for another. prefix: of the keys, for instances that share a database and not their proofs.
    """

    shared = True

    def __init__(
        self, client: "Redis", *, skew_seconds: float = 5.0, clock: Callable[[], float] = time.time, prefix: str = "sameguard:pow:"
    ) -> None:
        if skew_seconds < 0:
            raise ConfigurationError(f"skew_seconds must be at least 0, got {skew_seconds}.")
        self.client = client
        self.skew_seconds = skew_seconds
        self.clock = clock
        self.prefix = prefix

    async def redeem(self, nonce: str, expires_at: int) -> bool:
        left = expires_at + self.skew_seconds - self.clock()
        if left < 0 or NONCE.fullmatch(nonce) is None:
            return False
        # Redis forgets by its own clock: by then every instance refuses the nonce, whichever way its clock is off
        seconds = math.ceil(left + self.skew_seconds) + 1
        return bool(await self._asked(self.client.set(self.prefix + nonce, "1", nx=True, ex=seconds)))

    async def check(self) -> None:
        await self._asked(self.client.ping())

    async def close(self) -> None:
        await self.client.aclose()

    async def start(self) -> None:
        """Refuses a server that does not answer, and warns of one that may forget. Raises StoreUnavailableError."""
        await self.check()
        try:
            settings = await self._asked(self.client.config_get("maxmemory-policy"))
            policy = dict(settings).get("maxmemory-policy", "none")
        except StoreUnavailableError:  # managed servers forbid CONFIG
            policy = "no answer"
        policy = policy.decode() if isinstance(policy, bytes) else policy
        if policy != "noeviction":
            warnings.warn(
                f"maxmemory-policy of the replay store should be noeviction, got {policy}: a spent proof that is evicted can be spent again.",
                ReplayStoreWarning,
                stacklevel=2,
            )

    async def _asked(self, command: Awaitable[Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            return await command
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"replay store must answer in time, got {type(error).__name__}: {error}") from error


async def open_redis(
    url: str,
    *,
    socket_seconds: float = SOCKET_SECONDS,
    skew_seconds: float = 5.0,
    clock: Callable[[], float] = time.time,
    prefix: str = "sameguard:pow:",
) -> RedisReplayStore:
    """A started store over redis://, rediss:// or unix://; call it in the event loop that will use it.

    socket_seconds: patience with each step of connecting and asking, in which this process's own event loop counts as well.
    Raises ConfigurationError for another URL or without the redis package, StoreUnavailableError where the server does not answer.
    """
    store = RedisReplayStore(redis_client(url, socket_seconds=socket_seconds), skew_seconds=skew_seconds, clock=clock, prefix=prefix)
    try:
        await store.start()
    except BaseException:
        await store.close()
        raise
    return store


def redis_client(url: str, *, socket_seconds: float = SOCKET_SECONDS) -> "Redis":
    """A client that has not connected yet. Raises ConfigurationError for another URL or without the redis package."""
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "a Redis replay store needs the redis package, which is not installed: pip install 'sameguard[redis]'."
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=WAIT_SECONDS,
            socket_timeout=socket_seconds,
            socket_connect_timeout=socket_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        pool.make_connection()  # options are read here; it connects when it is first used
    except (ValueError, TypeError, AttributeError, RedisError) as error:  # their texts may show the URL, which may hold a password
        raise ConfigurationError(
            "replay store URL must be redis://, rediss:// or unix://, a port up to 65535, and options that redis-py knows, got another "
            f"({type(error).__name__})."
        ) from None
    return Redis.from_pool(pool)
