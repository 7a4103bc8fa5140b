"""One client that asks more than all others: they find room in every queue, places and lines in the logs as if it were not there."""

import asyncio
import concurrent.futures
import json
import threading

import numpy as np
import pytest
from fault_proxy import SlowServer
from honest_proofs import header_of
from processes import answer_of, paid_for, sockets_to, until
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged

from sameguard.server import upstream as upstream_module
from sameguard.server.demo_server import DemoServer
from sameguard.server.flow import WAITING_CHALLENGES
from sameguard.server.scoring import LocalBackend, ScoringQueue

DIGITS, GLYPHS = demo_queries()
BY_KEY = {"identity": {"header": "x-api-key"}}
READY = "/v2/models/digits/ready"


def asked(url: str, queries: np.ndarray, key: str, proof: str | None = None) -> tuple[int, bytes]:
    headers, body = infer_message(queries)
    return answer_of(url + INFER, body, {**headers, "X-Api-Key": key, **({} if proof is None else {"Guard-Proof": proof})})


class Shut(LocalBackend):
    """The scorer; it begins nothing while it is shut."""

    def __init__(self, rig: Rig, *, waiting_rows: int) -> None:
        super().__init__(rig.service.snapshot.scorer)
        self.open = threading.Event()
        object.__setattr__(
            rig.service.snapshot, "queue", ScoringQueue(self, batch_rows=64, waiting_rows=waiting_rows, deadline_seconds=30.0)
        )

    def run(self, jobs):
        self.open.wait(60)
        return super().run(jobs)


def test_whoever_fills_the_scorers_queue_makes_room_for_whoever_asks_little():
    with rigged(mode="enforce", policy={"kind": "reject"}, cache={"seconds": 0}, **BY_KEY) as rig:
        honest = next(digit[None] for digit in DIGITS if asked(rig.url, digit[None], "honest")[0] == 200)
        backend = Shut(rig, waiting_rows=150)
        queue = rig.service.snapshot.queue
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            batch = np.concatenate([DIGITS, DIGITS])[:64]
            greedy = [pool.submit(asked, rig.url, batch, "greedy") for _ in range(6)]  # one is at work, two wait
            until(lambda: queue.waiting_rows == 128 and sum(future.done() for future in greedy) == 3, "the queue is not full")
            small = [pool.submit(asked, rig.url, np.concatenate([honest] * 12), f"honest {number}") for number in range(3)]
            until(lambda: queue.waiting_rows == 64 + 36, "nobody made room")
            backend.open.set()
            assert [future.result()[0] for future in small] == [200] * 3
            assert [future.result()[0] for future in greedy].count(503) == 4


def test_whoever_fills_the_queue_of_challenges_makes_room_for_whoever_waits_for_one():
    with rigged(cache={"seconds": 0}, **BY_KEY) as rig:
        query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None], "honest")[0] == 402)
        flow, open_again = rig.service.flow, threading.Event()
        issue = flow.proofs.issue
        flow.proofs.issue = lambda *charge: open_again.wait(60) and issue(*charge)
        with concurrent.futures.ThreadPoolExecutor(WAITING_CHALLENGES + 4) as pool:
            greedy = [pool.submit(asked, rig.url, query, "greedy") for _ in range(WAITING_CHALLENGES + 2)]  # one is at work
            until(lambda: any(future.done() for future in greedy), "the queue is not full")
            honest = pool.submit(asked, rig.url, query, "honest")
            until(lambda: sum(future.done() for future in greedy) == 2, "nobody made room")
            open_again.set()
            assert honest.result()[0] == 402
            assert sorted(future.result()[0] for future in greedy) == [402] * WAITING_CHALLENGES + [503] * 2
    assert {decision.reason for decision in rig.noted.decisions if decision.status == 503} == {"challenges-full"}


# ---------------------------------------------------------------------- metadata and health


class SlowHealth(DemoServer):
    """Holds what asks for its health until it is let on. looks: that reached it."""

    def __init__(self) -> None:
        super().__init__(DEMO / "victim.onnx")
        self.shut = False
        self.looks = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            self.looks += 1
            while self.shut:
                await asyncio.sleep(0.01)
        await super().__call__(scope, receive, send)


def test_any_number_of_looks_at_the_model_server_hold_no_place_and_cost_one_call():
    with rigged(SlowHealth(), mode="shadow", listen={"concurrency": 2}, canary={"enabled": False}) as rig:
        rig.upstream.shut, before = True, rig.upstream.looks
        clients = sockets_to(rig.url, 40)
        for client in clients:
            client.sendall(f"GET {READY} HTTP/1.1\r\nHost: guard\r\n\r\n".encode())
        until(lambda: rig.upstream.looks > before, "nobody looks")
        assert [asked(rig.url, DIGITS[:1], "")[0] for _ in range(5)] == [200] * 5
        for client in clients[20:]:
            client.close()
        until(lambda: b'guard_passed_total{status="4xx"} 20.0' in rig.service.telemetry.render()[0], "who has gone is not let go")
        rig.upstream.shut = False
        assert {client.recv(20)[9:12] for client in clients[:20]} == {b"200"}
        for client in clients[:20]:
            client.close()
        assert rig.upstream.looks == before + 1
        until(lambda: b'guard_passed_total{status="2xx"} 20.0' in rig.service.telemetry.render()[0], "they are not counted")
    assert {decision.outcome for decision in rig.noted.decisions} == {"allow"}  # no line for each look


def test_a_look_is_kept_for_a_second_and_a_failed_one_for_nobody(monkeypatch):
    monkeypatch.setattr(upstream_module, "GLANCE_SECONDS", 1e9)
    with rigged(SlowHealth(), mode="shadow", canary={"enabled": False}) as rig:
        before = rig.upstream.looks
        assert [answer_of(rig.url + READY)[0] for _ in range(3)] == [200] * 3
        assert rig.upstream.looks == before + 1
        monkeypatch.setattr(upstream_module, "GLANCE_SECONDS", 0.0)
        assert [answer_of(rig.url + READY)[0] for _ in range(3)] == [200] * 3
        assert rig.upstream.looks == before + 4
        asker = rig.service.upstream
        there, asker.settings = asker.settings, asker.settings.model_copy(update={"url": "http://127.0.0.1:1"})
        monkeypatch.setattr(upstream_module, "GLANCE_SECONDS", 1e9)
        asker._glances.clear()
        assert answer_of(rig.url + READY)[0] == 502
        asker.settings = there
        assert answer_of(rig.url + READY)[0] == 200
    assert b'guard_failures_total{reason="upstream-unreachable"} 1.0' in rig.service.telemetry.render()[0]


# ---------------------------------------------------------------------- the audit log


def test_forged_and_used_proofs_wash_no_record_out_of_the_log(tmp_path):
    path = tmp_path / "audit.jsonl"
    with rigged(audit={"path": path, "denied_a_minute": 3}, **BY_KEY) as rig:
        query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None], "thief")[0] == 402)
        proof = paid_for(asked(rig.url, query, "thief")[1])
        assert asked(rig.url, query, "thief", proof)[0] == 200
        forged = header_of({"challenge": {}, "solution": {}})
        assert {asked(rig.url, query, "thief", sent)[0] for sent in (proof, forged) * 20} == {402}
    judged = len(rig.noted.decisions) - 40
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["requests"] for record in records] == [1] * (judged + 3) + [19, 18]
    assert [record["reason"] for record in records[judged + 3 :]] == ["proof-invalid", "proof-replayed"]


@pytest.mark.parametrize("reason", ["concurrency"])
def test_what_is_shed_washes_no_record_out_of_the_log(tmp_path, reason):
    path, upstream = tmp_path / "audit.jsonl", SlowServer(60.0)
    settings = {"listen": {"concurrency": 1}, "canary": {"enabled": False}, "audit": {"path": path, "denied_a_minute": 3}}
    with rigged(upstream, mode="shadow", **settings) as rig, concurrent.futures.ThreadPoolExecutor(1) as pool:
        working = pool.submit(asked, rig.url, DIGITS[:1], "")
        until(lambda: upstream.begun == 1, "it did not arrive")
        assert {asked(rig.url, DIGITS[:1], "")[0] for _ in range(20)} == {503}
        upstream.seconds = 0.0
        assert working.result()[0] == 200
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["reason"], record["requests"]) for record in records] == [(reason, 1)] * 3 + [("", 1), (reason, 17)]
