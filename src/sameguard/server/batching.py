"""Bounded micro-batches: an idle worker starts at once, and what queues meanwhile goes together, up to a number of rows.

A full queue refuses at once instead of letting requests wait for an answer that comes too late; an item leaves the queue at its deadline,
whoever is at work, or when its request is cancelled, before it costs anything. Askers take turns, and where there is no room it is the one
with most rows that loses its newest: nobody keeps others out by asking more. The work runs in a thread of its own, off the event loop.
What the work is, and what happens to those who are refused, is the caller's.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
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
    """Runs `work` on batches of items, `parallel` batches at a time: askers in turn, each one's items in the order of arrival.

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
        self._waiting: OrderedDict[str, deque[_Waiting[Item, Result]]] = OrderedDict()  # asker -> its items; the first is whose turn it is
        self._workers = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    @property
    def waiting_rows(self) -> int:
        """Rows that wait and are still wanted."""
        return _rows(chain(self._begun, *self._waiting.values()))

    async def submit(self, item: Item, rows: int, *, deadline: float, asker: str = "", begun: bool = False) -> Result:
        """The item's result. deadline: value of the clock by which it must have been begun. asker: on whose behalf.

        begun: it continues what has cost something already. It goes before what is new and is never refused for want of room, or a full
        queue would let requests in and throw them away half-way. What may be under way bounds it.

        Raises QueueFullError at once where it does not fit, or later where another asker with fewer rows needs the room; DeadlineError at its
        deadline where it was not begun, and what the work raises.
        """
        idle = self._workers < self.parallel
        if not idle and not begun:
            self._make_room(rows, asker)
        entry = _Waiting(item, rows, deadline, asyncio.get_running_loop().create_future())
        (self._begun if begun else self._waiting.setdefault(asker, deque())).append(entry)
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

    def _make_room(self, rows: int, asker: str) -> None:
        """Sheds the newest items of whoever has most rows, as long as that is more than the asker would have. Raises QueueFullError."""
        waiting = self.waiting_rows
        missing = waiting + rows - self.max_waiting_rows
        if missing <= 0:
            return
        held = {name: _rows(entries) for name, entries in self._waiting.items()}
        would_hold, shed = held.get(asker, 0) + rows, []
        while missing > 0:
            greedy = max(held, key=held.__getitem__, default=asker)
            entry = next(
                (found for found in reversed(self._waiting.get(greedy, ())) if not found.result.done() and found not in shed), None
            )
            if entry is None or held[greedy] <= would_hold:
                raise QueueFullError(f"queue of {self.max_waiting_rows} rows has no room for {rows} more, {waiting} wait: try again later.")
            shed.append(entry)
            held[greedy] -= entry.rows
            missing -= entry.rows
        for entry in shed:
            entry.result.set_exception(QueueFullError(f"{entry.rows} rows made room for an asker with fewer: try again later."))

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
        while (queue := self._next_queue()) is not None:
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
                if queue is not self._begun:
                    self._waiting.move_to_end(next(iter(self._waiting)))
        return batch

    def _next_queue(self) -> deque[_Waiting[Item, Result]] | None:
        """Where the next item is taken from: what has begun, then whoever's turn it is."""
        if self._begun:
            return self._begun
        while self._waiting:
            asker, queue = next(iter(self._waiting.items()))
            if queue:
                return queue
            del self._waiting[asker]
        return None


def _rows(entries: Iterable[_Waiting[Item, Result]]) -> int:
    return sum(entry.rows for entry in entries if not entry.result.done())
