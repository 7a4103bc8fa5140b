"""Bounded micro-batches: an idle worker starts at once, and what queues meanwhile goes together, up to a number of rows.

A full queue refuses at once instead of letting requests wait for an answer that comes too late; an item leaves the queue at its deadline,
whoever is at work, or when its request is cancelled, before it costs anything. The work runs in a thread of its own, off the event loop.
What the work is, and what happens to those who are refused, is the caller's.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from sameguard.errors import ConfigurationError, SameguardError

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(SameguardError, RuntimeError):
    """The queue has no room for these rows: shed the request now."""


class DeadlineError(SameguardError, TimeoutError):
    """The item was not begun before its deadline."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    """taken: it is in a batch, and no deadline counts any more."""

    item: Item
    rows: int
    deadline: float
    result: asyncio.Future[Result]
    taken: bool = False

    def expire(self) -> None:
        if not self.taken and not self.result.done():
            self.result.set_exception(DeadlineError(f"{self.rows} rows waited until their deadline: the queue is too slow for them."))


class MicroBatcher(Generic[Item, Result]):
    """Runs `work` on batches of items, `parallel` batches at a time, in the order of arrival.

    work: items -> one result for each; what it raises is raised to everyone in that batch. executor: where it runs. max_rows: rows of one
    batch (one item may have more: it then runs alone). max_waiting_rows: rows that may wait besides those at work. clock: seconds, monotonic.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        executor: Executor,
        *,
        max_rows: int,
        max_waiting_rows: int,
        parallel: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_rows < 1 or max_waiting_rows < 1 or parallel < 1:
            raise ConfigurationError(
                f"max_rows, max_waiting_rows and parallel must be at least 1, got {max_rows}, {max_waiting_rows} and {parallel}."
            )
        self.work = work
        self.executor = executor
        self.max_rows = max_rows
        self.max_waiting_rows = max_waiting_rows
        self.parallel = parallel
        self.clock = clock
        self._begun: deque[_Waiting[Item, Result]] = deque()  # goes first
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._workers = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    @property
    def waiting_rows(self) -> int:
        """Rows that wait and are still wanted."""
        return sum(entry.rows for entry in chain(self._begun, self._waiting) if not entry.result.done())

    async def submit(self, item: Item, rows: int, *, deadline: float, begun: bool = False) -> Result:
        """The item's result. deadline: value of the clock by which it must have been begun.

        begun: it continues what has cost something already. It goes before what is new and is never refused for want of room, or a full
        queue would let requests in and throw them away half-way. What may be under way bounds it.

        Raises QueueFullError at once where it does not fit, DeadlineError at its deadline where it was not begun, and what the work raises.
        """
        waiting = self.waiting_rows
        idle = self._workers < self.parallel
        if not idle and not begun and waiting + rows > self.max_waiting_rows:
            raise QueueFullError(f"queue of {self.max_waiting_rows} rows has no room for {rows} more, {waiting} wait: try again later.")
        entry = _Waiting(item, rows, deadline, asyncio.get_running_loop().create_future())
        (self._begun if begun else self._waiting).append(entry)
        if idle:
            self._workers += 1
            self._tasks.add(task := asyncio.create_task(self._run()))
            task.add_done_callback(self._tasks.discard)
            return await entry.result
        timer = asyncio.get_running_loop().call_later(max(0.0, deadline - self.clock()), entry.expire)
        try:
            return await entry.result
        finally:
            timer.cancel()

    async def _run(self) -> None:
        """Works until nothing waits. A cancelled caller has cancelled its future: such entries are dropped, never answered."""
        try:
            while batch := self._next_batch():
                try:
                    results = await asyncio.get_running_loop().run_in_executor(self.executor, self.work, [entry.item for entry in batch])
                    if len(results) != len(batch):
                        raise RuntimeError(f"work must give one result for each of {len(batch)} items, got {len(results)}.")
                except Exception as error:
                    for entry in batch:
                        if not entry.result.done():
                            entry.result.set_exception(error)
                    continue
                for entry, result in zip(batch, results, strict=True):
                    if not entry.result.done():
                        entry.result.set_result(result)
        finally:
            self._workers -= 1  # in the turn that found the queue empty: whoever submits next starts a worker again

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        rows, now = 0, self.clock()
        while queue := self._begun or self._waiting:
            entry = queue[0]
            if entry.result.done():
                queue.popleft()
            elif entry.deadline <= now:
                queue.popleft()
                entry.expire()
            elif batch and rows + entry.rows > self.max_rows:
                break
            else:
                batch.append(queue.popleft())
                entry.taken = True
                rows += entry.rows
        return batch
