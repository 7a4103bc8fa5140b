"""The guard as a running service: what lives as long as the process, and what is swapped when an artefact is reloaded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import structlog

from sameguard.calibration import CANARY_TOLERANCE
from sameguard.errors import ArtifactError, SameguardError
from sameguard.server.audit import AuditLog
from sameguard.server.decision import Decision, Evidence, Observer
from sameguard.server.denials import Denials
from sameguard.server.flow import Flow
from sameguard.server.history import History
from sameguard.server.identity import Identity, Quotas
from sameguard.server.keys import make_proofs
from sameguard.server.model_server import CanariesUnansweredError, ModelServer
from sameguard.server.openapi import openapi_document
from sameguard.server.proofs import new_boot_id
from sameguard.server.replay import MemoryReplayStore, ReplayStore, StoreUnavailableError, open_redis
from sameguard.server.scoring import ScoringQueue
from sameguard.server.settings import Settings
from sameguard.server.snapshot import Snapshot, load_snapshot, policy_lines
from sameguard.server.telemetry import DecisionLog, Telemetry, score_buckets
from sameguard.server.upstream import Upstream, UpstreamFailedError
from sameguard.server.verdicts import VerdictCache

UPSTREAM = "model server"  # the check of it
LOOK_SECONDS = 2.0  # between looks at a model server that has not been checked yet, or has stopped answering
log = structlog.get_logger("sameguard")


class Check(NamedTuple):
    """state: ok, warning or failed. Only `failed` makes the guard not ready."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True)
class Readiness:
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return all(check.state != "failed" for check in self.checks)

    @property
    def warnings(self) -> list[str]:
        return [f"{check.name}: {check.detail}" for check in self.checks if check.state == "warning"]


class GuardService:
    """Start it in the event loop that it serves. observers: told of every decision, besides metrics, history and audit log."""

    def __init__(self, settings: Settings, observers: Sequence[Observer] = ()) -> None:
        self.settings = settings
        self.upstream = Upstream(settings.upstream)
        self.model_server = ModelServer(self.upstream)
        self.identity = Identity(settings.identity, settings.listen.trusted_proxies)
        self.quotas = Quotas(settings.quota)
        self.audit = None if settings.audit.path is None else AuditLog(settings.audit, on_drop=self._lost)
        self.telemetry: Telemetry | None = None
        self.history = History(settings.admin)
        self.extra_observers = tuple(observers)
        self.observers: tuple[Observer, ...] = ()
        self.denials: Denials | None = None
        self.snapshot: Snapshot | None = None
        self.flow: Flow | None = None
        self.store: ReplayStore | None = None
        self.draining = False  # what is in flight is finished, nothing new is wanted
        self.checked = False  # the model server is the one that the artefact was made for, as far as it tells
        self.canary_shift: float | None = None
        self.canary_failure = ""
        self._issuing = ThreadPoolExecutor(1, thread_name_prefix="challenges")
        self._tasks: set[asyncio.Task[None]] = set()
        self._users: dict[ScoringQueue, int] = {}  # requests that may still score there
        self._reloading = asyncio.Lock()
        self._trouble: SameguardError | None = None  # what the last look at the model server found
        self._failed: set[str] = set()  # checks that were logged as failed

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Raises ConfigurationError, ArtifactError, CalibrationError, StoreUnavailableError: a guard that cannot guard does not start."""
        settings = self.settings
        self.store = await _open_store(settings)
        proofs = make_proofs(settings.proofs, boot_id=None if self.store.shared else new_boot_id())
        await self.upstream.open()
        self.snapshot = await asyncio.to_thread(load_snapshot, settings, binary_tensors=bool(settings.upstream.binary))
        self.telemetry = Telemetry((self.snapshot.model.name,), _buckets(self.snapshot), lambda: self.snapshot.queue.waiting_rows)
        self.telemetry.artifact(self.snapshot.artifact_digest, str(self.snapshot.scorer.provider))
        self.flow = Flow(settings, self.upstream, proofs, self.store, VerdictCache(settings.cache), self._issuing)
        logs: list[Observer] = [DecisionLog()] if structlog.is_configured() else []  # left alone it prints everything, scores included
        if self.audit is not None:
            logs.append(self.audit)
        self.denials = Denials(logs, settings.audit.denied_a_minute)
        self.observers = (self.telemetry, self.history, *self.extra_observers)
        try:
            await self._check_upstream()
        except UpstreamFailedError as error:  # it may start after us; until it is checked nothing is enforced, and nothing answered
            self._trouble = error
        self._tell(await self.readiness())
        self._tasks.add(asyncio.create_task(self._watch_upstream()))
        log.info(
            "started", artifact=self.snapshot.artifact_digest[:12], mode=settings.mode, upstream=settings.upstream.url, checked=self.checked
        )

    async def close(self) -> None:
        """Lets go of everything; whoever serves has drained its requests before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.upstream.close()
        if self.store is not None:
            await self.store.close()
        self._issuing.shutdown(wait=False, cancel_futures=True)
        if self.snapshot is not None:
            self.snapshot.queue.close()
        if self.denials is not None:
            self.denials.flush(now=True)
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)

    # ------------------------------------------------------------------ serving

    @contextlib.asynccontextmanager
    async def using(self) -> AsyncIterator[Snapshot]:
        """The current snapshot, kept open until this request is through with it."""
        snapshot = self.snapshot
        queue = snapshot.queue
        self._users[queue] = self._users.get(queue, 0) + 1
        try:
            yield snapshot
        finally:
            self._users[queue] -= 1
            if self._users[queue] == 0:
                del self._users[queue]
                if queue is not self.snapshot.queue:
                    queue.close()

    def _lost(self, records: int) -> None:
        if self.telemetry is not None:
            self.telemetry.degraded("audit-dropped", records)

    def observe(self, decision: Decision, evidence: Evidence | None) -> bool:
        """Tells everyone. Whether the logs have a line for this request alone."""
        has_line = self.denials.observe(decision, evidence)
        for observer in self.observers:
            observer.observe(decision, evidence)
        return has_line

    def connection_shed(self) -> None:
        """A connection was closed to keep within the limits of `listen`."""
        if self.telemetry is not None:
            self.telemetry.failed("connections")

    # ------------------------------------------------------------------ operation

    @property
    def benign_scores(self) -> np.ndarray:
        return self.snapshot.calibration.scores

    def description(self) -> dict[str, Any]:
        """What is served, for operators."""
        settings, snapshot = self.settings, self.snapshot
        threshold = snapshot.threshold
        return {
            "mode": settings.mode,
            "rollout": settings.rollout,
            "model": snapshot.model.name,
            "upstream": settings.upstream.url,
            "dialect": settings.upstream.dialect,
            "artifact": snapshot.artifact_digest,
            "loaded_at": snapshot.loaded_at,
            "engine": str(snapshot.scorer.provider),
            "label_only": snapshot.scorer.label_only,
            "policy": settings.policy.kind,
            "policy_lines": policy_lines(snapshot.policy),
            "threshold": threshold.value,
            "stage_a_threshold": threshold.stage_a,
            "false_positive_rate": threshold.false_positive_rate,
        }

    def openapi(self) -> dict[str, Any]:
        """The data plane described, see `openapi_document`."""
        return openapi_document(self.snapshot.dialect, challenge_status=self.settings.proofs.status)

    async def readiness(self) -> Readiness:
        """Artefact loaded, model server checked and answering, proofs redeemable."""
        checks = [
            Check("artifact", "ok", f"{self.snapshot.artifact_digest[:12]} on {self.snapshot.scorer.provider}"),
            self._upstream_check(),
        ]
        try:
            await self.store.check()
            checks.append(Check("replay store", "ok", "shared" if self.store.shared else "memory of this process"))
        except StoreUnavailableError as error:
            checks.append(Check("replay store", "failed", str(error)))
        checks.append(self._canary_check())
        if self.audit is not None:
            checks.append(self._audit_check(self.audit))
        if self.draining:
            checks.append(Check("shutdown", "failed", "the guard is finishing what is in flight"))
        return Readiness(tuple(checks))

    async def reload(self) -> str:
        """Reads the artefact anew, tries it and swaps it in; its digest. What is in flight ends with the old one.

        Whatever is raised, the old one stays: a SameguardError says in a sentence what is wrong with the new one.
        """
        async with self._reloading:
            binary = self.snapshot.model.binary_tensors
            fresh = await asyncio.to_thread(load_snapshot, self.settings, binary_tensors=binary)
            try:
                shift = await self._tried(fresh)
                buckets = _buckets(fresh)
            except BaseException:
                fresh.queue.close()
                raise
            old, self.snapshot = self.snapshot, fresh
            if old.queue not in self._users:
                old.queue.close()
            self.telemetry.artifact(fresh.artifact_digest, str(fresh.scorer.provider), buckets)
            log.info("reloaded", artifact=fresh.artifact_digest[:12], before=old.artifact_digest[:12])
            self._note_shift(shift)
        return fresh.artifact_digest

    async def _tried(self, fresh: Snapshot) -> float | None:
        """The canary queries' shift where the model server answers a fresh artefact as its own; None where it was not asked, or is down.

        Raises SameguardError where it is another model's.
        """
        try:
            await self.model_server.check_model(fresh.dialect)
            return await self._canary_shift(fresh)
        except UpstreamFailedError as error:  # as at the start: it is checked once it answers
            self.checked, self._trouble = False, error
        except CanariesUnansweredError as error:
            if not self.canary_failure:  # the old one's were answered, so it is the new one that does not fit
                raise ArtifactError(
                    f"artefact {self.settings.artifact} must be of the model that is served, got canary queries without an answer: {error}."
                ) from error
        return None

    # ------------------------------------------------------------------ the model server

    async def _check_upstream(self) -> None:
        """Is it the model that the artefact was made for? Raises UpstreamFailedError; ConfigurationError where it says that it is another."""
        async with self._reloading:  # what is found out is about this snapshot, and goes into no other
            dialect = self.snapshot.dialect
            await self.model_server.check_ready(dialect)
            await self.model_server.check_model(dialect)
            if self.settings.upstream.binary is None:
                self.snapshot = self.snapshot.speaking_binary(await self.model_server.speaks_binary(dialect))
            self.checked, self._trouble = True, None
        await self._ask_canaries()
        if not self.canary_failure:
            self.upstream.understood()

    async def _ask_canaries(self) -> None:
        """Asks benign queries whose answers are known; a shift is a warning, and the operator's to judge. Raises UpstreamFailedError."""
        try:
            shift = await self._canary_shift(self.snapshot)
        except CanariesUnansweredError as error:
            if error.unreadable:
                self.upstream.misunderstood()
            if str(error) != self.canary_failure:
                log.warning("canary", detail=str(error))
            self.canary_failure = str(error)
        else:
            self._note_shift(shift)

    async def _canary_shift(self, snapshot: Snapshot) -> float | None:
        """None where there are no canary queries, or none are wanted. Raises UpstreamFailedError, CanariesUnansweredError."""
        if not self.settings.canary.enabled or not len(snapshot.calibration.canary_queries):
            return None
        return await self.model_server.canary_shift(snapshot)

    def _note_shift(self, shift: float | None) -> None:
        """None: unknown for this artefact."""
        self.canary_shift = shift
        if shift is None:
            return
        self.canary_failure = ""
        self.telemetry.canary(shift)
        if not shift <= CANARY_TOLERANCE:
            log.warning("canary", shift=round(shift, 4), meaning="the model server answers otherwise than at calibration: calibrate again")

    async def _watch_upstream(self) -> None:
        """Checks the model server until it has been seen once, looks after one that fails, and asks the canary queries again."""
        loop = asyncio.get_running_loop()
        canaries_at = loop.time() + self.settings.canary.seconds
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.denials.flush()
            try:
                if not self.checked or self.upstream.failures >= self.settings.upstream.ready_failures:
                    await self._check_upstream()
                elif self.settings.canary.seconds and loop.time() >= canaries_at:
                    canaries_at = loop.time() + self.settings.canary.seconds
                    await self._ask_canaries()
            except UpstreamFailedError as error:
                self._is_in_trouble(error)
            except SameguardError as error:
                self.checked = False
                self._is_in_trouble(error)
            except Exception:  # a watch that ends would leave the guard blind for good
                log.exception("watching the model server")
            self._tell(await self.readiness())

    def _is_in_trouble(self, error: SameguardError) -> None:
        if _reason(error) != _reason(self._trouble):  # another one than was logged
            self._failed.discard(UPSTREAM)
        self._trouble = error

    def _tell(self, readiness: Readiness) -> None:
        """Logs what makes the guard not ready, and what no longer does, once each time that it changes."""
        if self.draining:  # a stop was told already
            return
        failed = {check.name: check.detail for check in readiness.checks if check.state == "failed"}
        for name in failed.keys() - self._failed:
            log.warning("not ready", check=name, detail=failed[name], mode=self.settings.mode)
        for name in self._failed - failed.keys():
            log.info("ready again", check=name)
        self._failed = set(failed)

    def _upstream_check(self) -> Check:
        if not self.checked:
            return Check(UPSTREAM, "failed", str(self._trouble or f"{self.settings.upstream.url} has not been checked yet"))
        trouble = f": {self._trouble}" if self._trouble is not None else ""
        if self.upstream.failures >= self.settings.upstream.ready_failures:
            return Check(UPSTREAM, "failed", f"{self.upstream.failures} failures in a row{trouble}")
        return Check(UPSTREAM, "ok", self.settings.upstream.url)

    def _audit_check(self, audit: AuditLog) -> Check:
        if audit.ready and not audit.dropped:
            return Check("audit log", "ok", str(self.settings.audit.path))
        detail = (
            f"{audit.dropped} records lost" if audit.ready else f"{self.settings.audit.path} takes no records, {audit.dropped} lost so far"
        )
        return Check("audit log", "failed" if audit.must_refuse else "warning", detail)

    def _canary_check(self) -> Check:
        if not self.settings.canary.enabled:
            return Check("canary queries", "ok", "switched off")
        if self.canary_failure or self.canary_shift is None:
            return Check("canary queries", "warning", self.canary_failure or "not asked yet")
        state = "ok" if self.canary_shift <= CANARY_TOLERANCE else "warning"
        return Check(
            "canary queries", state, f"answers moved by {self.canary_shift:.4f} since calibration (up to {CANARY_TOLERANCE} is rounding)"
        )


def _reason(error: SameguardError | None) -> str:
    return "" if error is None else getattr(error, "reason", type(error).__name__)


def _buckets(snapshot: Snapshot) -> tuple[float, ...]:
    return score_buckets(snapshot.calibration.scores, snapshot.calibration.stage_a_scores)


async def _open_store(settings: Settings) -> ReplayStore:
    chosen = settings.proofs
    if chosen.shared_store is None:
        return MemoryReplayStore(skew_seconds=chosen.skew_seconds)
    return await open_redis(chosen.shared_store, skew_seconds=chosen.skew_seconds)
