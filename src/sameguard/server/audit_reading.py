"""Reading the decision log: every record of the rotated files and the current one, in order, and what they add up to."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from sameguard.calibration import clopper_pearson
from sameguard.errors import ConfigurationError, DataNotFoundError
from sameguard.server.audit_file import rotated_files
from sameguard.server.decision import ACTIONS, OUTCOMES

Record = dict[str, Any]
QUANTILES = (0.05, 0.5, 0.9, 0.95, 0.99)
MILD = ("", "allow")


def read_audit(
    path: Path,
    *,
    since: float | None = None,
    until: float | None = None,
    outcome: str | None = None,
    verdict: str | None = None,
    principal: str | None = None,
    digest: str | None = None,
    request_id: str | None = None,
) -> "AuditRecords":
    """The records that meet every condition. since, until: Unix seconds, of a request's arrival. principal, digest, request_id: how they begin.

    Raises ConfigurationError for a condition that no record can meet, DataNotFoundError where there is no log.
    """
    if outcome is not None and outcome not in OUTCOMES:
        raise ConfigurationError(f"outcome must be one of {', '.join(OUTCOMES)}, got {outcome!r}.")
    if verdict is not None and verdict not in ACTIONS:
        raise ConfigurationError(f"verdict must be one of {', '.join(ACTIONS)}, got {verdict!r}.")
    if since is not None and until is not None and not since < until:
        raise ConfigurationError(f"since must lie before until, got {since:.0f} and {until:.0f} (Unix seconds).")
    if not path.parent.is_dir() or not (path.is_file() or rotated_files(path)):
        raise DataNotFoundError(f"audit log {path} must be a file that a guard wrote (audit.path), got none.")
    equal = {name: value for name, value in (("outcome", outcome), ("verdict", verdict)) if value is not None}
    begins = {name: value for name, value in (("principal", principal), ("digest", digest), ("request_id", request_id)) if value}
    return AuditRecords(path, (-math.inf if since is None else since, math.inf if until is None else until), equal, begins)


class AuditRecords:
    """Iterates over matching records; reads anew each time. damaged: lines of the last pass that were no record."""

    def __init__(self, path: Path, between: tuple[float, float], equal: Mapping[str, str], begins: Mapping[str, str]) -> None:
        self.path = path
        self.damaged = 0
        self._between = between
        self._equal = equal
        self._begins = begins

    def __iter__(self) -> Iterator[Record]:
        self.damaged = 0
        for line in _lines(self.path):
            record = _record(line)
            if record is None:
                self.damaged += 1
            elif self._matches(record):
                yield record

    def _matches(self, record: Record) -> bool:
        earliest, latest = self._between
        return (
            earliest <= record["unix"] <= latest
            and all(record[name] == value for name, value in self._equal.items())
            and all(str(record[name]).startswith(value) for name, value in self._begins.items())
        )


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of all files, oldest first. The current file is opened before the others are listed: a rotation meanwhile loses nothing."""
    current = _opened(path)
    try:
        for rotated in rotated_files(path):
            file = _opened(rotated)
            if file is not None:
                with file:
                    if current is None or not os.path.sameopenfile(file.fileno(), current.fileno()):
                        yield from file
        if current is not None:
            yield from current
    finally:
        if current is not None:
            current.close()


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:  # rotated or deleted a moment ago
        return None


def _record(line: bytes) -> Record | None:
    """The record of a line; None where it is none. Fields that an older version did not write are empty."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("unix"), int | float):
        return None
    return {
        "time": "",
        "principal": "",
        "digest": "",
        "request_id": "",
        "outcome": "",
        "verdict": "",
        "rows": 0,
        "requests": 1,
        "score": None,
        "stage_a_score": None,
    } | record


@dataclass(frozen=True)
class AuditSummary:
    """requests, rows: of all records, of which one may stand for many that were denied.

    judged: requests that the policy was asked about, of which `flagged` were not simply allowed.
    flagged_share, interval: of the judged, with 95 % confidence; None where none was. scores: part -> quantile -> score of the most suspicious row.
    """

    requests: int
    rows: int
    first: str | None
    last: str | None
    outcomes: dict[str, int]
    verdicts: dict[str, int]
    judged: int
    flagged: int
    flagged_share: float | None
    interval: tuple[float, float] | None
    scores: dict[str, dict[str, float]]


def summarise(records: Iterable[Record]) -> AuditSummary:
    """What the records add up to, in one pass; the scores are kept, eight bytes each."""
    outcomes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    scores = {"stage_a_score": array("d"), "score": array("d")}
    rows, first, last = 0, None, None
    for record in records:
        outcomes[record["outcome"]] += record["requests"]
        verdicts[record["verdict"]] += 1
        rows += record["rows"]
        first, last = first or record["time"], record["time"]
        for part, kept in scores.items():
            if record[part] is not None:
                kept.append(record[part])
    judged = sum(count for verdict, count in verdicts.items() if verdict != "")
    flagged = sum(count for verdict, count in verdicts.items() if verdict not in MILD)
    return AuditSummary(
        requests=outcomes.total(),
        rows=rows,
        first=first,
        last=last,
        outcomes={outcome: outcomes[outcome] for outcome in OUTCOMES if outcome in outcomes},
        verdicts={verdict: verdicts[verdict] for verdict in ACTIONS if verdict in verdicts},
        judged=judged,
        flagged=flagged,
        flagged_share=flagged / judged if judged else None,
        interval=clopper_pearson(flagged, judged) if judged else None,
        scores={part: _quantiles(kept) for part, kept in scores.items()},
    )


def _quantiles(scores: array) -> dict[str, float]:
    if not len(scores):
        return {}
    return {f"{quantile:g}": float(value) for quantile, value in zip(QUANTILES, np.quantile(np.asarray(scores), QUANTILES), strict=True)}
