"""Made-up guards for the tests of the admin port: decisions drawn from a seed, and an ASGI call without a server."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from pydantic import SecretStr

from sameguard.errors import ArtifactError
from sameguard.server.decision import Decision, Evidence
from sameguard.server.history import History
from sameguard.server.settings import AdminSettings
from sameguard.server.telemetry import Telemetry, score_buckets

TOKEN = "0123456789abcdef0123456789abcdef"
NOON = 1_767_225_600.0 + 12 * 3600  # 2026-01-01 12:00 UTC
BENIGN = np.random.default_rng(7).gamma(4.0, 0.25, 2000)
THRESHOLD = float(np.quantile(BENIGN, 0.95))


def decision_of(**changes: Any) -> Decision:
    """A plain allowed request, changed."""
    plain: dict[str, Any] = {
        "time": NOON, "request_id": "r-1", "principal": "a1b2c3d4e5f60718", "model": "digits", "artifact": "f" * 64, "digest": "d" * 64,
        "rows": 1, "outcome": "allow", "verdict": "allow", "status": 200, "stage_a_score": 0.25, "score": 0.5,
        "seconds": {"parse": 0.0005, "stage_a": 0.02, "upstream": 0.01, "stage_b": 0.004},
    }  # fmt: skip
    return Decision(**plain | changes)


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Ready:
    """A readiness made of (name, state, detail)."""

    checks: list[tuple[str, str, str]] = field(default_factory=lambda: [("artifact", "ok", "ffffffffffff on onnxruntime 1.20 fp32")])

    @property
    def ready(self) -> bool:
        return all(state != "failed" for _, state, _ in self.checks)

    @property
    def warnings(self) -> list[str]:
        return [f"{name}: {detail}" for name, state, detail in self.checks if state == "warning"]


class FakeGuard:
    """An AdminView. mode: shadow or enforce. reload gives `fresh`, or raises where that is empty."""

    def __init__(self, settings: AdminSettings, *, mode: str = "enforce", rollout: float = 1.0, clock: Clock | None = None) -> None:
        self.telemetry = Telemetry(["digits"], score_buckets(BENIGN), lambda: 3.0)
        self.telemetry.artifact("f" * 64, "onnxruntime")
        self.clock = clock or Clock()
        self.history = History(settings, clock=self.clock)
        self.mode = mode
        self.rollout = rollout
        self.ready = Ready()
        self.fresh = "e" * 64
        self.reloads = 0

    @property
    def benign_scores(self) -> np.ndarray:
        return BENIGN

    def description(self) -> dict[str, Any]:
        return {
            "mode": self.mode, "rollout": self.rollout, "model": "digits", "upstream": "http://127.0.0.1:8000", "artifact": "f" * 64,
            "engine": "onnxruntime 1.20 (cpu, fp32)", "policy": "ladder", "threshold": THRESHOLD, "stage_a_threshold": math.inf,
            "false_positive_rate": 0.05,
            "policy_lines": ["level 1: coarsen, at most 5.00% of benign queries", "level 2: challenge, at most 3.00%; 62 tries on average"],
        }  # fmt: skip

    def openapi(self) -> dict[str, Any]:
        return {"openapi": "3.1.0"}

    async def readiness(self) -> Ready:
        return self.ready

    async def reload(self) -> str:
        self.reloads += 1
        if not self.fresh:
            raise ArtifactError("artefact guard/ must match its checksums, got another reconstruction.onnx: copy it again.")
        return self.fresh

    def observe(self, decision: Decision, evidence: Evidence | None = None) -> None:
        self.telemetry.observe(decision, evidence)
        self.history.observe(decision, evidence)


def live_through(guard: FakeGuard, *, minutes: int = 55, seed: int = 0) -> None:
    """An hour of traffic that ends at noon: ordinary users, later an attack, some of whose requests are challenged and solved."""
    draw = np.random.default_rng(seed)
    for minute in range(minutes):
        guard.clock.now = NOON - 60.0 * (minutes - 1 - minute)
        attack = minute > 0.6 * minutes
        for number in range(int(draw.poisson(18 + (14 if attack else 0)))):
            hostile = attack and draw.random() < 0.45
            guard.observe(*_drawn(guard, draw, f"{minute:02d}{number:03d}", hostile))


def _drawn(guard: FakeGuard, draw: np.random.Generator, name: str, hostile: bool) -> tuple[Decision, Evidence | None]:
    score = float(draw.gamma(9.0, 0.3) if hostile else draw.gamma(4.0, 0.25))
    verdict, level = "allow", 0
    for cut, said in ((THRESHOLD, "coarsen"), (1.15 * THRESHOLD, "challenge"), (1.5 * THRESHOLD, "refuse")):
        if score > cut:
            verdict, level = said, level + 1
    enforced = guard.mode == "enforce"
    seconds = {
        "body": 0.0004, "parse": 0.0006, "queue": float(draw.gamma(2.0, 0.001)), "stage_a": float(draw.gamma(20.0, 0.001)),
        "upstream": float(draw.gamma(6.0, 0.002)), "stage_b": float(draw.gamma(9.0, 0.0006)),
    }  # fmt: skip
    changes: dict[str, Any] = {
        "time": guard.clock.now, "request_id": f"req-{name}", "principal": ("e4" if hostile else "0b") * 16, "score": score,
        "stage_a_score": 0.8 * score, "verdict": verdict, "outcome": verdict if enforced else "allow", "enforced": enforced, "seconds": seconds,
        "level": level if verdict == "challenge" else 0, "issued": enforced and verdict == "challenge",
        "status": {"challenge": 402, "refuse": 403}.get(verdict, 200) if enforced else 200,
    }  # fmt: skip
    if draw.random() < 0.01:
        changes |= {"outcome": "failed", "verdict": "", "status": 503, "reason": "queue-full", "issued": False, "level": 0}
    elif enforced and hostile and draw.random() < 0.15:
        result = str(draw.choice(["valid", "valid", "valid", "expired", "replayed"]))
        passed = (
            {"outcome": "allow", "status": 200}
            if result == "valid"
            else {"outcome": "challenge", "status": 402, "reason": f"proof-{result}"}
        )
        changes |= {"verdict": "", "proof": result, "issued": False, "score": math.nan, "stage_a_score": math.nan} | passed
    return decision_of(**changes), _evidence(draw, hostile)


def _evidence(draw: np.random.Generator, hostile: bool) -> Evidence:
    """A blurred ring, reconstructed well, or noise, reconstructed as a ring."""
    across, down = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28))
    ring = np.exp(-((np.hypot(across, down) - 0.6) ** 2) / 0.03).astype(np.float32)[None, None]
    query = draw.random((1, 1, 28, 28), dtype=np.float32) if hostile else ring
    view = np.clip(ring + 0.03 * draw.standard_normal((1, 1, 28, 28)), 0.0, 1.0).astype(np.float32)
    return Evidence(query, {"full": view})


# ---------------------------------------------------------------------- asking


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def settings_of(**changes: Any) -> AdminSettings:
    token = changes.pop("token", None)
    return AdminSettings(**changes, token=None if token is None else SecretStr(token))


def ask_app(app: Any, path: str = "/", *, method: str = "GET", headers: Mapping[str, str] | list[tuple[str, str]] | None = None) -> Answer:
    """One request to an ASGI app; Host is 127.0.0.1:8081 unless given."""
    given = list(headers.items()) if isinstance(headers, Mapping) else list(headers or [])
    if not any(name.lower() == "host" for name, _ in given):
        given.append(("host", "127.0.0.1:8081"))
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "headers": [(name.lower().encode(), value.encode()) for name, value in given],
        "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8081), "asgi": {"version": "3.0"},
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))
