"""Bodies on their way: who sends much at once gives way to himself, and all of them together have so much memory and no more."""

import asyncio
import contextlib

import pytest
from rig import settings_for

from sameguard.protocol import BodyTooLargeError
from sameguard.server.edge import Bodies, Body, BodyTimeoutError, read_body
from sameguard.server.replies import Refusal
from sameguard.server.settings import ListenSettings

LIMITS = ListenSettings(body_seconds=60.0, body_bytes=100)


class Client:
    """Sends pieces when it is told to."""

    REFUSED = "refused 503 body-bytes, again in 1 s"

    def __init__(self, bodies: Bodies, peer: str, length: int = 0) -> None:
        self.pieces: asyncio.Queue[dict] = asyncio.Queue()
        self.task = asyncio.create_task(self._asked(bodies, peer, {"content-length": str(length)}))

    async def _asked(self, bodies: Bodies, peer: str, headers: dict[str, str]) -> bytes:
        with bodies.body(peer) as body:
            return await read_body(self.pieces.get, headers, LIMITS, body)

    async def sent(self, piece: bytes, *, more: bool = True) -> None:
        self.pieces.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        await turns()

    async def outcome(self) -> str:
        """What became of it: read, late, refused or reading."""
        await turns()
        if not self.task.done():
            return "reading"
        try:
            await self.task
        except BodyTimeoutError:
            return "late"
        except Refusal as refusal:
            return f"refused {refusal.reply.status} {refusal.reason}, again in {refusal.reply.headers['retry-after']} s"
        return "read"


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def played(scenario) -> None:
    """Runs scenario() on a loop of its own, and lets go of the clients that are left."""

    async def run() -> None:
        await asyncio.wait_for(scenario(), 20)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    asyncio.run(run())


async def outcomes(*clients: Client) -> list[str]:
    return [await client.outcome() for client in clients]


def test_who_holds_most_places_makes_room_and_nobody_else_does():
    async def scenario():
        bodies = Bodies(4, 10**6)
        honest = Client(bodies, "10.0.0.1")
        await turns()
        greedy = [Client(bodies, "10.0.0.2") for _ in range(20)]
        await turns()
        other = Client(bodies, "10.0.0.3")
        assert await outcomes(honest, other, *greedy) == ["reading", "reading", *["late"] * 18, "reading", "reading"]
        await honest.sent(b"x", more=False)
        assert await honest.outcome() == "read"

    played(scenario)


def test_where_everybody_holds_one_place_the_oldest_makes_room():
    async def scenario():
        bodies = Bodies(2, 10**6)
        clients = []
        for number in range(3):
            clients.append(Client(bodies, f"10.0.0.{number}"))
            await turns()
        assert await outcomes(*clients) == ["late", "reading", "reading"]

    played(scenario)


def test_who_holds_most_bytes_makes_room_and_nobody_else_does():
    async def scenario():
        bodies = Bodies(100, 250)
        honest, silent = Client(bodies, "10.0.0.1"), Client(bodies, "10.0.0.2")
        greedy = [Client(bodies, "10.0.0.2") for _ in range(3)]
        await honest.sent(bytes(50))
        for client in greedy:
            await client.sent(bytes(90))
        assert await outcomes(honest, silent, *greedy) == ["reading", "reading", "late", "reading", "reading"]
        assert bodies.held_bytes == 230
        await honest.sent(bytes(30), more=False)
        assert await outcomes(honest, *greedy[1:]) == ["read", "late", "reading"]

    played(scenario)


def test_a_body_that_finds_no_room_among_those_at_work_is_refused():
    async def scenario():
        bodies = Bodies(100, 100)
        with bodies.body("10.0.0.1") as at_work:
            with bodies.coming(at_work):
                bodies.grow(at_work, 60)
            declared, chunked = Client(bodies, "10.0.0.2", length=41), Client(bodies, "10.0.0.2")
            assert await outcomes(declared, chunked) == [Client.REFUSED, "reading"]  # the one before anything was read
            await chunked.sent(bytes(41))
            assert await chunked.outcome() == Client.REFUSED
            fits = Client(bodies, "10.0.0.2", length=40)
            await fits.sent(bytes(40), more=False)
            assert await fits.outcome() == "read"
        assert bodies.held_bytes == 0

    played(scenario)


def test_slow_bodies_do_not_count_by_what_they_announce():
    async def scenario():
        bodies = Bodies(100, 100)
        slow = [Client(bodies, "10.0.0.2", length=100) for _ in range(20)]
        for client in slow:
            await client.sent(bytes(3))
        honest = Client(bodies, "10.0.0.1", length=45)
        await honest.sent(bytes(45), more=False)
        assert await outcomes(honest, *slow) == ["read", "late", "late", *["reading"] * 18]

    played(scenario)


def test_whatever_becomes_of_bodies_nothing_of_them_is_left():
    async def scenario():
        bodies = Bodies(3, 200)
        clients = [Client(bodies, f"10.0.0.{number % 3}") for number in range(9)]
        for number, client in enumerate(clients):
            await client.sent(bytes(60), more=number % 2 == 0)
        for client in clients:
            client.task.cancel()
        for client in clients:
            with contextlib.suppress(asyncio.CancelledError):
                await client.outcome()
        assert bodies.held_bytes == 0
        assert not bodies._coming

    played(scenario)


@pytest.mark.parametrize(("headers", "most"), [({"content-length": "51"}, 50), ({}, 50), ({"content-length": "101"}, None)])
def test_a_body_has_no_more_bytes_than_its_model_needs(headers, most):
    async def receive() -> dict:
        return {"type": "http.request", "body": bytes(51), "more_body": True}

    with pytest.raises(BodyTooLargeError, match=f"body must have at most {most or 100} bytes, got more"):
        asyncio.run(read_body(receive, headers, LIMITS, most_bytes=most))


def test_a_body_that_was_given_up_counts_no_more_even_if_a_piece_of_it_still_comes():
    async def scenario():
        bodies = Bodies(1, 100)
        with bodies.body("a") as old, bodies.body("b") as new, contextlib.ExitStack() as reading:
            reading.enter_context(bodies.coming(old))
            bodies.grow(old, 50)
            reading.enter_context(bodies.coming(new))
            bodies.grow(old, 50)
            assert (old.size, bodies.held_bytes) == (0, 0)
            assert isinstance(old, Body)

    played(scenario)


def test_all_bodies_together_have_room_for_one():
    with pytest.raises(ValueError, match=r"listen\.body_bytes_in_flight must be at least listen\.body_bytes"):
        settings_for("http://127.0.0.1:1", listen={"body_bytes_in_flight": 100})
