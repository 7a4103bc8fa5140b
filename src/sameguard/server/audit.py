"""The decision log: one JSON object a line for every inference request, refusals included, and no query's content.

Only of requests that were denied may one line stand for many (`requests`, see `server.denials`). A thread of its own writes what a bounded
queue hands it, so that a slow disk delays no answer. While the disk refuses, the thread holds what it has and tries again; what the queue
has no room for is dropped and counted, or, with `block`, the flow stops answering: see `must_refuse`. The record of an answer is on disk
soon after the answer, not before. The file is `server.audit_file`'s, reading it `server.audit_reading`'s.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from sameguard.errors import ConfigurationError
from sameguard.server.audit_file import AuditFile
from sameguard.server.decision import Decision, Evidence
from sameguard.server.settings import AuditSettings

RETRY_SECONDS = 1.0  # between attempts while the disk refuses
MOST_AT_ONCE = 512  # records of one write
TEXT_CHARACTERS = 256  # of one field: whatever a name was made of, a record stays a line of a few hundred bytes
NUMBER_DIGITS = 6
log = structlog.get_logger("sameguard.audit")


class AuditLog:
    """An Observer that appends decisions to `settings.path`; call `close` to write what still waits.

    dropped: records lost so far. on_drop: is told of losses, from any thread. One process writes one log.
    Raises ConfigurationError where the file cannot be opened now.
    """

    def __init__(self, settings: AuditSettings, *, on_drop: Callable[[int], None] | None = None) -> None:
        if settings.path is None:
            raise ConfigurationError("audit.path must name a file, got none: give one, or leave the audit log out.")
        self.settings = settings
        self.dropped = 0
        self.down = False
        self._on_drop = on_drop
        self._counting = threading.Lock()
        self._waiting: queue.Queue[Decision] = queue.Queue(settings.waiting)
        self._lines: deque[bytes] = deque()  # of the thread alone: what it has taken and not written
        self._closing = threading.Event()
        try:
            self._file = AuditFile(settings.path, settings.rotate_bytes, settings.keep)
        except BlockingIOError as error:  # its lock
            raise ConfigurationError(
                f"audit.path {settings.path} must be written by one guard, and another one holds it: give each a file of its own, or stop the other."
            ) from error
        except OSError as error:
            raise ConfigurationError(f"audit.path {settings.path} must be a file that only this process writes, got: {error}.") from error
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """The disk takes records, and half of the queue is free for requests that are under way."""
        return not self.down and self._waiting.qsize() <= self.settings.waiting // 2

    @property
    def must_refuse(self) -> bool:
        """With `block`: an answer given now might leave no record, so none may be given."""
        return self.settings.block and not self.ready

    def observe(self, decision: Decision, evidence: Evidence | None) -> None:
        """Queues the record, or drops it."""
        unanswered = decision.outcome in ("failed", "denied")
        if self._closing.is_set() or (unanswered and self.must_refuse):  # the room that is left belongs to answers that are under way
            self._drop(1)
            return
        try:
            self._waiting.put_nowait(decision)
        except queue.Full:
            self._drop(1)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Writes what waits, once more and no longer, and closes the file."""
        self._closing.set()
        self._thread.join(timeout_seconds)

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while not (self._closing.is_set() and self._waiting.empty()):
            self._take()
            while self._lines and not self._written():
                if self._closing.wait(RETRY_SECONDS):
                    self._give_up()
        self._file.close()

    def _take(self) -> None:
        """Waits for records and makes them lines; at most a moment, so that closing is noticed."""
        try:
            decision = self._waiting.get(timeout=0.1)
            while True:
                self._add(decision)
                if len(self._lines) >= MOST_AT_ONCE:
                    return
                decision = self._waiting.get_nowait()
        except queue.Empty:
            return

    def _add(self, decision: Decision) -> None:
        try:
            self._lines.append(_line(decision))
        except (TypeError, ValueError, OverflowError, OSError) as error:  # a bug of ours must not end the log
            self._drop(1)
            log.error("audit record cannot be written", request_id=str(decision.request_id), error=f"{type(error).__name__}: {error}")

    def _written(self) -> bool:
        try:
            self._file.append(self._lines, durably=self.settings.block)
        except OSError as error:
            if not self.down:
                self.down = True
                log.error("audit log cannot be written", path=str(self.settings.path), error=str(error), block=self.settings.block)
            return False
        if self.down:
            self.down = False
            log.warning("audit log is written again", path=str(self.settings.path), dropped=self.dropped)
        return True

    def _give_up(self) -> None:
        """The process ends while the disk refuses."""
        if not self._written():
            lost = len(self._lines) + self._waiting.qsize()
            self._lines.clear()
            while not self._waiting.empty():
                self._waiting.get_nowait()
            self._drop(lost)
            log.error("audit log ends with records lost", path=str(self.settings.path), lost=lost, dropped=self.dropped)

    def _drop(self, count: int) -> None:
        with self._counting:
            self.dropped += count
        if self._on_drop is not None:
            self._on_drop(count)


def _line(decision: Decision) -> bytes:
    """The record's JSON and a newline; a number that is none, or infinite, is null."""
    record: dict[str, Any] = {
        "time": datetime.fromtimestamp(decision.time, UTC).isoformat(timespec="milliseconds"),
        "unix": decision.time,
        "request_id": decision.request_id,
        "principal": decision.principal,
        "model": decision.model,
        "artifact": decision.artifact,
        "digest": decision.digest,
        "rows": decision.rows,
        "stage_a_score": float(decision.stage_a_score),
        "score": float(decision.score),
        "level": decision.level,
        "work": decision.work,
        "outcome": decision.outcome,
        "verdict": decision.verdict,
        "enforced": decision.enforced,
        "status": decision.status,
        "reason": decision.reason,
        "requests": decision.requests,
        "proof": decision.proof,
        "cached": decision.cached,
        "degraded": decision.degraded,
        "seconds": {stage: round(seconds, NUMBER_DIGITS) for stage, seconds in decision.seconds.items()},
    }
    texts = {name: _text(value) for name, value in record.items() if isinstance(value, str)}
    return orjson.dumps(record | texts, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _text(value: str) -> str:
    """A short text that JSON can hold: half a surrogate pair becomes its escape."""
    return value[:TEXT_CHARACTERS].encode("utf-8", "backslashreplace").decode()
