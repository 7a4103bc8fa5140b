"""The admin port: who may ask what, and that every answer carries the headers that keep it private."""

import json
import math

import numpy as np
import pytest
import structlog
from admin_guards import BENIGN, NOON, TOKEN, FakeGuard, Ready, ask_app, decision_of, live_through, settings_of

from sameguard.errors import ConfigurationError
from sameguard.server.admin import AdminView, create_admin
from sameguard.server.pages import charts

BEARER = {"authorization": f"Bearer {TOKEN}"}
PATHS = ("/", "/metrics", "/healthz", "/readyz", "/static/dashboard.css", "/static/dashboard.js", "/static/icon.svg", "/reload", "/nowhere")


def admin_of(guard: FakeGuard | None = None, **settings):
    chosen = settings_of(**settings)
    return create_admin(guard or FakeGuard(chosen), chosen)


def page_of(guard: FakeGuard, path: str = "/", **settings) -> str:
    answer = ask_app(admin_of(guard, **settings), path)
    assert answer.status == 200, answer.body
    return answer.body.decode()


def test_a_fake_guard_is_an_admin_view():
    assert isinstance(FakeGuard(settings_of()), AdminView)


# ---------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8081", "LOCALHOST:9000", "[::1]:8081", "guard.internal", "guard.internal:80", "exact:81"]
)
def test_its_own_names_are_answered(host):
    assert ask_app(admin_of(hosts=("guard.internal", "exact:81")), headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost:8081@evil", "exact", "exact:82", "", "localhost:x", "[::1", "127.0.0.1:8081:1"],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/static/dashboard.js"])
def test_other_names_are_refused(host, path):
    answer = ask_app(admin_of(hosts=("exact:81",)), path, headers={"host": host})
    assert answer.status == 421
    assert b"admin.hosts" in answer.body


def test_two_host_headers_are_refused():
    assert ask_app(admin_of(), headers=[("host", "127.0.0.1"), ("host", "evil.example")]).status == 421


def test_who_has_the_token_may_come_by_any_name():
    assert ask_app(admin_of(token=TOKEN), "/metrics", headers={"host": "10.1.2.3:8081", **BEARER}).status == 200


def test_probes_are_answered_by_any_name_and_say_no_more_than_they_must():
    admin = admin_of()
    foreign = {"host": "10.1.2.3:8081"}
    assert ask_app(admin, "/healthz", headers=foreign).status == 200
    answer = ask_app(admin, "/readyz", headers=foreign)
    assert (answer.status, json.loads(answer.body)) == (200, {"ready": True})


def test_reload_without_a_configured_token_says_how_to_set_one():
    guard = FakeGuard(settings_of())
    answer = ask_app(admin_of(guard), "/reload", method="POST")
    assert answer.status == 403
    assert b"SAMEGUARD_ADMIN__TOKEN" in answer.body
    assert guard.reloads == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN}x"},
        [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")],
        {"cookie": f"token={TOKEN}"},
    ],
)
def test_reload_without_the_token_is_refused(headers):
    guard = FakeGuard(settings_of(token=TOKEN))
    answer = ask_app(admin_of(guard, token=TOKEN), "/reload", method="POST", headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert guard.reloads == 0


def test_beyond_loopback_everything_but_the_probes_needs_the_token():
    admin = admin_of(host="0.0.0.0", token=TOKEN, hosts=("guard.internal",))
    for path in PATHS:
        method = "POST" if path == "/reload" else "GET"
        without = ask_app(admin, path, method=method, headers={"host": "guard.internal"}).status
        assert without == (200 if path in ("/healthz", "/readyz") else 401), path
        assert ask_app(admin, path, method=method, headers={"host": "guard.internal", **BEARER}).status == (
            404 if path == "/nowhere" else 200
        )
    assert json.loads(ask_app(admin, "/readyz", headers={"host": "guard.internal"}).body) == {"ready": True}
    assert "checks" in json.loads(ask_app(admin, "/readyz", headers={"host": "guard.internal", **BEARER}).body)


def test_the_address_that_it_listens_on_is_one_of_its_names():
    admin = admin_of(host="10.0.0.5", token=TOKEN)
    assert ask_app(admin, headers={"host": "10.0.0.5:8081"}).status == 401  # known, but without the token
    assert ask_app(admin, headers={"host": "0.0.0.0:8081"}).status == 421


def test_an_address_beyond_loopback_without_a_token_and_a_short_token_are_refused():
    with pytest.raises(ConfigurationError, match=r"admin\.host 0\.0\.0\.0 is not loopback and needs admin\.token"):
        admin_of(host="0.0.0.0")
    with pytest.raises(ConfigurationError, match=r"admin\.token must have at least 16 characters"):
        admin_of(token="")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/reload", "/healthz"])
def test_only_get_and_post_are_answered(method, path):
    assert ask_app(admin_of(token=TOKEN), path, method=method, headers=BEARER).status == 405


@pytest.mark.parametrize("path", ["/reload", "/reload/"])
def test_a_reload_cannot_be_asked_for_by_get(path):
    guard = FakeGuard(settings_of(token=TOKEN))
    assert ask_app(admin_of(guard, token=TOKEN), path, headers=BEARER).status != 200
    assert guard.reloads == 0


@pytest.mark.parametrize("headers", [{}, {"host": "evil.example"}, BEARER])
@pytest.mark.parametrize("path", PATHS)
def test_every_answer_carries_the_headers(path, headers):
    answer = ask_app(admin_of(token=TOKEN), path, headers=headers)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
    )
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/static/dashboard.html", "/static/../admin.py", "/static/%2e%2e/admin.py", "/static/", "/manifest.json", "/reconstruction.onnx"],
)
def test_no_other_file_is_served(path):
    assert ask_app(admin_of(), path).status in (307, 404)


# ---------------------------------------------------------------------- what it answers


def test_metrics_are_prometheus_text():
    guard = FakeGuard(settings_of())
    guard.observe(decision_of())
    answer = ask_app(admin_of(guard), "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'guard_requests_total{action="allow",model="digits"} 1.0' in answer.body


def test_readiness_is_503_with_what_failed_and_liveness_stays():
    guard = FakeGuard(settings_of())
    guard.ready = Ready(
        [("artifact", "ok", "fine"), ("canary queries", "warning", "moved"), ("model server", "failed", "3 failures in a row")]
    )
    admin = admin_of(guard)
    answer = ask_app(admin, "/readyz")
    assert answer.status == 503
    told = json.loads(answer.body)
    assert told["checks"][2] == {"name": "model server", "state": "failed", "detail": "3 failures in a row"}
    assert told["warnings"] == ["canary queries: moved"]
    assert ask_app(admin, "/healthz").status == 200


def test_a_reload_tells_the_new_artefact():
    answer = ask_app(admin_of(token=TOKEN), "/reload", method="POST", headers=BEARER)
    assert (answer.status, json.loads(answer.body)) == (200, {"artifact": "e" * 64})


def test_a_reload_that_fails_says_why_and_what_is_still_served():
    guard = FakeGuard(settings_of(token=TOKEN))
    guard.fresh = ""
    answer = ask_app(admin_of(guard, token=TOKEN), "/reload", method="POST", headers=BEARER)
    assert answer.status == 409
    assert json.loads(answer.body)["artifact"] == "f" * 64
    assert b"must match its checksums" in answer.body


def test_a_reload_that_ends_in_whatever_nobody_foresaw_is_no_crash():
    guard = FakeGuard(settings_of(token=TOKEN))

    async def broken() -> str:
        raise IndexError("a secret path")

    guard.reload = broken
    with structlog.testing.capture_logs() as events:
        answer = ask_app(admin_of(guard, token=TOKEN), "/reload", method="POST", headers=BEARER)
    assert answer.status == 409
    assert json.loads(answer.body)["artifact"] == "f" * 64
    assert b"got IndexError: the guard's log has more" in answer.body
    assert b"secret path" not in answer.body
    assert [event["exc_info"] for event in events] == [True]


# ---------------------------------------------------------------------- the page


def test_an_empty_page_says_that_nothing_has_happened():
    page = page_of(FakeGuard(settings_of()))
    assert page.count("No requests yet.") == 3
    assert "No challenges yet." in page
    assert "<svg" not in page


def test_the_page_tells_numbers_charts_and_the_last_flagged_requests():
    guard = FakeGuard(settings_of())
    live_through(guard)
    page = page_of(guard)
    counts = guard.history.view(60).counts
    assert f"{counts.total():,}" in page
    assert page.count("<svg") == 5
    assert "refused (403)" in page
    assert "<img" not in page  # not opted in
    assert "admin.thumbnails" in page


def test_shadow_mode_says_what_would_have_been_refused():
    guard = FakeGuard(settings_of(), mode="shadow")
    guard.observe(decision_of())
    guard.observe(decision_of(verdict="refuse", request_id="r-2"))
    guard.observe(decision_of(verdict="challenge", level=2, request_id="r-3"))
    page = page_of(guard)
    assert "Shadow mode: every request is answered." in page
    assert "1 refused, 1 challenged" in page
    assert "answered; would have been refused" in page
    assert "answered; would have been challenged, level 2" in page
    assert "shadow mode issues none" in page


def test_shadow_mode_says_that_all_is_well_too():
    guard = FakeGuard(settings_of(), mode="shadow")
    guard.observe(decision_of())
    assert "would have answered everything as it is" in page_of(guard)


def test_principals_outside_the_roll_out_are_told_of():
    guard = FakeGuard(settings_of(), rollout=0.25)
    guard.observe(decision_of(verdict="refuse"))
    page = page_of(guard)
    assert "for 25 % of principals" in page
    assert "Principals outside the roll-out were answered; they would have had 1 refused." in page


def test_whatever_a_client_wrote_is_text():
    guard = FakeGuard(settings_of())
    script = "<script>alert(1)</script>\"'"
    guard.observe(
        decision_of(outcome="refuse", verdict="refuse", status=403, request_id=script, principal=script, model=script, reason=script)
    )
    guard.ready = Ready([("model server", "failed", script), ("x", "warning", script)])
    page = page_of(guard)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_pictures_are_shown_when_opted_in():
    settings = settings_of(thumbnails=True)
    guard = FakeGuard(settings)
    live_through(guard, minutes=5)
    guard.observe(decision_of(outcome="refuse", verdict="refuse", status=403))  # without evidence
    page = page_of(guard, thumbnails=True)
    assert page.count('src="data:image/png;base64,') == 3 * (len(guard.history.view().recent) - 1)
    assert "none</span>" in page


def test_six_hours_have_six_minutes_a_bar_and_nothing_else_is_asked_for():
    guard = FakeGuard(settings_of())
    live_through(guard)
    assert "per 6 minutes" in page_of(guard, "/?hours=6")
    assert ask_app(admin_of(guard), "/?hours=7").status == 400


def test_a_threshold_that_stage_a_leaves_nothing_for_is_not_drawn():
    guard = FakeGuard(settings_of())
    live_through(guard)
    plain = guard.description()
    guard.description = lambda: plain | {"threshold": math.inf}
    page = page_of(guard)
    assert "threshold none" in page
    assert "inf" not in page.split("What is served")[0]


# ---------------------------------------------------------------------- charts


def test_bars_are_stacked_to_scale():
    chart = charts.stacked_bars({"allow": [10, 0], "refuse": [10, 0]}, ["12:00", "12:01"], description="Two.")
    lower, upper = chart.split("<rect")[1:]
    assert 'height="92.0"' in lower  # half of 184 pixels: 10 of an axis up to 20
    assert 'height="92.0"' in upper
    assert "<title>12:00: 10 allow, 10 refuse</title>" in chart
    assert chart.count("<g>") == 1  # nothing where nothing was


def test_lines_break_where_values_are_missing():
    values = np.array([1.0, 2.0, np.nan, 3.0, 4.0, np.nan, 5.0])
    chart = charts.lines([charts.Line("x", "middle", values)], [], [str(place) for place in range(7)], description="One.")
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 5


def test_a_histogram_puts_what_lies_beyond_into_its_outer_bars():
    level = charts.Level("threshold", "threshold", 2.0)
    chart = charts.histogram(np.array([0.5, 1e9, -1e9, 1e9]), BENIGN, level, description="H.")
    assert "50.0% of recent queries" in chart
    assert "25.0% of recent queries" in chart


@pytest.mark.parametrize(("recent", "benign"), [([1.0], []), ([0.0, 0.0], [0.0]), ([5.0], [5.0, 5.0])])
def test_histograms_of_little_are_drawn(recent, benign):
    assert "<svg" in charts.histogram(np.array(recent), np.array(benign), None, description="H.")


def test_numbers_are_short():
    assert [charts.seconds(value) for value in (2.5, 0.035, 0.00123)] == ["2.5 s", "35 ms", "1.2 ms"]
    assert [charts.short(value) for value in (0.0, 1234.5, 0.00012)] == ["0", "1.23e+03", "1.2e-04"]
    assert charts._ticks(0.0, 10.0, 4) == [0.0, 5.0, 10.0]


def test_what_stage_a_settled_is_named_beside_the_scores_that_lack_it():
    guard = FakeGuard(settings_of())
    for _ in range(9):
        guard.observe(decision_of())
        guard.observe(decision_of(verdict="refuse", outcome="refuse", status=403, stage_a_score=5.0, score=math.nan))
    page = page_of(guard)
    assert "9 of 18 judged" in page
    assert "0.0% of recent scores lie above the threshold. Stage A alone flagged 50.0% of the judged requests (9):" in page


def test_where_stage_a_settled_nothing_nothing_is_said_of_it():
    guard = FakeGuard(settings_of())
    guard.observe(decision_of(verdict="refuse", outcome="refuse", status=403, score=9.0))
    guard.observe(decision_of(verdict="", outcome="failed", status=503, score=math.nan))
    assert "Stage A alone" not in page_of(guard)


def test_drift_needs_a_few_scores():
    guard = FakeGuard(settings_of())
    guard.clock.now = NOON
    guard.observe(decision_of())
    assert "a few are needed before quantiles mean anything" in page_of(guard)
