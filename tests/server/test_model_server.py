"""What the guard finds out about the model server: whether it is well, which model and dialect it has; what it logs of that, and when."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structlog
from processes import free_port
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged, served

from sameguard.errors import ConfigurationError
from sameguard.server import service as service_module
from sameguard.server.demo_server import DemoServer
from sameguard.server.edge import send_reply
from sameguard.server.replies import Reply

DIGITS = demo_queries()[0]
PLAIN = {"dialect": "plain-json"}


class Doors(DemoServer):
    """The demo's model behind /predict as plain JSON, and whatever else stands in `answers`: path -> status, or a document."""

    def __init__(self, *, batched: bool = True, **answers: Any) -> None:
        super().__init__(DEMO / "victim.onnx")
        self.batched = batched
        self.answers: dict[str, Any] = answers

    async def __call__(self, scope, receive, send) -> None:
        path = scope.get("path", "")
        if path == "/predict":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            rows = np.array(json.loads(body)["input"], np.float32).reshape(-1, 1, 8, 8)
            logits = self._session.run(["logits"], {"digit": rows})[0].tolist()
            found: Any = {"probs": logits if self.batched else logits[0]}
        elif path in self.answers:
            found = self.answers[path]
        else:
            found = 404
        reply = (
            Reply(found, {}, b"")
            if isinstance(found, int)
            else Reply(200, {"content-type": "application/json"}, json.dumps(found).encode())
        )
        await send_reply(send, reply, "stub")


def status_of(url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def asked_plainly(rig: Rig, rows: np.ndarray, batched: bool = True) -> int:
    document = {"input": rows.tolist() if batched else rows[0].tolist()}
    return status_of(rig.url + "/predict", json.dumps(document).encode(), {"Content-Type": "application/json"})


def asked(rig: Rig) -> int:
    headers, body = infer_message(DIGITS[:1])
    return status_of(rig.url + INFER, body, headers)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def detail_of(rig: Rig) -> str:
    return next(check.detail for check in rig.run(rig.service.readiness()).checks if check.name == "model server")


# ---------------------------------------------------------------------- plain JSON


@pytest.mark.parametrize("status", [404, 405, 501, 204])
def test_a_plain_json_server_without_a_health_door_is_ready_and_answers(status):
    with rigged(Doors(**{"/health": status}), upstream=PLAIN, policy={"kind": "reject"}) as rig:
        assert rig.run(rig.service.readiness()).ready
        assert rig.service.canary_shift < 1e-3
        assert 200 in [asked_plainly(rig, digit[None]) for digit in DIGITS[:3]]


def test_canary_queries_go_one_by_one_to_a_server_of_single_queries():
    plain = PLAIN | {"plain_json": {"batched": False}}
    with rigged(Doors(batched=False), upstream=plain, policy={"kind": "reject"}) as rig:
        assert rig.service.canary_shift < 1e-3
        assert 200 in [asked_plainly(rig, digit[None], batched=False) for digit in DIGITS[:3]]


@pytest.mark.parametrize(("changes", "status"), [({"mode": "shadow"}, 200), ({"rollout": 0.0}, 200), ({}, 503)])
def test_while_health_is_unknown_only_who_would_be_acted_upon_waits(changes, status):
    with rigged(Doors(**{"/health": 500}), upstream=PLAIN, policy={"kind": "reject"}, **changes) as rig:
        assert not rig.run(rig.service.readiness()).ready
        assert "must be ready, got status 500 from /health" in detail_of(rig)
        assert asked_plainly(rig, DIGITS[:1]) == status


# ---------------------------------------------------------------------- what is logged


def test_each_change_of_the_model_servers_state_is_logged_once(monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    app = Doors(**{"/health": 503})
    with structlog.testing.capture_logs() as events, rigged(app, upstream=PLAIN, policy={"kind": "reject"}) as rig:

        def told() -> list[tuple[str, str]]:
            return [(event["event"], event.get("check", "")) for event in events if event["event"] in ("not ready", "ready again")]

        until(lambda: rig.service._failed == {"model server"})
        time_of_looks = time.monotonic() + 0.3  # many looks
        until(lambda: time.monotonic() > time_of_looks)
        assert told() == [("not ready", "model server")]
        assert events[[event["event"] for event in events].index("not ready")]["log_level"] == "warning"
        app.answers["/health"] = 200
        until(lambda: len(told()) == 2)
        assert told()[-1] == ("ready again", "model server")
        assert rig.run(rig.service.readiness()).ready


def test_another_reason_for_the_same_state_is_logged_too(monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    app = DemoServer(DEMO / "victim.onnx")
    port = free_port()
    with (
        structlog.testing.capture_logs() as events,
        served(app) as url,
        rigged(upstream_url=f"http://127.0.0.1:{port}", mode="shadow") as rig,
    ):
        until(lambda: any("must be reachable" in event.get("detail", "") for event in events))
        host, other = url.rsplit(":", 1)
        rig.service.upstream.settings = rig.service.settings.upstream.model_copy(update={"url": f"{host}:{other}/nowhere"})
        until(lambda: any("got status 404" in event.get("detail", "") for event in events))
    assert len([event for event in events if event["event"] == "not ready"]) == 2


@pytest.mark.parametrize(("batched", "text"), [(True, "cannot be read"), (False, "with status 404")])
def test_canary_queries_that_come_to_nothing_are_logged_once(batched, text, monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    plain = PLAIN | {"ready_failures": 1} | ({} if batched else {"plain_json": {"infer": "/nowhere"}})
    app = Doors(batched=False, **{"/health": 200})
    with structlog.testing.capture_logs() as events, rigged(app, upstream=plain, mode="shadow") as rig:
        rig.run(rig.service._ask_canaries())
        rig.run(rig.service._ask_canaries())
        assert text in rig.service.canary_failure
        assert rig.run(rig.service.readiness()).ready == (not batched)
    assert [text in event["detail"] for event in events if event["event"] == "canary"] == [True]


# ---------------------------------------------------------------------- another dialect, another model


@pytest.mark.parametrize(
    ("dialect", "answers", "hint"),
    [
        ("oip", {"/v1/models/digits": {}}, "it answers as tf-serving servers do, check upstream.dialect, which is oip"),
        ("oip", {"/v2/health/ready": {}}, "it speaks oip and has no model 'digits' there, check upstream.model"),
        ("tf-serving", {"/v2/health/ready": {}}, "it answers as oip servers do, check upstream.dialect, which is tf-serving"),
        ("oip", {}, "check upstream.dialect and upstream.model"),
    ],
)
def test_a_model_server_of_another_dialect_is_guessed(dialect, answers, hint):
    with rigged(Doors(**answers), upstream={"dialect": dialect}, mode="shadow") as rig:
        assert not rig.service.checked
        assert hint in detail_of(rig)


def test_plain_json_before_a_server_of_another_dialect_is_warned_of():
    with structlog.testing.capture_logs() as events, rigged(Doors(**{"/v2/health/ready": {}}), upstream=PLAIN, mode="shadow"):
        pass
    assert [event["hint"] for event in events if "hint" in event] == [
        "it answers as oip servers do, check upstream.dialect, which is plain-json"
    ]


class Changing(DemoServer):
    """Another model, or no server, or without binary tensors, from one moment to the next."""

    state = "well"

    async def __call__(self, scope, receive, send) -> None:
        path = scope.get("path", "")
        if self.state == "gone":
            await send_reply(send, Reply(503, {}, b""), "stub")
        elif self.state == "another" and path == "/v2/models/digits":
            await send_reply(send, Reply(200, {}, json.dumps({"name": "letters", "platform": "x"}).encode()), "stub")
        elif self.state == "json" and path == "/v2":
            await send_reply(send, Reply(200, {}, json.dumps({"name": "demo", "extensions": []}).encode()), "stub")
        else:
            await super().__call__(scope, receive, send)


def test_a_reload_before_another_model_is_refused_and_the_old_artefact_stays():
    app = Changing(DEMO / "victim.onnx")
    with rigged(app, mode="shadow") as rig:
        before = rig.service.snapshot
        app.state = "another"
        with pytest.raises(ConfigurationError, match="upstream model must be 'digits', got 'letters'"):
            rig.run(rig.service.reload())
        assert rig.service.snapshot is before
        app.state = "well"
        rig.run(rig.service.reload())
        assert rig.service.snapshot is not before
        assert asked(rig) == 200


def test_a_reload_while_the_metadata_cannot_be_had_is_checked_later(monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    with served(Changing(DEMO / "victim.onnx")) as url, rigged(upstream_url=url, mode="shadow") as rig:
        before, url_before = rig.service.snapshot, rig.service.upstream.settings
        rig.service.upstream.settings = url_before.model_copy(update={"url": f"http://127.0.0.1:{free_port()}"})
        rig.run(rig.service.reload())
        assert rig.service.snapshot is not before
        assert not rig.service.checked
        rig.service.upstream.settings = url_before
        until(lambda: rig.service.checked)
        until(lambda: rig.run(rig.service.readiness()).ready)


def test_binary_tensors_are_found_out_anew_and_cost_no_new_artefact(monkeypatch):
    app = Changing(DEMO / "victim.onnx")
    with rigged(app, mode="shadow") as rig:
        first = rig.service.snapshot
        assert first.model.binary_tensors
        app.state = "json"
        rig.run(rig.service._check_upstream())
        second = rig.service.snapshot
        assert not second.model.binary_tensors
        assert second.queue is first.queue
        assert asked(rig) == 200
        rig.run(rig.service.reload())
        assert asked(rig) == 200
