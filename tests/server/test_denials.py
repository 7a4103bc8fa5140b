"""Requests that are not understood: they fill no log, and every one of them is counted in it."""

import json
import urllib.error
import urllib.request

import pytest
from admin_guards import decision_of
from rig import INFER, Noted, rigged

from sameguard.server.audit_reading import read_audit, summarise
from sameguard.server.denials import MOST_LINES, Denials


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Noted:
    return Noted()


def denied(principal: str = "a", reason: str = "input-invalid", rows: int = 0):
    return decision_of(outcome="denied", verdict="", status=400, principal=principal, reason=reason, rows=rows)


def told(log: Noted) -> list[tuple[str, str, int]]:
    return [(decision.principal, decision.reason, decision.requests) for decision in log.decisions]


def test_the_first_of_a_minute_have_lines_and_the_rest_has_one_for_each_reason(log, clock):
    denials = Denials([log], 3, clock=clock)
    lines = [denials.observe(denied(reason=reason, rows=2), None) for reason in ("not-found", "quota") for _ in range(50)]
    assert lines == [True] * 3 + [False] * 97
    clock.now = 59.9
    denials.flush()
    assert len(log.decisions) == 3
    clock.now = 60.0
    denials.flush()
    assert told(log)[3:] == [("a", "not-found", 47), ("a", "quota", 50)]
    assert [decision.rows for decision in log.decisions[3:]] == [94, 100]
    assert denials.observe(denied(), None)  # a new minute


def test_one_principals_noise_takes_no_line_from_another(log, clock):
    denials = Denials([log], 2, clock=clock)
    assert [denials.observe(denied(name), None) for name in "aaaab"] == [True, True, False, False, True]


def test_what_was_judged_always_has_its_line(log, clock):
    denials = Denials([log], 1, clock=clock)
    for outcome in ("allow", "challenge", "refuse", "coarsen"):
        assert all(denials.observe(decision_of(outcome=outcome, reason=""), None) for _ in range(5))
    assert len(log.decisions) == 20


@pytest.mark.parametrize(("outcome", "reason"), [("failed", "queue-full"), ("challenge", "proof-invalid"), ("challenge", "proof-replayed")])
def test_what_fails_and_proofs_that_do_not_count_are_counted_together(outcome, reason, log, clock):
    denials = Denials([log], 2, clock=clock)
    lines = [denials.observe(decision_of(outcome=outcome, reason=reason), None) for _ in range(30)]
    assert lines == [True] * 2 + [False] * 28
    denials.flush(now=True)
    assert [(decision.reason, decision.requests) for decision in log.decisions] == [(reason, 1)] * 2 + [(reason, 28)]


def test_who_has_many_names_has_no_more_lines_and_takes_no_memory(log, clock):
    denials = Denials([log], 5, clock=clock)
    for number in range(MOST_LINES + 500):
        denials.observe(denied(str(number)), None)
    denials.flush(now=True)
    assert len(log.decisions) == MOST_LINES + 1
    assert told(log)[-1] == ("", "input-invalid", 500)
    assert sum(requests for _, _, requests in told(log)) == MOST_LINES + 500


def test_what_was_counted_is_told_with_the_next_request_of_another_minute(log, clock):
    denials = Denials([log], 1, clock=clock)
    for _ in range(3):
        denials.observe(denied(), None)
    clock.now = 61.0
    denials.observe(decision_of(), None)
    assert [requests for _, _, requests in told(log)] == [1, 2, 1]


def status_of(url: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_flood_of_nonsense_is_a_few_lines_that_name_its_sender_and_its_number(tmp_path):
    path = tmp_path / "audit.jsonl"
    with rigged(mode="shadow", audit={"path": path, "denied_a_minute": 3}, identity={"header": "x-api-key"}) as rig:
        noise = {"X-Api-Key": "noise"}
        statuses = [status_of(rig.url + INFER, b"{}", noise) for _ in range(10)]
        statuses += [status_of(f"{rig.url}/nowhere", b"{}", noise) for _ in range(10)]
        statuses.append(status_of(f"{rig.url}{INFER}?a=1", b"{}", {"X-Api-Key": "other"}))
        statuses.append(status_of(rig.url + INFER, b"{}", {"X-Api-Key": "b" * 17_000}))  # refused before its headers are read
    names = {decision.principal for decision in rig.noted.decisions}
    metrics = rig.service.telemetry.render()[0].decode()
    assert statuses == [400] * 10 + [404] * 10 + [400, 431]
    assert len(names) == 3
    assert "" not in names
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["requests"] for record in records] == [1] * 5 + [7, 10]
    assert {record["principal"] for record in records} == names
    assert summarise(read_audit(path)).outcomes == {"denied": 22}
    assert 'guard_requests_total{action="denied",model="digits"} 22.0' in metrics
    assert 'guard_denied_total{reason="not-found"} 10.0' in metrics
