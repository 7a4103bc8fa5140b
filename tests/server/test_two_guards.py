"""Guards as processes: two that share a Redis spend a proof once, one that is killed revives nothing, one that is told to stop drops nothing."""

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys

import pytest
from processes import NO_REDIS, REDIS, asked, challenged, guard_process, key, redis_process, until
from rig import DEMO, demo_queries, served

from sameguard.protocol import read_problem
from sameguard.server.demo_server import DemoServer

KEYS = key("one", 1)


@pytest.mark.skipif(REDIS is None, reason=NO_REDIS)
def test_two_hundred_redemptions_of_one_proof_at_two_guards_reach_the_model_once(tmp_path):
    upstream = DemoServer(DEMO / "victim.onnx")
    with (
        redis_process() as (_, store),
        served(upstream) as address,
        guard_process(address, tmp_path, PROOFS__STORE=store, PROOFS__KEYS=KEYS) as first,
        guard_process(address, tmp_path, PROOFS__STORE=store, PROOFS__KEYS=KEYS) as second,
    ):
        query, proof = challenged(first.url)
        before = upstream.answered
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda number: asked((first, second)[number % 2].url, query, proof), range(200)))
        answered = upstream.answered - before
    assert [status for status, _ in found].count(200) == 1
    assert {read_problem(status, body).kind for status, body in found if status != 200} == {"proof-replayed"}
    assert answered == 1


def test_a_proof_from_before_a_kill_buys_nothing_afterwards(tmp_path):
    with served(DemoServer(DEMO / "victim.onnx")) as address:
        with guard_process(address, tmp_path, PROOFS__KEYS=KEYS) as guard:
            query, proof = challenged(guard.url)
            guard.process.send_signal(signal.SIGKILL)
            guard.process.wait(20)
        with guard_process(address, tmp_path, PROOFS__KEYS=KEYS) as guard:
            status, body = asked(guard.url, query, proof)
    assert status == 402
    assert read_problem(402, body).kind == "proof-expired"


def test_a_guard_that_is_told_to_stop_finishes_what_it_has_begun(tmp_path):
    class Slow(DemoServer):
        begun = 0

        async def __call__(self, scope, receive, send) -> None:
            if scope.get("raw_path", b"").endswith(b"/infer"):
                self.begun += 1
                await asyncio.sleep(2.0)
            await super().__call__(scope, receive, send)

    digit = demo_queries()[0][:1]
    upstream = Slow(DEMO / "victim.onnx")
    with (
        served(upstream) as address,
        guard_process(address, tmp_path, MODE="shadow", CANARY__ENABLED="false") as guard,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(asked, guard.url, digit) for _ in range(8)]
        until(lambda: upstream.begun == 8, "not all of them are under way")
        guard.process.send_signal(signal.SIGTERM)
        statuses = [future.result()[0] for future in waiting]
        code = guard.process.wait(20)
    assert statuses == [200] * 8
    assert code == 0


def test_shared_keys_that_are_missing_stop_the_start(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAMEGUARD_")}
    environment |= {
        "SAMEGUARD_ARTIFACT": str(DEMO / "artefact"), "SAMEGUARD_UPSTREAM__URL": "http://127.0.0.1:1", "SAMEGUARD_PROOFS__STORE": "redis://127.0.0.1:1"
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "sameguard", "serve"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "need the same proofs.keys" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "sameguard", "serve"], env={**environment, "SAMEGUARD_PROOFS__KEYS": KEYS}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 2
    assert "replay store must answer in time" in done.stderr
    assert "Traceback" not in done.stderr
