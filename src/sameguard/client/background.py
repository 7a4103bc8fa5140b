"""An event loop in a thread of its own, so that blocking code (an attack, a notebook whose own loop runs) can use what is asynchronous."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

CLOSING_SECONDS = 5.0


class BackgroundLoop:
    """Runs coroutines to their end for callers outside. on_close: makes the coroutine that runs last, when this is closed or collected."""

    def __init__(self, on_close: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="sameguard-client", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _close, self._loop, self._thread, on_close)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns; an interrupt of the caller cancels it. Raises RuntimeError once closed."""
        if not self._finalizer.alive:
            coroutine.close()
            raise RuntimeError("endpoint must be open to be asked, got one that is closed: make a new one.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Nothing where it is closed already."""
        self._finalizer()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _close(loop: asyncio.AbstractEventLoop, thread: threading.Thread, on_close: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async def last() -> None:
        try:
            await on_close()
        finally:
            loop.call_soon(loop.stop)

    closing = asyncio.run_coroutine_threadsafe(last(), loop)
    if threading.current_thread() is not thread:  # a collector may run there, and a thread cannot wait for itself
        closing.exception(CLOSING_SECONDS)
        thread.join(CLOSING_SECONDS)
