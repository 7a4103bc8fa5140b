"""The contract of a replay store, tried on yours: `check_replay_store(make_store)`.

Shipped for plug-ins: it raises AssertionError with the rule that was broken. Left out: what a store does when its server is down.
"""

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from sameguard.server.replay import ReplayStore, StoreUnavailableError
from sameguard.testing.rules import require, required

CONCURRENT = 200
LIFE_SECONDS = 60
LONG_AFTER = 3600.0  # more than any skew between clocks

Clock = Callable[[], float]
MakeStore = Callable[[Clock], ReplayStore | Awaitable[ReplayStore]]


def check_replay_store(make_store: MakeStore, *, now: float) -> None:
    """Raises AssertionError where a store breaks the contract of `server.replay.ReplayStore`. Runs an event loop of its own.

    StoreUnavailableError passes: the store's own server is down, so nothing was tried.

    A nonce is redeemed once: in a row, by 200 tasks at the same moment, over two clients of one shared store, and never after it expired,
    even when it would have been forgotten by then. What is not a nonce of ours is not redeemed.
    make_store: clock -> a store, or an awaitable of one, with nothing spent that was drawn here. now: where the injected clock begins.
    """
    asyncio.run(_check(make_store, now))


async def _check(make_store: MakeStore, now: float) -> None:
    time = [now]
    stores = [await _made(make_store, lambda: time[0])]
    try:
        if stores[0].shared:
            stores.append(await _made(make_store, lambda: time[0]))
        await _check_once(stores, int(now) + LIFE_SECONDS)
        await _check_expiry(stores, time, now)
    finally:
        for store in stores:
            await store.close()


async def _made(make_store: MakeStore, clock: Clock) -> "_Watched":
    with required("make_store must give a store", StoreUnavailableError):
        made: Any = make_store(clock)
        store = await made if inspect.isawaitable(made) else made
    require(isinstance(store, ReplayStore), f"a replay store must have shared, redeem, check and close, got {type(store).__name__}.")
    return _Watched(store)


class _Watched:
    """The store; whatever it raises breaks a rule."""

    def __init__(self, store: ReplayStore) -> None:
        self._store = store
        self.shared = store.shared

    async def redeem(self, nonce: str, expires_at: int) -> Any:
        with required("redeem must answer True or False to any text", StoreUnavailableError):
            return await self._store.redeem(nonce, expires_at)

    async def check(self) -> None:
        with required("check must return where proofs can be redeemed", StoreUnavailableError):
            await self._store.check()

    async def close(self) -> None:
        with required("close must return"):
            await self._store.close()


async def _check_once(stores: list[_Watched], expires_at: int) -> None:
    for store in stores:
        await store.check()
    first, second = _nonce(), _nonce()
    require(await stores[0].redeem(first, expires_at) is True, "a nonce must be redeemed by the first who asks, got a refusal.")
    require(await stores[-1].redeem(first, expires_at) is False, "a nonce must be redeemed once, got a second time.")
    require(await stores[-1].redeem(second, expires_at) is True, "a nonce must not be spent by another one, got a refusal.")
    raced = _nonce()
    won = await asyncio.gather(*(stores[number % len(stores)].redeem(raced, expires_at) for number in range(CONCURRENT)))
    require(sum(won) == 1, f"{CONCURRENT} tasks that redeem one nonce at once must have exactly 1 success, got {sum(won)}.")
    for strange in ("", "0", first.upper() + "*", "g" * 32, "a" * 33):
        require(await stores[0].redeem(strange, expires_at) is False, f"what is not a nonce of ours must not be redeemed, got {strange!r}.")


async def _check_expiry(stores: list[_Watched], time: list[float], now: float) -> None:
    expires_at = int(now) + LIFE_SECONDS
    spent, unspent = _nonce(), _nonce()
    await stores[0].redeem(spent, expires_at)
    time[0] = expires_at - 1.0
    require(await stores[-1].redeem(spent, expires_at) is False, "a spent nonce must stay spent until it expires, got it redeemed again.")
    time[0] = expires_at + LONG_AFTER
    for nonce in (spent, unspent):
        require(await stores[-1].redeem(nonce, expires_at) is False, "an expired nonce must not be redeemed, got it redeemed.")


def _nonce() -> str:
    return secrets.token_hex(16)
