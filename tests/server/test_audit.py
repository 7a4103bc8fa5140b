"""The decision log: every record is a line, no line is ever torn, and a disk that refuses costs records or, if wanted, answers."""

import errno
import json
import math
import os
import resource
import stat
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
import structlog
from admin_guards import NOON, decision_of
from hypothesis import given
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError, DataNotFoundError
from sameguard.server import audit, audit_file
from sameguard.server.audit import AuditLog
from sameguard.server.audit_file import AuditFile, rotated_files
from sameguard.server.audit_reading import read_audit, summarise
from sameguard.server.decision import Observer
from sameguard.server.settings import AuditSettings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.jsonl"


class Disk:
    """os.write as it is, until `full`: then it writes `half` of what it is given and refuses the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.half = True
        self.refused = threading.Event()
        self._write = os.write
        monkeypatch.setattr(audit_file.os, "write", self)
        monkeypatch.setattr(audit, "RETRY_SECONDS", 0.005)

    def __call__(self, descriptor: int, content: bytes) -> int:
        if not self.full:
            return self._write(descriptor, content)
        self.refused.set()
        if self.half and len(content) > 1:
            return self._write(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def written(log: AuditLog) -> None:
    """Waits until everything that was observed is on disk."""
    wait_until(lambda: log._waiting.empty() and not log._lines and not log.down)


def wait_until(true) -> None:
    for _ in range(4000):
        if true():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen in 20 s")


def log_of(path: Path, *, on_drop=None, **settings) -> AuditLog:
    return AuditLog(AuditSettings(path=path, **settings), on_drop=on_drop)


def test_a_record_tells_everything_but_the_query(path):
    log = log_of(path)
    assert isinstance(log, Observer)
    log.observe(
        decision_of(outcome="refuse", verdict="refuse", status=403, score=math.nan, enforced=True, seconds={"parse": 0.00051234567}), None
    )
    log.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "time": "2026-01-01T12:00:00.000+00:00", "unix": NOON, "request_id": "r-1", "principal": "a1b2c3d4e5f60718", "model": "digits",
        "artifact": "f" * 64, "digest": "d" * 64, "rows": 1, "stage_a_score": 0.25, "score": None, "level": 0, "work": 0, "outcome": "refuse",
        "verdict": "refuse", "enforced": True, "status": 403, "reason": "", "requests": 1, "proof": "", "cached": False, "degraded": "",
        "seconds": {"parse": 0.000512},
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_closing_writes_what_still_waits(path):
    log = log_of(path)
    for number in range(300):
        log.observe(decision_of(request_id=f"r-{number}"), None)
    log.close()
    assert [record["request_id"] for record in read_audit(path)] == [f"r-{number}" for number in range(300)]
    log.observe(decision_of(), None)
    assert log.dropped == 1  # nobody would write it any more


def test_files_rotate_by_size_and_the_newest_are_kept(path):
    log = log_of(path, rotate_bytes=2000, keep=3)
    for number in range(60):
        log.observe(decision_of(request_id=f"r-{number}"), None)
    log.close()
    rotated = rotated_files(path)
    assert len(rotated) == 3
    assert all(file.stat().st_size <= 2000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in [path, *rotated])
    assert int(rotated[-1].suffix[1:]) > 10  # a name is never used twice
    numbers = [int(record["request_id"][2:]) for record in read_audit(path)]
    assert numbers == list(range(numbers[0], 60))  # in order, without a gap


def test_a_record_larger_than_a_file_stands_alone(path):
    file = AuditFile(path, rotate_bytes=10, keep=5)
    file.append(deque([b"a" * 50 + b"\n", b"b\n", b"c\n"]))
    file.close()
    assert [other.read_bytes() for other in (*rotated_files(path), path)] == [b"a" * 50 + b"\n", b"b\nc\n"]


def test_a_record_that_a_crash_cut_off_is_ended_by_the_next_start(path):
    log = log_of(path)
    log.observe(decision_of(request_id="r-1"), None)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"time":"2026-01-01T12:00:01","unix":17672')
    log = log_of(path)
    log.observe(decision_of(request_id="r-2"), None)
    log.close()
    records = read_audit(path)
    assert [record["request_id"] for record in records] == ["r-1", "r-2"]
    assert records.damaged == 1


def test_kill_9_leaves_whole_lines_and_the_next_start_goes_on(path):
    code = f"""
import os
from admin_guards import decision_of
from sameguard.server.audit import AuditLog
from sameguard.server.settings import AuditSettings
log = AuditLog(AuditSettings(path={str(path)!r}))
for number in range(50):
    log.observe(decision_of(request_id=f"r-{{number}}"), None)
while not log._waiting.empty() or log._lines:
    pass
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False).returncode == -9
    log = log_of(path)  # its lock went with it
    log.observe(decision_of(request_id="r-50"), None)
    log.close()
    records = read_audit(path)
    assert len(list(records)) == 51
    assert records.damaged == 0


@pytest.mark.parametrize("half", [True, False])
def test_a_full_disk_tears_no_line_and_nothing_is_lost_while_the_queue_has_room(path, monkeypatch, half):
    disk = Disk(monkeypatch)
    disk.half = half
    with structlog.testing.capture_logs() as events:
        log = log_of(path)
        log.observe(decision_of(request_id="before"), None)
        written(log)
        disk.full = True
        for number in range(20):
            log.observe(decision_of(request_id=f"during-{number}"), None)
        wait_until(lambda: log.down)
        assert not log.must_refuse  # block is off
        size = path.stat().st_size
        wait_until(lambda: path.read_bytes().endswith(b"\n"))  # between two attempts: each takes back what it wrote in part
        disk.full = False
        written(log)
        log.observe(decision_of(request_id="after"), None)
        log.close()
    assert path.stat().st_size > size
    records = read_audit(path)
    assert [record["request_id"] for record in records] == ["before", *[f"during-{number}" for number in range(20)], "after"]
    assert (records.damaged, log.dropped) == (0, 0)
    assert [event["event"] for event in events][-2:] == ["audit log cannot be written", "audit log is written again"]  # one line an outage


def test_what_the_queue_has_no_room_for_is_dropped_and_counted(path, monkeypatch):
    disk, losses = Disk(monkeypatch), []
    disk.full = True
    log = log_of(path, waiting=5, on_drop=losses.append)
    log.observe(decision_of(request_id="held"), None)
    wait_until(lambda: log.down and log._waiting.empty())
    for number in range(8):
        log.observe(decision_of(request_id=f"r-{number}"), None)
    assert log.dropped == 3
    disk.full = False
    log.close()
    assert [record["request_id"] for record in read_audit(path)] == ["held", "r-0", "r-1", "r-2", "r-3", "r-4"]
    assert losses == [1, 1, 1]


def test_a_process_that_ends_while_the_disk_is_full_counts_what_it_loses(path, monkeypatch):
    disk = Disk(monkeypatch)
    log = log_of(path)
    disk.full = True
    for _ in range(7):
        log.observe(decision_of(), None)
    wait_until(lambda: log.down)
    log.close()
    assert log.dropped == 7
    assert path.read_bytes() == b""


def test_with_block_no_answer_may_be_given_while_its_record_might_be_lost(path, monkeypatch):
    disk = Disk(monkeypatch)
    log = log_of(path, block=True, waiting=10)
    assert log.ready
    assert not log.must_refuse
    disk.full = True
    log.observe(decision_of(request_id="in-flight"), None)
    wait_until(lambda: log.down)
    assert log.must_refuse
    log.observe(decision_of(request_id="refused", outcome="failed", reason="audit-down"), None)  # leaves the room to answers
    log.observe(decision_of(request_id="in-flight-too"), None)
    disk.full = False
    written(log)
    assert log.ready
    log.close()
    assert [record["request_id"] for record in read_audit(path)] == ["in-flight", "in-flight-too"]
    assert log.dropped == 1


def test_with_block_a_queue_that_is_half_full_stops_answers_too(path, monkeypatch):
    log = log_of(path, block=True, waiting=10)
    monkeypatch.setattr(log._waiting, "qsize", lambda: 6)
    assert log.must_refuse
    monkeypatch.undo()
    log.close()


def test_a_real_limit_of_the_system_is_survived(path, monkeypatch):
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.005)
    log = log_of(path)
    log.observe(decision_of(request_id="r-0"), None)
    written(log)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))  # room for a part of the next record
        log.observe(decision_of(request_id="r-1"), None)
        wait_until(lambda: log.down)
        content = path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1
    log.close()
    assert [record["request_id"] for record in read_audit(path)] == ["r-0", "r-1"]


def test_where_nothing_can_be_cut_off_the_next_write_ends_the_line(path, monkeypatch):
    disk = Disk(monkeypatch)
    log = log_of(path)

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(audit_file.os, "ftruncate", refuse)
    disk.full = True
    log.observe(decision_of(request_id="r-1"), None)
    wait_until(lambda: log.down)
    disk.full = False
    log.close()
    records = read_audit(path)
    assert [record["request_id"] for record in records] == ["r-1"]
    assert records.damaged >= 1


def test_a_file_that_others_move_away_is_begun_again(path):
    log = log_of(path)
    log.observe(decision_of(request_id="r-1"), None)
    written(log)
    path.rename(path.with_name("taken.jsonl"))
    log.observe(decision_of(request_id="r-2"), None)
    written(log)
    path.unlink()
    log.observe(decision_of(request_id="r-3"), None)
    log.close()
    assert [record["request_id"] for record in read_audit(path)] == ["r-3"]


def test_one_process_writes_one_log(path):
    log = log_of(path)
    with pytest.raises(
        ConfigurationError, match=r"audit\.path .* must be written by one guard, and another one holds it: give each a file"
    ):
        log_of(path)
    log.close()
    log_of(path).close()


def test_a_place_that_is_no_file_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match=r"must be a file that only this process writes, got: .*directory"):
        log_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="is no regular file"):
        log_of(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match=r"audit\.path must name a file, got none"):
        AuditLog(AuditSettings())


@given(st.text(max_size=400) | st.just("half a pair \ud800"))
def test_whatever_a_name_holds_a_record_is_one_line_of_json(text):
    line = audit._line(decision_of(request_id=text, model=text, reason=text))
    assert line.count(b"\n") == 1
    record = json.loads(line)
    if len(text) <= 256 and text.isprintable():
        assert record["model"] == text


def test_a_record_that_cannot_be_written_does_not_end_the_log(path):
    log = log_of(path)
    with structlog.testing.capture_logs() as events:
        log.observe(decision_of(time=1e30, request_id="odd"), None)
        log.observe(decision_of(request_id="plain"), None)
        log.close()
    assert [record["request_id"] for record in read_audit(path)] == ["plain"]
    assert log.dropped == 1
    assert events[0]["request_id"] == "odd"


# ---------------------------------------------------------------------- reading


@pytest.fixture
def filled(path: Path) -> Path:
    log = log_of(path, rotate_bytes=1500)
    for number in range(10):
        verdict = ("allow", "refuse")[number % 2]
        log.observe(
            decision_of(
                time=NOON + number, request_id=f"r-{number}", verdict=verdict, outcome=verdict, score=float(number), digest=f"{number:02x}" * 32,
                principal="aa11" if number < 5 else "bb22", rows=2,
            ),
            None,
        )  # fmt: skip
    log.close()
    return path


def ids(path: Path, **conditions) -> list[int]:
    return [int(record["request_id"][2:]) for record in read_audit(path, **conditions)]


def test_every_condition_selects(filled):
    assert len(rotated_files(filled)) >= 2
    assert ids(filled) == list(range(10))
    assert ids(filled, since=NOON + 3, until=NOON + 6) == [3, 4, 5, 6]
    assert ids(filled, outcome="refuse") == ids(filled, verdict="refuse") == [1, 3, 5, 7, 9]
    assert ids(filled, principal="bb") == [5, 6, 7, 8, 9]
    assert ids(filled, digest="0303") == [3]
    assert ids(filled, request_id="r-4", principal="aa11", verdict="allow") == [4]
    assert ids(filled, principal="cc") == []


def test_damaged_lines_are_skipped_and_counted(filled):
    with filled.open("ab") as file:
        file.write(b'\x00\x00\x00\n[1,2]\n{"unix":"soon"}\n{"unix":1.0}\n{"unix":')
    records = read_audit(filled)
    assert len(list(records)) == 11  # the one that holds nothing but a time is a record of another version
    assert records.damaged == 4
    assert len(list(records)) == 11  # a second pass reads anew
    assert records.damaged == 4


def test_a_rotation_while_somebody_reads_loses_and_doubles_nothing(filled):
    records = iter(read_audit(filled))
    first = next(records)
    filled.rename(filled.with_name(f"{filled.name}.000099"))
    filled.write_bytes(b"")
    rotated_files(filled)[0].unlink()  # the one that is being read
    assert [first["request_id"], *[record["request_id"] for record in records]] == [f"r-{number}" for number in range(10)]


def test_other_files_beside_the_log_are_none_of_it(filled):
    filled.with_name("audit.jsonl.bak").write_text("x\n")
    filled.with_name("audit.jsonl.000001.gz").write_text("x\n")
    filled.with_name("other.jsonl.000001").write_text("x\n")
    records = read_audit(filled)
    assert len(list(records)) == 10
    assert records.damaged == 0


def test_conditions_that_nothing_can_meet_are_refused(filled, tmp_path):
    with pytest.raises(ConfigurationError, match=r"outcome must be one of allow, .*, got 'refused'"):
        read_audit(filled, outcome="refused")
    with pytest.raises(ConfigurationError, match=r"verdict must be one of allow, .*, got 'denied'"):
        read_audit(filled, verdict="denied")
    with pytest.raises(ConfigurationError, match="since must lie before until"):
        read_audit(filled, since=2.0, until=1.0)
    with pytest.raises(DataNotFoundError, match=r"audit log .* must be a file that a guard wrote"):
        read_audit(tmp_path / "nowhere" / "audit.jsonl")


def test_a_summary_counts_and_its_interval_is_exact(filled):
    found = summarise(read_audit(filled))
    assert (found.requests, found.rows, found.judged, found.flagged) == (10, 20, 10, 5)
    assert found.outcomes == found.verdicts == {"allow": 5, "refuse": 5}
    assert found.interval == pytest.approx((0.1871, 0.8129), abs=1e-4)  # Clopper and Pearson's for 5 of 10
    assert found.scores["score"]["0.5"] == 4.5
    assert found.first == "2026-01-01T12:00:00.000+00:00"


def test_a_summary_of_nothing_is_empty():
    found = summarise([])
    assert (found.requests, found.flagged_share, found.interval, found.scores) == (0, None, None, {"stage_a_score": {}, "score": {}})
