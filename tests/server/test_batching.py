"""MicroBatcher: starts at once, batches what queued meanwhile, sheds at once, and works for nobody who has gone."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sameguard.errors import ConfigurationError
from sameguard.server.batching import DeadlineError, MicroBatcher, QueueFullError


class Gate:
    """Work that doubles numbers, notes its batches, and waits in its thread until it is let on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.release()
        assert self.open.acquire(timeout=20)
        return [2 * item for item in items]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def with_batcher(scenario, *, max_rows: int = 4, max_waiting_rows: int = 8) -> Gate:
    """Runs scenario(batcher, gate, clock) on an event loop of its own."""
    gate, clock = Gate(), Clock()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = MicroBatcher(gate, executor, max_rows=max_rows, max_waiting_rows=max_waiting_rows, clock=clock)
            await asyncio.wait_for(scenario(batcher, gate, clock), 30)

    asyncio.run(run())
    return gate


async def started(gate: Gate) -> None:
    """Waits until a batch has begun, with the event loop free meanwhile."""
    assert await asyncio.get_running_loop().run_in_executor(None, gate.begun.acquire, True, 20)


async def queued(batcher: MicroBatcher, item: int, rows: int = 1, deadline: float = 100.0, asker: str = "") -> asyncio.Task:
    task = asyncio.create_task(batcher.submit(item, rows, deadline=deadline, asker=asker))
    await asyncio.sleep(0)  # a turn of the loop, so that it stands in the queue
    return task


def test_an_idle_worker_starts_at_once_and_what_queued_meanwhile_goes_together():
    async def scenario(batcher, gate, clock):
        first = await queued(batcher, 1)
        await started(gate)
        rest = [await queued(batcher, item) for item in (2, 3, 4)]
        gate.open.release(2)
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]

    assert with_batcher(scenario).batches == [[1], [2, 3, 4]]


def test_a_batch_holds_at_most_max_rows_and_a_larger_item_runs_alone():
    async def scenario(batcher, gate, clock):
        tasks = [await queued(batcher, 0)]
        await started(gate)
        tasks += [await queued(batcher, item, rows) for item, rows in ((1, 3), (2, 2), (3, 2), (4, 9))]
        gate.open.release(4)
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]

    assert with_batcher(scenario, max_waiting_rows=20).batches == [[0], [1], [2, 3], [4]]


def test_a_full_queue_refuses_at_once_and_has_room_again_afterwards():
    async def scenario(batcher, gate, clock):
        working = await queued(batcher, 0, rows=50)  # what is at work does not count: an idle worker takes anything
        await started(gate)
        waiting = await queued(batcher, 1, rows=8)
        with pytest.raises(QueueFullError, match="queue of 8 rows has no room for 1 more, 8 wait"):
            await batcher.submit(2, 1, deadline=100.0)
        gate.open.release(2)
        await asyncio.gather(working, waiting)
        gate.open.release()
        assert await batcher.submit(3, 1, deadline=100.0) == 6

    assert with_batcher(scenario).batches == [[0], [1], [3]]


def test_what_has_begun_goes_first_and_finds_room_where_what_is_new_does_not():
    async def scenario(batcher, gate, clock):
        working = await queued(batcher, 0)
        await started(gate)
        new = await queued(batcher, 1, rows=8)
        begun = [asyncio.create_task(batcher.submit(item, 3, deadline=100.0, begun=True)) for item in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="queue of 8 rows has no room for 1 more, 14 wait"):
            await batcher.submit(4, 1, deadline=100.0)
        gate.open.release(4)
        assert await asyncio.gather(working, new, *begun) == [0, 2, 4, 6]

    assert with_batcher(scenario).batches == [[0], [2], [3], [1]]


def test_askers_take_turns():
    async def scenario(batcher, gate, clock):
        tasks = [await queued(batcher, 0, asker="busy")]
        await started(gate)
        tasks += [await queued(batcher, item, asker="busy") for item in (1, 2, 3, 4)]
        tasks += [await queued(batcher, item, asker=asker) for item, asker in ((5, "b"), (6, "c"))]
        gate.open.release(3)
        await asyncio.gather(*tasks)

    assert with_batcher(scenario).batches == [[0], [1, 5, 6, 2], [3, 4]]


def test_where_there_is_no_room_whoever_has_most_loses_its_newest():
    async def scenario(batcher, gate, clock):
        working = await queued(batcher, 0, asker="busy")
        await started(gate)
        busy = [await queued(batcher, item, rows=3, asker="busy") for item in (1, 2)]
        other = await queued(batcher, 3, rows=2, asker="other")
        newcomer = await queued(batcher, 4, rows=1, asker="newcomer")
        with pytest.raises(QueueFullError, match="3 rows made room for an asker with fewer"):
            await busy[1]
        assert batcher.waiting_rows == 6
        with pytest.raises(QueueFullError, match="no room for 3 more, 6 wait"):  # it would have as many as whoever has most
            await batcher.submit(5, 3, deadline=100.0, asker="another")
        with pytest.raises(QueueFullError, match="no room for 3 more"):
            await batcher.submit(6, 3, deadline=100.0, asker="busy")
        gate.open.release(3)
        assert await asyncio.gather(working, busy[0], other, newcomer) == [0, 2, 6, 8]

    assert with_batcher(scenario, max_rows=10).batches == [[0], [1, 3, 4]]


def test_a_cancelled_item_leaves_the_queue_and_makes_room():
    async def scenario(batcher, gate, clock):
        first = await queued(batcher, 0)
        await started(gate)
        gone = await queued(batcher, 1, rows=8)
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting_rows == 0
        kept = await queued(batcher, 2, rows=8)
        gate.open.release(2)
        assert await asyncio.gather(first, kept) == [0, 4]

    assert with_batcher(scenario).batches == [[0], [2]]


def test_a_caller_who_goes_while_his_batch_is_at_work_harms_nobody():
    async def scenario(batcher, gate, clock):
        gone = await queued(batcher, 0)
        await started(gate)
        gone.cancel()
        after = await queued(batcher, 1)
        gate.open.release(2)
        assert await after == 2

    assert with_batcher(scenario).batches == [[0], [1]]


def test_an_item_past_its_deadline_is_not_worked_on():
    async def scenario(batcher, gate, clock):
        first = await queued(batcher, 0)
        await started(gate)
        late, early = await queued(batcher, 1, deadline=5.0), await queued(batcher, 2, deadline=50.0)
        clock.now = 5.0
        gate.open.release(2)
        assert await asyncio.gather(first, early) == [0, 4]
        with pytest.raises(DeadlineError, match="1 rows waited until their deadline"):
            await late

    assert with_batcher(scenario).batches == [[0], [2]]


def test_an_item_is_told_at_its_deadline_while_everybody_is_at_work():
    async def scenario(batcher, gate, clock):
        working = await queued(batcher, 0)
        await started(gate)
        late = await queued(batcher, 1, rows=8, deadline=0.0)
        with pytest.raises(DeadlineError, match="8 rows waited until their deadline"):
            await late
        assert not working.done()
        assert batcher.waiting_rows == 0  # there is room again
        kept = await queued(batcher, 2, rows=8)
        gate.open.release(2)
        assert await asyncio.gather(working, kept) == [0, 4]

    assert with_batcher(scenario).batches == [[0], [2]]


def test_a_deadline_means_nothing_to_what_is_at_work():
    async def scenario(batcher, gate, clock):
        first = await queued(batcher, 0)
        await started(gate)
        second = await queued(batcher, 1, deadline=0.05)
        gate.open.release()
        await started(gate)
        clock.now = 1.0
        late = asyncio.get_running_loop().time() + 0.06
        while asyncio.get_running_loop().time() < late:
            await asyncio.sleep(0)  # its timer goes off
        gate.open.release()
        assert await asyncio.gather(first, second) == [0, 2]

    assert with_batcher(scenario).batches == [[0], [1]]


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [(lambda items: [1 / 0], ZeroDivisionError, "division"), (lambda items: [], RuntimeError, "one result for each of 1 items, got 0")],
)
def test_what_the_work_raises_is_raised_to_its_batch_and_the_next_one_runs(work, error, message):
    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            failing = True
            batcher = MicroBatcher(lambda items: work(items) if failing else items, executor, max_rows=4, max_waiting_rows=4)
            with pytest.raises(error, match=message):
                await batcher.submit(1, 1, deadline=float("inf"))
            failing = False
            assert await batcher.submit(2, 1, deadline=float("inf")) == 2

    asyncio.run(run())


@pytest.mark.parametrize(("max_rows", "max_waiting_rows"), [(0, 1), (1, 0)])
def test_limits_below_one_are_refused(max_rows, max_waiting_rows):
    with ThreadPoolExecutor(1) as executor, pytest.raises(ConfigurationError, match="must be at least 1, got"):
        MicroBatcher(lambda items: items, executor, max_rows=max_rows, max_waiting_rows=max_waiting_rows)
