"""The contract of a replay store, tried on yours: `check_replay_store(make_store)`.

Shipped for plug-ins: it raises AssertionError with the rule that was broken. Left out: what a store does when its server is down.
"""

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from sameguard.server.replay import ReplayStore

CONCURRENT = 200
LIFE_SECONDS = 60
LONG_AFTER = 3600.0  # more than any skew between clocks

Clock = Callable[[], float]
MakeStore = Callable[[Clock], ReplayStore | Awaitable[ReplayStore]]


def check_replay_store(make_store: MakeStore, *, now: float) -> None:
    """Raises AssertionError where a store breaks the contract of `server.replay.ReplayStore`. Runs an event loop of its own.

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


async def _made(make_store: MakeStore, clock: Clock) -> ReplayStore:
    made: Any = make_store(clock)
    store = await made if inspect.isawaitable(made) else made
    _require(isinstance(store, ReplayStore), f"a replay store must have shared, redeem, check and close, got {type(store).__name__}.")
    return store


async def _check_once(stores: list[ReplayStore], expires_at: int) -> None:
    for store in stores:
        await store.check()
    first, second = _nonce(), _nonce()
    _require(await stores[0].redeem(first, expires_at) is True, "a nonce must be redeemed by the first who asks, got a refusal.")
    _require(await stores[-1].redeem(first, expires_at) is False, "a nonce must be redeemed once, got a second time.")
    _require(await stores[-1].redeem(second, expires_at) is True, "a nonce must not be spent by another one, got a refusal.")
    raced = _nonce()
    won = await asyncio.gather(*(stores[number % len(stores)].redeem(raced, expires_at) for number in range(CONCURRENT)))
    _require(sum(won) == 1, f"{CONCURRENT} tasks that redeem one nonce at once must have exactly 1 success, got {sum(won)}.")
    for strange in ("", "0", first.upper() + "*", "g" * 32, "a" * 33):
        _require(
            await stores[0].redeem(strange, expires_at) is False, f"what is not a nonce of ours must not be redeemed, got {strange!r}."
        )


async def _check_expiry(stores: list[ReplayStore], time: list[float], now: float) -> None:
    expires_at = int(now) + LIFE_SECONDS
    spent, unspent = _nonce(), _nonce()
    await stores[0].redeem(spent, expires_at)
    time[0] = expires_at - 1.0
    _require(await stores[-1].redeem(spent, expires_at) is False, "a spent nonce must stay spent until it expires, got it redeemed again.")
    time[0] = expires_at + LONG_AFTER
    for nonce in (spent, unspent):
        _require(await stores[-1].redeem(nonce, expires_at) is False, "an expired nonce must not be redeemed, got it redeemed.")


def _nonce() -> str:
    return secrets.token_hex(16)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
