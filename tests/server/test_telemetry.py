"""Metrics and logs: every decision is counted once, under bounded labels, and no score leaves the process at INFO."""

import io
import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import structlog
from admin_guards import BENIGN, decision_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sameguard.errors import ConfigurationError
from sameguard.server.decision import Observer
from sameguard.server.telemetry import DecisionLog, Telemetry, configure_logging, score_buckets

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana" / "sameguard.json"


def telemetry_of(depth: float = 0.0) -> Telemetry:
    return Telemetry(["digits"], score_buckets(BENIGN), lambda: depth)


def samples(telemetry: Telemetry) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names ...) -> value."""
    content, _ = telemetry.render()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


def test_a_decision_is_counted_by_what_the_client_got_and_by_what_the_policy_said():
    telemetry = telemetry_of()
    telemetry.observe(decision_of(), None)
    telemetry.observe(decision_of(verdict="refuse", score=9.0, rows=4), None)  # shadow
    telemetry.observe(decision_of(outcome="challenge", verdict="challenge", level=2, issued=True), None)
    telemetry.observe(decision_of(outcome="challenge", verdict="challenge", level=2), None)  # the same challenge again
    telemetry.observe(decision_of(verdict="", proof="valid", score=math.nan, stage_a_score=math.nan), None)
    found = samples(telemetry)
    assert found["guard_requests_total", "allow", "digits"] == 3
    assert found["guard_requests_total", "challenge", "digits"] == 2
    assert found["guard_verdicts_total", "digits", "refuse"] == 1
    assert ("guard_verdicts_total", "digits", "") not in found
    assert found["guard_rows_total",] == 8
    assert found["guard_challenges_issued_total", "2"] == 1
    assert found["guard_proofs_total", "valid"] == 1
    assert found["guard_proofs_total", "replayed"] == 0  # there from the start, so that rate() sees the first


def test_what_is_never_scored_is_counted_apart():
    telemetry = telemetry_of()
    for status, failure in ((200, ""), (204, ""), (502, "upstream-unreachable")):
        telemetry.passed(status, failure)
    found = samples(telemetry)
    assert found["guard_passed_total", "2xx"] == 2
    assert found["guard_passed_total", "5xx"] == 1
    assert found["guard_failures_total", "upstream-unreachable"] == 1
    assert not [labels for labels in found if labels[0] == "guard_requests_total"]


def test_scores_are_those_of_single_queries_that_were_not_judged_before():
    telemetry = telemetry_of()
    telemetry.observe(decision_of(score=0.5), None)
    telemetry.observe(decision_of(score=0.5, rows=3), None)  # the worst of three says nothing of single queries
    telemetry.observe(decision_of(rows=3, row_scores=(0.1, 0.2, math.nan)), None)
    telemetry.observe(decision_of(score=0.5, cached=True), None)
    found = samples(telemetry)
    assert found["guard_score_count", "whole"] == 3
    assert found["guard_score_sum", "whole"] == pytest.approx(0.8)
    assert found["guard_score_count", "stage_a"] == 1


def test_stages_upstream_queue_canary_and_artefact_are_told():
    telemetry = telemetry_of(depth=7.0)
    telemetry.observe(decision_of(seconds={"stage_a": 0.03, "upstream": 0.2, "tea": 9.0}), None)
    assert math.isnan(samples(telemetry)["guard_canary_shift",])
    telemetry.canary(0.02)
    telemetry.artifact("a" * 64, "onnxruntime")
    telemetry.artifact("b" * 64, "openvino")
    found = samples(telemetry)
    assert found["guard_stage_seconds_count", "stage_a"] == 1
    assert found["guard_upstream_seconds_sum",] == pytest.approx(0.2)
    assert not any("tea" in labels for labels in found)
    assert found["guard_queue_depth",] == 7
    assert found["guard_canary_shift",] == 0.02
    assert [labels for labels in found if labels[0] == "guard_artifact_info"] == [("guard_artifact_info", "b" * 64, "openvino")]


def test_another_artefact_has_score_buckets_of_its_own():
    telemetry = telemetry_of()
    telemetry.artifact("a" * 64, "onnxruntime", score_buckets(BENIGN))
    telemetry.observe(decision_of(), None)
    telemetry.artifact("a" * 64, "onnxruntime", score_buckets(BENIGN))
    assert samples(telemetry)["guard_score_count", "whole"] == 1  # the same one again
    telemetry.artifact("b" * 64, "onnxruntime", (100.0, 200.0))
    found = samples(telemetry)
    assert found["guard_score_count", "whole"] == 0
    assert ("guard_score_bucket", "100.0", "whole") in found


def test_failures_denials_and_degradations_are_counted_by_reason():
    telemetry = telemetry_of()
    telemetry.observe(decision_of(outcome="failed", verdict="", reason="queue-full"), None)
    telemetry.observe(decision_of(outcome="denied", verdict="", reason="quota"), None)
    telemetry.observe(decision_of(degraded="scorer-failed"), None)
    telemetry.degraded("audit", 3)
    found = samples(telemetry)
    assert found["guard_failures_total", "queue-full"] == 1
    assert found["guard_denied_total", "quota"] == 1
    assert found["guard_degraded_total", "scorer-failed"] == 1
    assert found["guard_degraded_total", "audit"] == 3


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))  # a hundred texts take a busy machine a while
@given(st.lists(st.text(max_size=50), min_size=100, max_size=100, unique=True))
def test_whatever_a_client_writes_the_number_of_series_stays_bounded(texts):
    telemetry = telemetry_of()
    for text in texts:
        strange = dict.fromkeys(("model", "outcome", "verdict", "proof", "degraded", "principal", "digest", "request_id"), text)
        telemetry.observe(decision_of(**strange), None)
        telemetry.observe(decision_of(outcome="failed", reason=text), None)
    found = samples(telemetry)
    assert len([labels for labels in found if labels[0] == "guard_requests_total"]) <= 16
    assert len([labels for labels in found if labels[0] == "guard_degraded_total"]) <= 65
    assert len([labels for labels in found if labels[0] == "guard_failures_total"]) <= 65


def test_reasons_stop_growing_at_a_bound():
    telemetry = telemetry_of()
    for number in range(100):
        telemetry.degraded(f"reason-{number}")
    found = samples(telemetry)
    assert found["guard_degraded_total", "other"] == 36
    assert len([labels for labels in found if labels[0] == "guard_degraded_total"]) == 65


def test_several_guards_in_one_process_count_for_themselves():
    first, second = telemetry_of(), telemetry_of()
    assert isinstance(first, Observer)
    first.observe(decision_of(), None)
    assert ("guard_requests_total", "allow", "digits") not in samples(second)


def test_prometheus_gets_the_format_that_it_asks_for():
    content, content_type = telemetry_of().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")
    assert telemetry_of().render()[1].startswith("text/plain")


def test_buckets_rise_and_reach_beyond_the_benign_scores():
    edges = score_buckets(BENIGN, np.array([]), BENIGN / 2)
    assert list(edges) == sorted(set(edges))
    assert edges[-1] > 2 * BENIGN.max()
    assert float(np.quantile(BENIGN, 0.95)) in edges
    assert len(score_buckets(np.array([]))) > 1
    assert len(score_buckets(np.zeros(5))) > 1  # all alike


def test_the_grafana_dashboard_asks_for_our_metrics_alone():
    telemetry = telemetry_of()
    telemetry.artifact("a", "b")
    telemetry.observe(decision_of(outcome="failed", issued=True, degraded="x", proof="valid"), None)
    telemetry.observe(decision_of(outcome="denied"), None)
    ours = {labels[0] for labels in samples(telemetry)}
    dashboard = json.loads(GRAFANA.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for expression in expressions for name in re.findall(r"\b(?:guard|process)_[a-z_]+", expression)}
    assert asked <= ours
    needed = {"guard_requests_total", "guard_score_bucket", "guard_stage_seconds_bucket", "guard_degraded_total", "guard_proofs_total"}
    assert needed <= asked
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


# ---------------------------------------------------------------------- logs


def logged(act, **options) -> list[str]:
    stream = io.StringIO()
    logs = configure_logging(stream=stream, **options)
    try:
        act()
    finally:
        logs.close()
    return stream.getvalue().splitlines()


def test_json_events_carry_the_request_id_and_no_score_at_info():
    def act() -> None:
        observer = DecisionLog()
        observer.observe(decision_of(outcome="refuse", verdict="refuse", status=403, enforced=True, request_id="r-7", score=3.25), None)
        observer.observe(decision_of(outcome="failed", verdict="", reason="queue-full", request_id="r-8"), None)
        observer.observe(decision_of(), None)
        structlog.get_logger("elsewhere").info("judged", request_id="r-9", score=3.25, threshold=1.5)

    lines = logged(act)
    first, second, third = map(json.loads, lines)
    assert (first["event"], first["level"], first["request_id"], first["outcome"]) == ("decision", "info", "r-7", "refuse")
    assert (second["level"], second["reason"]) == ("warning", "queue-full")
    assert third["request_id"] == "r-9"
    assert "3.25" not in "".join(lines)
    assert "1.5" not in "".join(lines)


def test_scores_are_logged_at_debug():
    lines = logged(lambda: DecisionLog().observe(decision_of(score=3.25), None), level="DEBUG")
    assert [json.loads(line)["score"] for line in lines] == [3.25]


def test_the_logging_modules_events_and_tracebacks_are_json_too():
    def act() -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("some.library").exception("went wrong")

    (line,) = logged(act)
    event = json.loads(line)
    assert (event["event"], event["level"], event["logger"]) == ("went wrong", "error", "some.library")
    assert "ValueError: broken" in event["exception"]


def test_a_bound_request_id_reaches_every_event():
    def act() -> None:
        with structlog.contextvars.bound_contextvars(request_id="r-1"):
            structlog.get_logger("flow").warning("slow")

    assert json.loads(logged(act)[0])["request_id"] == "r-1"


def test_console_format_is_for_people():
    (line,) = logged(lambda: structlog.get_logger("x").info("started", port=8080), format="console")
    assert "started" in line
    assert "port=8080" in line
    assert not line.startswith("{")


def test_a_log_that_nobody_reads_drops_events_and_delays_nobody(monkeypatch):
    class Stuck(io.StringIO):
        """Lets nothing through until it is closed."""

    monkeypatch.setattr("sameguard.server.telemetry.WAITING_EVENTS", 5)
    logs = configure_logging(stream=Stuck())
    logs._listener.stop()  # the writer is stuck
    try:
        for number in range(9):
            structlog.get_logger("x").info("event", number=number)
        assert logs.dropped == 4
    finally:
        logs._listener.start()
        logs.close()


def test_closing_puts_the_root_logger_back():
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    logs = configure_logging(stream=io.StringIO())
    logs.close()
    logs.close()
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before


def test_other_formats_and_levels_are_refused():
    with pytest.raises(ConfigurationError, match="log must be json or console, got 'xml'"):
        configure_logging("xml")
    with pytest.raises(ConfigurationError, match="log level must be DEBUG"):
        configure_logging(level="LOUD")
