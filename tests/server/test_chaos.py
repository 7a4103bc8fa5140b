"""What goes wrong around a guard that runs: a model server that vanishes, hangs or lies about its health, a clock that jumps, an artefact that is damaged."""

import concurrent.futures
import gc
import json
import os
import shutil
import threading
import time

import pytest
from fault_proxy import Fault, faulty
from processes import GLYPHS, answer_of, asked, challenged, guard_process, paid_for, until
from rig import DEMO, Rig, demo_queries, rigged, served

from sameguard.protocol import read_problem
from sameguard.runtime import Scorer
from sameguard.server import service as service_module
from sameguard.server.demo_server import DemoServer

DIGITS = demo_queries()[0]
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def failing():
    """A guard before a model server that fails as it is told to."""
    with (
        served(DemoServer(DEMO / "victim.onnx")) as inner,
        faulty(inner) as (upstream, address),
        rigged(upstream_url=address, upstream={"timeout_seconds": 1.5}, cache={"seconds": 0}) as rig,
    ):
        yield upstream, rig


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.1)


def ready(rig: Rig) -> bool:
    return rig.run(rig.service.readiness()).ready


# ---------------------------------------------------------------------- the model server


def test_a_model_server_that_dies_is_a_502_until_it_is_back_and_then_all_is_well_by_itself(failing):
    upstream, rig = failing
    assert asked(rig.url, DIGITS[:1])[0] == 200
    upstream.down()
    assert {asked(rig.url, DIGITS[:1])[0] for _ in range(4)} == {502}
    assert not ready(rig)
    upstream.up()
    until(lambda: ready(rig), "the guard did not become ready again")
    assert asked(rig.url, DIGITS[:1])[0] == 200


def test_a_model_server_that_fails_and_says_that_it_is_healthy_is_not_believed(failing):
    upstream, rig = failing
    upstream.fault = b""
    assert {asked(rig.url, DIGITS[:1])[0] for _ in range(4)} == {502}
    looks = upstream.begun
    until(lambda: upstream.begun >= looks + 3, "the guard does not look after it")  # canary queries, asked again and again
    assert answer_of(rig.url + "/v2/models/digits/ready")[0] == 200
    assert not ready(rig)
    upstream.fault = Fault.NONE
    until(lambda: ready(rig), "the guard did not become ready again")


def test_who_paid_for_an_answer_that_is_late_passes_once_with_the_proof_that_he_is_given(failing):
    upstream, rig = failing
    query, proof = challenged(rig.url)
    upstream.fault = Fault.SILENT
    for _ in range(2):  # the second one pays with what the first got back
        status, body = asked(rig.url, query, proof)
        problem = read_problem(status, body)
        assert (status, problem.kind) == (504, "upstream-error")
        assert b"127.0.0.1" not in body
        assert problem.extensions["retry_proof"] != proof
        proof = problem.extensions["retry_proof"]
    upstream.fault = Fault.NONE
    assert asked(rig.url, query, proof)[0] == 200
    assert asked(rig.url, query, proof)[0] == 402
    until(lambda: ready(rig), "the guard did not become ready again")


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.DRIBBLE, b"HTTP/1.1 200 OK\r\n"])
def test_many_requests_to_a_model_server_that_hangs_leave_nothing_open(failing, fault):
    upstream, rig = failing
    upstream.fault = fault
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        statuses = [status for status, _ in pool.map(lambda _: asked(rig.url, DIGITS[:1]), range(40))]
    assert set(statuses) == {502 if isinstance(fault, bytes) else 504}
    upstream.fault = Fault.NONE
    until(lambda: ready(rig) and not rig.service._users, "requests are still under way")
    until(lambda: not upstream.open, "connections to the model server stay open")
    until(lambda: len(os.listdir("/proc/self/fd")) <= before + 3, "files stay open")
    assert asked(rig.url, DIGITS[:1])[0] == 200


# ---------------------------------------------------------------------- the clock


def test_a_clock_that_jumps_costs_a_challenge_and_nothing_else(monkeypatch):
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    with rigged() as rig:
        rig.service.store.clock = time.time
        query, proof = challenged(rig.url)
        offset[0] = 3600.0
        status, body = asked(rig.url, query, proof)
        assert (status, read_problem(status, body).kind) == (402, "proof-expired")
        later = paid_for(body)
        assert asked(rig.url, query, later)[0] == 200
        offset[0] = 0.0
        status, body = asked(rig.url, query, later)  # its end is an hour away now; it is spent all the same
        assert (status, read_problem(status, body).kind) == (402, "proof-replayed")
        assert asked(rig.url, query, paid_for(body))[0] == 200
        assert asked(rig.url, query, proof)[0] == 200  # never spent, and its time is not over any more
        assert asked(rig.url, query, proof)[0] == 402


# ---------------------------------------------------------------------- the artefact


@pytest.fixture(scope="module")
def reloadable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reload")
    artifact = folder / "artefact"
    shutil.copytree(DEMO / "artefact", artifact)
    with (
        served(DemoServer(DEMO / "victim.onnx")) as model,
        guard_process(model, folder, ARTIFACT=str(artifact), ADMIN__TOKEN=TOKEN, CACHE__SECONDS="0") as guard,
    ):
        yield artifact, guard


def reload(admin: str, token: str = TOKEN) -> tuple[int, dict]:
    status, body = answer_of(admin + "/reload", b"", {"Authorization": f"Bearer {token}"})
    return status, json.loads(body)


@pytest.mark.parametrize("name", ["auxiliary.onnx", "reconstruction.onnx", "manifest.json"])
def test_a_damaged_artefact_is_not_taken_and_the_old_one_goes_on(reloadable, name):
    artifact, guard = reloadable
    content = (artifact / name).read_bytes()
    query, proof = challenged(guard.url)
    (artifact / name).write_bytes(content[: len(content) // 2])
    try:
        status, told = reload(guard.admin)
    finally:
        (artifact / name).write_bytes(content)
    assert status == 409
    assert name in told["error"]
    assert told["artifact"] == Scorer(artifact).manifest["sha256"]
    assert guard.ready()
    assert asked(guard.url, query, proof)[0] == 200  # bound to the artefact that is still served


def test_an_artefact_that_vanished_is_not_missed_before_the_next_start(reloadable):
    artifact, guard = reloadable
    artifact.rename(artifact.with_name("elsewhere"))
    try:
        assert reload(guard.admin)[0] == 409
    finally:
        artifact.with_name("elsewhere").rename(artifact)
    assert guard.ready()


def test_a_new_artefact_is_taken_while_requests_are_in_flight_and_none_of_them_fails(reloadable):
    artifact, guard = reloadable
    query, proof = challenged(guard.url)
    ending, statuses = threading.Event(), []

    def client(number: int) -> None:
        while not ending.is_set():
            statuses.append(asked(guard.url, (DIGITS if number % 2 else GLYPHS)[number : number + 1])[0])

    digests = [Scorer(artifact).manifest["sha256"]]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            for rate in (0.1, 0.07, 0.06):
                scorer = Scorer(artifact)
                scorer.save(scorer.threshold(rate))
                status, told = reload(guard.admin)
                assert status == 200, told
                digests.append(told["artifact"])
                seen = len(statuses)
                until(lambda seen=seen: len(statuses) > seen + 10, "no answers")
        finally:
            ending.set()
        for future in clients:
            future.result(60)
    assert len(set(digests)) == 4
    assert set(statuses) <= {200, 402}
    status, body = asked(guard.url, query, proof)
    assert (status, read_problem(status, body).kind) == (402, "proof-mismatch")
    assert reload(guard.admin, "f" * 32)[0] == 401
