"""Metrics and logs of one guard: Prometheus numbers in a registry of their own, and structured events with the request's id.

Labels come from short lists: never a principal, a digest or anything that a client wrote. A score is a number of a histogram, or a field
of a DEBUG event; at INFO and above no event carries one. Events are formatted and written by a thread, so that a slow log delays no answer.
"""

import io
import logging
import math
import queue
import re
import sys
from collections.abc import Callable, Collection, Sequence
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from sameguard.errors import ConfigurationError
from sameguard.server.decision import ACTIONS, OUTCOMES, STAGES, Decision, Evidence

OTHER = "other"
MOST_REASONS = 64  # of one metric; reasons are our own words, but nothing here may grow without end
REASON = re.compile(r"[a-z0-9_-]{1,40}")
PROOF_RESULTS = ("valid", "expired", "invalid", "mismatch", "replayed")
PARTS = ("stage_a", "whole")
BENIGN_QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99)
STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
WAITING_EVENTS = 10_000
ONLY_AT_DEBUG = ("score", "scores", "stage_a_score", "row_scores", "threshold")


def score_buckets(*benign_scores: np.ndarray) -> tuple[float, ...]:
    """Bucket edges at benign quantiles of each part's calibration scores, and beyond them where suspicious queries lie."""
    edges: set[float] = set()
    for scores in benign_scores:
        if len(scores):
            quantiles = np.quantile(scores, BENIGN_QUANTILES)
            largest, reach = float(scores.max()), float(max(quantiles[-1] - quantiles[3], 1e-9))
            edges |= {float(edge) for edge in quantiles} | {largest, *(largest + reach * factor for factor in (0.5, 1.0, 2.0, 4.0, 8.0))}
    return tuple(sorted(edges)) or STAGE_BUCKETS


class Telemetry:
    """The guard's metrics; an Observer. Counting is cheap and safe from any thread.

    models: names that may stand in a label; every other is counted as `other`. score_buckets: see the function. queue_depth: rows that wait.
    """

    def __init__(self, models: Collection[str], score_buckets: Sequence[float], queue_depth: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._models = frozenset(models)
        self._reasons: dict[str, set[str]] = {}
        self._artifact: tuple[str, str] | None = None
        own = {"registry": self.registry}
        self._requests = Counter("guard_requests_total", "Inference requests, by what the client got.", ["model", "action"], **own)
        self._verdicts = Counter(
            "guard_verdicts_total", "Judged requests, by what the policy said, acted upon or not.", ["model", "verdict"], **own
        )
        self._rows = Counter("guard_rows_total", "Queries in inference requests that were understood.", **own)
        self._issued = Counter("guard_challenges_issued_total", "New challenges, by level.", ["level"], **own)
        self._proofs = Counter("guard_proofs_total", "Proofs of work that were sent, by what they were worth.", ["result"], **own)
        self._degraded = Counter(
            "guard_degraded_total", "Answers and records that went without something they should have.", ["reason"], **own
        )
        self._failures = Counter(
            "guard_failures_total", "Requests without an answer for a reason that is not the query's.", ["reason"], **own
        )
        self._denied = Counter("guard_denied_total", "Requests that were not understood, too large or too frequent.", ["reason"], **own)
        self._passed = Counter("guard_passed_total", "Metadata and health requests, unscored, by status.", ["status"], **own)
        self._stages = Histogram("guard_stage_seconds", "Time by stage, waiting included.", ["stage"], buckets=STAGE_BUCKETS, **own)
        self._upstream = Histogram("guard_upstream_seconds", "Time until the model server's answer.", buckets=STAGE_BUCKETS, **own)
        self._canary = Gauge("guard_canary_shift", "How far the model server's answers to canary queries moved, total variation.", **own)
        self._info = Gauge("guard_artifact_info", "1 for the artefact in service.", ["artifact", "engine"], **own)
        Gauge("guard_queue_depth", "Rows that wait for the scorer.", **own).set_function(queue_depth)
        ProcessCollector(registry=self.registry)
        self._scores = self._score_histogram(score_buckets)
        for result in PROOF_RESULTS:  # a series that appears with its first event hides that event from rate()
            self._proofs.labels(result)
        self._stage_of = {stage: self._stages.labels(stage) for stage in STAGES}
        self._canary.set(math.nan)

    def observe(self, decision: Decision, evidence: Evidence | None) -> None:
        """Counts one request."""
        model = decision.model if decision.model in self._models else OTHER
        self._requests.labels(model, decision.outcome if decision.outcome in OUTCOMES else OTHER).inc()
        if decision.verdict:
            self._verdicts.labels(model, decision.verdict if decision.verdict in ACTIONS else OTHER).inc()
        self._rows.inc(decision.rows)
        if decision.issued:
            self._issued.labels(str(decision.level)).inc()
        if decision.proof:
            self._proofs.labels(decision.proof if decision.proof in PROOF_RESULTS else OTHER).inc()
        if decision.degraded:
            self.degraded(decision.degraded)
        if decision.outcome in ("failed", "denied"):
            metric = self._failures if decision.outcome == "failed" else self._denied
            metric.labels(self._reason(decision.outcome, decision.reason)).inc()
        for part in PARTS:
            scores = decision.spread(part)
            if scores:
                histogram = self._scores.labels(part)  # a lookup with a lock: once a request, not once a row
                for score in scores:
                    histogram.observe(score)
        for stage, seconds in decision.seconds.items():
            if stage in self._stage_of:
                self._stage_of[stage].observe(seconds)
            if stage == "upstream":
                self._upstream.observe(seconds)

    def passed(self, status: int, failure: str = "") -> None:
        """Counts a request that is never scored. failure: why it got no answer."""
        self._passed.labels(f"{status // 100}xx").inc()
        if failure:
            self.failed(failure)

    def failed(self, reason: str) -> None:
        """Counts what got no answer before it was a request."""
        self._failures.labels(self._reason("failed", reason)).inc()

    def degraded(self, reason: str, count: int = 1) -> None:
        """Counts what went without something it should have: an unscored answer, a lost record."""
        self._degraded.labels(self._reason("degraded", reason)).inc(count)

    def canary(self, shift: float) -> None:
        """The model server's answers to the canary queries have moved by so much since calibration."""
        self._canary.set(shift)

    def artifact(self, digest: str, engine: str, score_buckets: Sequence[float] | None = None) -> None:
        """Another artefact is in service. With other score_buckets the score histogram begins again: old counts mean nothing there."""
        self._info.clear()
        self._info.labels(digest, engine).set(1)
        if score_buckets is not None and self._artifact not in (None, (digest, engine)):
            self.registry.unregister(self._scores)
            self._scores = self._score_histogram(score_buckets)
        self._artifact = (digest, engine)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics and their content type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _score_histogram(self, buckets: Sequence[float]) -> Histogram:
        made = Histogram("guard_score", "Scores of single queries, by part.", ["part"], buckets=buckets, registry=self.registry)
        for part in PARTS:
            made.labels(part)
        return made

    def _reason(self, kind: str, reason: str) -> str:
        known = self._reasons.setdefault(kind, set())
        if reason not in known and (len(known) >= MOST_REASONS or REASON.fullmatch(reason) is None):
            return OTHER
        known.add(reason)
        return reason


# ---------------------------------------------------------------------- logs


class DecisionLog:
    """An Observer that logs what did not simply pass: failures as warnings, the rest at INFO; everything, with its scores, at DEBUG."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("sameguard.decision")
        self._level = logging.getLogger("sameguard.decision")

    def observe(self, decision: Decision, evidence: Evidence | None) -> None:
        if decision.outcome == "failed" or decision.degraded:
            self._log.warning("decision", **_told(decision))
        elif decision.outcome != "allow" or decision.verdict not in ("", "allow"):
            self._log.info("decision", **_told(decision))
        if self._level.isEnabledFor(logging.DEBUG):  # asked first: most requests end here, and structlog takes its time to say no
            self._log.debug("scores", request_id=decision.request_id, stage_a_score=decision.stage_a_score, score=decision.score)


def _told(decision: Decision) -> dict[str, Any]:
    return {
        "request_id": decision.request_id, "principal": decision.principal, "model": decision.model, "rows": decision.rows,
        "outcome": decision.outcome, "verdict": decision.verdict, "enforced": decision.enforced, "status": decision.status,
        "requests": decision.requests, "reason": decision.reason, "proof": decision.proof, "degraded": decision.degraded,
        "seconds": round(sum(decision.seconds.values()), 6),
    }  # fmt: skip


class Logging:
    """What `configure_logging` set up; `close` writes what still waits and puts the root logger back. dropped: events that found no room."""

    def __init__(self, handler: "_BoundedQueueHandler", listener: QueueListener, before: tuple[int, list[logging.Handler]]) -> None:
        self._handler = handler
        self._listener = listener
        self._before = before
        listener.start()

    @property
    def dropped(self) -> int:
        return self._handler.dropped

    def close(self) -> None:
        root = logging.getLogger()
        if self._handler in root.handlers:
            root.setLevel(self._before[0])
            root.handlers[:] = self._before[1]
            self._listener.stop()
            structlog.reset_defaults()


class _BoundedQueueHandler(QueueHandler):
    """Hands records on as they are, and drops what finds no room: whoever logs must not wait for whoever reads the log."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def configure_logging(format: str = "json", *, level: str = "INFO", stream: io.TextIOBase | None = None) -> Logging:
    """One event a line on `stream` (stderr), from structlog and from the logging module alike: `json`, or `console` for people.

    Replaces the root logger's handlers until `close`. Raises ConfigurationError for another format or level.
    """
    if format not in ("json", "console"):
        raise ConfigurationError(f"log must be json or console, got {format!r}.")
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigurationError(f"log level must be DEBUG, INFO, WARNING or ERROR, got {level!r}.")
    stream = sys.stderr if stream is None else stream
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True), _without_scores,
        structlog.processors.format_exc_info,  # here, where the exception is: lines are written in another thread
    ]  # fmt: skip
    render: Any = structlog.processors.JSONRenderer()
    if format == "console":  # its own tracebacks would show every local variable: queries, scores, keys
        render = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    written = logging.StreamHandler(stream)
    written.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING_EVENTS)
    handler, root = _BoundedQueueHandler(waiting), logging.getLogger()
    before = (root.level, list(root.handlers))
    root.handlers[:] = [handler]
    root.setLevel(level)
    return Logging(handler, QueueListener(waiting, written), before)


def _without_scores(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Whatever a caller puts into an event, a score leaves the process at DEBUG alone."""
    if method != "debug":
        for name in ONLY_AT_DEBUG:
            event.pop(name, None)
    return event
