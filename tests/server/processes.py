"""Guards and stores as processes of their own, for tests that stop, pause and kill them."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from honest_proofs import header_of, proof_of
from rig import DEMO, INFER, demo_queries, infer_message

GLYPHS = demo_queries()[1]
REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
NO_REDIS = "no redis-server or valkey-server here: apt-get install redis-server"


def key(kid: str, seed: int) -> str:
    """As proofs.keys holds it."""
    return f"{kid}:{np.random.default_rng(seed).bytes(32).hex()}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@dataclass(frozen=True)
class GuardProcess:
    """url: of the data plane. admin: of the operators' port. log: what it printed so far."""

    process: subprocess.Popen
    url: str
    admin: str
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def memory_bytes(self) -> int:
        line = next(line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return answer_of(self.admin + "/readyz")[0] == 200
        return False


def settings_in_environment(upstream: str, **more: str) -> dict[str, str]:
    """This environment, and a guard's settings in it; more: names without their prefix."""
    variables = {
        "UPSTREAM__URL": upstream, "UPSTREAM__MODEL": "digits", "UPSTREAM__OUTPUT": "logits", "UPSTREAM__OUTPUT_KIND": "logits",
        "ARTIFACT": str(DEMO / "artefact"), "MODE": "enforce", "PROOFS__PUZZLE": "pbkdf2", "PROOFS__WORST_SECONDS": "0.3", **more,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAMEGUARD_")}
    return environment | {f"SAMEGUARD_{name}": value for name, value in variables.items()}


@contextlib.contextmanager
def guard_process(upstream: str, tmp_path: Path, **more: str) -> Iterator[GuardProcess]:
    """`sameguard serve` before an upstream, its settings from the environment; ready when it is yielded."""
    port, admin = free_port(), free_port()
    environment = settings_in_environment(upstream, LISTEN__PORT=str(port), ADMIN__PORT=str(admin), **more)
    path = tmp_path / f"guard-{port}.log"
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "sameguard", "serve"], env=environment, stderr=log, stdout=log)
        guard = GuardProcess(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", path)
        try:
            until(lambda: process.poll() is not None or guard.ready(), "the guard did not become ready", 90.0)
            assert process.poll() is None, guard.log
            yield guard
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(20)


@contextlib.contextmanager
def redis_process(port: int | None = None) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server that keeps nothing on disk, and its address."""
    port = port or free_port()
    process = subprocess.Popen(
        [str(REDIS), "--port", str(port), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"], stdout=subprocess.DEVNULL
    )

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        until(listening, "redis did not start")
        yield process, f"redis://127.0.0.1:{port}/0"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(10)


def until(condition: Callable[[], bool], complaint: str, seconds: float = 30.0) -> float:
    """How long it took until the condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, complaint
        time.sleep(0.02)
    return time.monotonic() - began


def answer_of(url: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout: float = 30.0) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def asked(url: str, queries: np.ndarray, proof: str | None = None, timeout: float = 30.0) -> tuple[int, bytes]:
    """Status and body of an inference request."""
    headers, body = infer_message(queries)
    return answer_of(url + INFER, body, {**headers, **({} if proof is None else {"Guard-Proof": proof})}, timeout)


def paid_for(body: bytes) -> str:
    """The proof for the challenge in an answer."""
    return header_of(proof_of(json.loads(body)["challenge"]))


def challenged(url: str, glyphs: np.ndarray = GLYPHS) -> tuple[np.ndarray, str]:
    """A query that is challenged here, and the proof that pays for it."""
    for glyph in glyphs:
        status, body = asked(url, glyph[None])
        if status == 402:
            return glyph[None], paid_for(body)
    raise AssertionError("no glyph is challenged")


def sockets_to(url: str, count: int, *, receive_bytes: int | None = None) -> list[socket.socket]:
    """Connections; receive_bytes: how much the kernel takes for a client that does not read."""
    host, port = url.removeprefix("http://").split(":")
    found = []
    for _ in range(count):
        connection = socket.socket()
        connection.settimeout(20)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            connection.connect((host, int(port)))
        except OSError:
            connection.close()
            raise
        found.append(connection)
    return found


def raw_request(queries: np.ndarray, *more: str) -> bytes:
    """An inference request as bytes."""
    headers, body = infer_message(queries)
    lines = [
        f"POST {INFER} HTTP/1.1",
        "Host: guard",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, *more]).encode("latin-1") + b"\r\n\r\n" + body
