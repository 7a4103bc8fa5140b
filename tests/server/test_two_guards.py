"""Guards as processes: two that share a Redis spend a proof once, one that is killed revives nothing, one that is told to stop drops nothing."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from honest_proofs import header_of, proof_of
from rig import DEMO, INFER, demo_queries, infer_message, served

from sameguard.protocol import read_problem
from sameguard.server.demo_server import DemoServer

GLYPHS = demo_queries()[1]
KEYS = f"one:{bytes(range(32)).hex()}"
REDIS = shutil.which("redis-server") or shutil.which("valkey-server")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextlib.contextmanager
def guard_process(upstream: str, tmp_path: Path, **more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`sameguard serve` before an upstream, its settings from the environment; ready when it is yielded."""
    port, admin = free_port(), free_port()
    variables = {
        "UPSTREAM__URL": upstream, "UPSTREAM__MODEL": "digits", "UPSTREAM__OUTPUT": "logits", "UPSTREAM__OUTPUT_KIND": "logits",
        "ARTIFACT": str(DEMO / "artefact"), "MODE": "enforce", "LISTEN__PORT": str(port), "ADMIN__PORT": str(admin),
        "PROOFS__PUZZLE": "pbkdf2", "PROOFS__WORST_SECONDS": "0.3", **more,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAMEGUARD_")}
    environment |= {f"SAMEGUARD_{name}": value for name, value in variables.items()}
    log = (tmp_path / f"guard-{port}.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "sameguard", "serve"], env=environment, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (tmp_path / f"guard-{port}.log").read_text()
            assert time.monotonic() < deadline, "the guard did not become ready"
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5).close()
                break
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        log.close()


@contextlib.contextmanager
def redis_process() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([REDIS, "--port", str(port), "--save", "", "--maxmemory-policy", "noeviction"], stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(10)


def asked(url: str, query: np.ndarray, proof: str | None = None, timeout: float = 30.0) -> tuple[int, bytes]:
    headers, body = infer_message(query)
    request = urllib.request.Request(url + INFER, body, {**headers, **({} if proof is None else {"Guard-Proof": proof})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def challenged(url: str) -> tuple[np.ndarray, str]:
    """A query that is challenged here, and the proof that pays for it."""
    for glyph in GLYPHS:
        status, body = asked(url, glyph[None])
        if status == 402:
            return glyph[None], header_of(proof_of(json.loads(body)["challenge"]))
    raise AssertionError("no glyph is challenged")


@pytest.mark.skipif(REDIS is None, reason="no redis-server or valkey-server here: apt-get install redis-server")
def test_two_hundred_redemptions_of_one_proof_at_two_guards_reach_the_model_once(tmp_path):
    upstream = DemoServer(DEMO / "victim.onnx")
    with (
        redis_process() as store,
        served(upstream) as address,
        guard_process(address, tmp_path, PROOFS__STORE=store, PROOFS__KEYS=KEYS) as (_, first),
        guard_process(address, tmp_path, PROOFS__STORE=store, PROOFS__KEYS=KEYS) as (_, second),
    ):
        query, proof = challenged(first)
        before = upstream.answered
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda number: asked((first, second)[number % 2], query, proof), range(200)))
        answered = upstream.answered - before
    assert [status for status, _ in found].count(200) == 1
    assert {read_problem(status, body).kind for status, body in found if status != 200} == {"proof-replayed"}
    assert answered == 1


def test_a_proof_from_before_a_kill_buys_nothing_afterwards(tmp_path):
    with served(DemoServer(DEMO / "victim.onnx")) as address:
        with guard_process(address, tmp_path, PROOFS__KEYS=KEYS) as (process, url):
            query, proof = challenged(url)
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        with guard_process(address, tmp_path, PROOFS__KEYS=KEYS) as (_, url):
            status, body = asked(url, query, proof)
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
        guard_process(address, tmp_path, MODE="shadow", CANARY__ENABLED="false") as (process, url),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(asked, url, digit) for _ in range(8)]
        deadline = time.monotonic() + 30
        while upstream.begun < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        statuses = [future.result()[0] for future in waiting]
        code = process.wait(20)
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
