"""The doctor against real servers on loopback: open doors are found and named, closed ones are not, and nothing is inferred."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from blur_artifact import write_blur_artifact
from sameguard.server.doctor import Finding, run_doctor
from sameguard.server.doctor.doors import Reach, _Door, _judged
from sameguard.server.doctor.probing import Reply, is_loopback, machine_addresses
from sameguard.server.settings import Settings, UpstreamSettings

FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # empty SETTINGS
METADATA = {
    "name": "blur",
    "versions": ["1"],
    "platform": "onnx",
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}],
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
}


class Stub:
    """A model server with these doors; remembers what it was asked."""

    def __init__(self, answers: Mapping[str, Any], default: int = 404) -> None:
        self.answers = {"/v2/health/ready": None, "/v2/models/blur": METADATA, **answers}
        self.default = default
        self.asked: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        if request.path not in self.answers:
            return web.Response(status=self.default)
        answer = self.answers[request.path]
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)


@contextlib.asynccontextmanager
async def served(stub: Stub, host: str = "127.0.0.1") -> AsyncIterator[int]:
    runner = web.ServerRunner(web.Server(stub.handle))
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[int]:
    """A port that answers anything with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(9):
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.check: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def examined(stub: Stub, **changes: Any) -> dict[str, Finding]:
    """Findings about a stub alone."""

    async def play() -> list[Finding]:
        async with served(stub) as port:
            upstream = UpstreamSettings(url=f"http://127.0.0.1:{port}", model="blur")
            return await run_doctor(upstream, **({"ports": {}, "own_addresses": []} | changes))

    return by_check(asyncio.run(play()))


# ---------------------------------------------------------------------- doors


def test_a_server_with_nothing_but_the_guarded_door_is_well():
    stub = Stub({"/v2/models": {"models": ["blur"]}})
    found = examined(stub)
    assert {finding.verdict for name, finding in found.items() if name.startswith("door")} == {"ok"}
    assert (found["upstream"].verdict, found["other models"].verdict) == ("ok", "ok")


def test_open_doors_are_found_and_no_inference_is_asked_for():
    doors = {
        "/v2/repository/index": 405,
        "/v2/systemsharedmemory/status": [],
        "/v2/models/blur/generate": 405,
        "/metrics": 200,
        "/docs": 401,
        "/v1/models/blur": {"model_version_status": []},
    }
    stub = Stub(doors)
    found = examined(stub)
    assert found["door /v2/repository/index"] == Finding(
        "door /v2/repository/index",
        "warning",
        "open to control (405 to GET)",
        "restrict it (Triton: --http-restricted-api) or let nobody but the guard reach the port",
    )
    opened = {name for name, finding in found.items() if name.startswith("door") and finding.verdict == "warning"}
    assert opened == {f"door {path}" for path in doors} - {"door /docs"}
    assert found["door /docs"].found == "closed (401)"
    assert {method for method, _ in stub.asked} == {"GET"}
    assert not [path for _, path in stub.asked if path.endswith(("/infer", ":predict"))]


def test_a_server_that_answers_every_path_tells_nothing():
    found = examined(Stub({}, default=200))
    assert found["door /v2/repository/index"].verdict == "unknown"
    assert "a path that nobody has 200" in found["door /v2/repository/index"].found


@pytest.mark.parametrize(
    ("reply", "purpose", "loopback", "verdict"),
    [
        (Reply(405), "control", False, "problem"),
        (Reply(405), "control", True, "warning"),
        (Reply(200), "inference", False, "warning"),
        (Reply(302), "control", False, "unknown"),
        (Reply(500), "control", False, "unknown"),
        (Reply(None, error="TimeoutError"), "control", False, "unknown"),
        (Reply(501), "control", False, "ok"),
    ],
)
def test_a_door_is_judged_by_its_answer_its_purpose_and_where_it_stands(reply, purpose, loopback, verdict):
    assert _judged(_Door("/x", purpose, "shut it"), reply, Reply(404), Reach(True, loopback, ())).verdict == verdict


@pytest.mark.parametrize(
    "listing",
    [
        {"/v2/models": {"models": ["blur", "secret", "old"]}},
        {"/v2/models/stats": {"model_stats": [{"name": "blur"}, {"name": "secret"}, {"name": "old"}]}},
        {"/v1/models": ["blur", "secret", "old"]},
    ],
)
def test_other_models_that_a_server_lists_are_named(listing):
    found = examined(Stub(listing))["other models"]
    assert (found.verdict, found.found) == ("warning", "the model server also has old, secret")


@pytest.mark.parametrize("listing", [{}, {"/v2/models": "nonsense"}, {"/v2/models": {"models": 7}}, {"/v2/models": 500}])
def test_a_server_that_lists_no_models_leaves_it_open(listing):
    assert examined(Stub(listing))["other models"].verdict == "unknown"


@pytest.mark.parametrize(("dialect", "path"), [("tf-serving", "/v2/models/blur"), ("plain-json", "/v1/models/blur")])
def test_the_guards_own_dialect_is_no_other_door_and_the_others_are(dialect, path):
    stub = Stub({"/v1/models/blur": {}, "/metrics": 200})

    async def play() -> list[Finding]:
        async with served(stub) as port:
            upstream = UpstreamSettings.model_validate(
                {
                    "url": f"http://127.0.0.1:{port}",
                    "model": "blur",
                    "dialect": dialect,
                    "plain_json": {"infer": "/docs", "health": "/metrics"},
                }
            )
            return await run_doctor(upstream, ports={}, own_addresses=[])

    found = by_check(asyncio.run(play()))
    assert found["upstream"].verdict == "ok"
    assert found[f"door {path}"].verdict == "warning"
    assert ("door /v1/models/blur" in found) == (dialect != "tf-serving")
    assert ("door /metrics" in found) == (dialect != "plain-json")


# ---------------------------------------------------------------------- from where


def test_a_server_that_is_down_is_one_problem_and_its_doors_are_not_asked():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = by_check(asyncio.run(run_doctor(UpstreamSettings(url=f"http://127.0.0.1:{port}"), ports={}, own_addresses=[])))
    assert found["upstream"].verdict == "problem"
    assert "does not answer: ClientConnector" in found["upstream"].found
    assert not [name for name in found if name.startswith("door")]


def test_a_server_that_does_not_answer_in_time_is_not_waited_for():
    async def play() -> list[Finding]:
        with socket.socket() as silent:  # accepts, and says nothing
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            return await run_doctor(
                UpstreamSettings(url=f"http://127.0.0.1:{silent.getsockname()[1]}"), seconds=0.1, ports={}, own_addresses=[]
            )

    assert "does not answer: " in by_check(asyncio.run(play()))["upstream"].found


@pytest.mark.parametrize(
    ("dialect", "answers", "verdict", "found", "remedy"),
    [
        ("oip", {"/v2/health/ready": 503}, "warning", "/v2/health/ready answers 503: the guard waits", "check the model server"),
        ("oip", {"/v2/health/ready": 404}, "warning", "/v2/health/ready answers 404", "check upstream.dialect and upstream.model"),
        ("oip", {"/v2/health/ready": 404, "/v1/models/blur": {}}, "warning", "404", "it answers as tf-serving servers do"),
        ("tf-serving", {}, "warning", "/v1/models/blur answers 404", "it answers as oip servers do"),
        ("plain-json", {"/v2/health/ready": 404}, "ok", "no health door at /health (404)", "upstream.plain_json.health names another"),
        ("plain-json", {}, "warning", "no health door at /health (404)", "it answers as oip servers do"),
        ("plain-json", {"/health": 500}, "warning", "/health answers 500", "check upstream.plain_json.health"),
    ],
)
def test_a_server_that_is_not_ready_or_speaks_another_dialect_is_told_with_its_remedy(dialect, answers, verdict, found, remedy):
    async def play() -> list[Finding]:
        async with served(Stub(answers)) as port:
            upstream = UpstreamSettings.model_validate({"url": f"http://127.0.0.1:{port}", "model": "blur", "dialect": dialect})
            return await run_doctor(upstream, ports={}, own_addresses=[])

    finding = by_check(asyncio.run(play()))["upstream"]
    assert finding.verdict == verdict
    assert found in finding.found
    assert remedy in finding.remedy


@pytest.mark.parametrize(("host", "verdict"), [("127.0.0.1", "ok"), ("0.0.0.0", "problem")])
def test_a_server_that_listens_beyond_loopback_is_a_problem(host, verdict):
    """127.0.0.2 stands for another address of this machine: only who listens everywhere answers there."""

    async def play() -> list[Finding]:
        async with served(Stub({}), host) as port:
            return await run_doctor(UpstreamSettings(url=f"http://127.0.0.1:{port}"), ports={}, own_addresses=["127.0.0.2"])

    found = by_check(asyncio.run(play()))["upstream address"]
    assert found.verdict == verdict
    assert "127.0.0.2" in found.found


def test_another_host_is_a_warning_because_a_firewall_cannot_be_seen(monkeypatch):
    monkeypatch.setattr("sameguard.server.doctor.doors.is_loopback", lambda address: False)
    found = examined(Stub({"/v2/repository/index": 405}))
    assert found["upstream address"].verdict == "warning"
    assert "127.0.0.1 is 127.0.0.1, not loopback, unencrypted" in found["upstream address"].found
    assert found["door /v2/repository/index"].verdict == "problem"


def test_a_name_that_does_not_resolve_and_a_machine_without_addresses_are_unknown():
    found = by_check(asyncio.run(run_doctor(UpstreamSettings(url="http://no-such-host.invalid:1"), ports={}, own_addresses=[])))
    assert (found["upstream"].verdict, found["upstream address"].verdict) == ("problem", "unknown")
    assert examined(Stub({}))["upstream address"].verdict == "unknown"


def test_the_machines_own_addresses_are_not_loopback():
    assert not any(map(is_loopback, machine_addresses()))
    assert is_loopback("::1")
    assert not is_loopback("fe80::1%eth0")


# ---------------------------------------------------------------------- ports


def test_ports_are_told_apart_by_what_answers_there():
    async def play() -> tuple[list[Finding], list[int]]:
        stub, management, metrics = Stub({}), Stub({"/models": {"models": []}}), Stub({"/metrics": 200})
        async with contextlib.AsyncExitStack() as stack:
            servers = (served(stub), listening(FRAME), listening(b"hello"), served(management), served(metrics))
            port, grpc, other, managed, measured = [await stack.enter_async_context(server) for server in servers]
            ports = dict.fromkeys([port, grpc, other, managed, measured, 1], "something")
            findings = await run_doctor(UpstreamSettings(url=f"http://127.0.0.1:{port}"), ports=ports, own_addresses=[])
            return findings, [port, grpc, other, managed, measured]

    findings, (own, grpc, other, managed, measured) = asyncio.run(play())
    found = by_check(findings)
    assert f"port {own}" not in found
    assert found[f"port {grpc}"].found == "speaks HTTP/2, as gRPC does (something)"
    assert found[f"port {other}"].found == "is open; something would be there"
    assert "management" in found[f"port {managed}"].found
    assert found[f"port {measured}"].found == "answers /metrics"
    assert {found[f"port {port}"].verdict for port in (grpc, other, managed, measured)} == {"warning"}
    assert found["other ports"].found == "closed: 1"


def test_open_grpc_and_management_on_another_host_are_problems(monkeypatch):
    monkeypatch.setattr("sameguard.server.doctor.doors.is_loopback", lambda address: False)

    async def play() -> list[Finding]:
        async with served(Stub({})) as port, listening(FRAME) as grpc, served(Stub({"/models": {}})) as managed:
            ports = dict.fromkeys([grpc, managed], "something")
            return await run_doctor(UpstreamSettings(url=f"http://127.0.0.1:{port}"), ports=ports)

    assert [finding.verdict for finding in asyncio.run(play()) if finding.check.startswith("port ")] == ["problem"] * 2


# ---------------------------------------------------------------------- the guard's own side


@pytest.fixture
def guard(tmp_path) -> Path:
    return write_blur_artifact(tmp_path / "guard")


def deployed(guard: Path, stub: Stub | None = None, clock: Callable[[], float] = time.time, **settings: Any) -> dict[str, Finding]:
    """Findings about a guard with these settings before a stub."""

    async def play() -> list[Finding]:
        async with served(stub or Stub({})) as port:
            upstream = {"url": f"http://127.0.0.1:{port}", "model": "blur"} | settings.pop("upstream", {})
            made = Settings.model_validate({"artifact": guard, "mode": "enforce", "upstream": upstream} | settings)
            return await run_doctor(made.upstream, made, ports={}, own_addresses=[], clock=clock)

    return by_check(asyncio.run(play()))


def digest_of(guard: Path) -> str:
    from sameguard.artifact import read_artifact

    return read_artifact(guard).manifest["sha256"]


def test_a_guard_as_it_should_be_has_no_findings_of_its_own(guard):
    found = deployed(guard, artifact_digest=digest_of(guard))
    checks = ("mode", "admin port", "artefact files", "artefact", "replay store", "served model", "torch")
    assert {name: found[name].verdict for name in checks} == dict.fromkeys(checks, "ok")
    assert found["served model"].found == "blur has the artefact's input and output"


@pytest.mark.parametrize(
    ("settings", "check", "text"),
    [
        ({"mode": "shadow"}, "mode", "shadow: everything is answered"),
        ({"rollout": 0.25}, "mode", "enforce for 25% of principals"),
        ({"scorer": {"fail_open": True}}, "scorer.fail_open", "lets queries pass unscored"),
        ({"admin": {"host": "0.0.0.0", "token": "secret" * 3}}, "admin port", "0.0.0.0 is not loopback"),
        ({}, "artefact", "whole, but not pinned"),
    ],
)
def test_settings_that_weaken_the_guard_are_warnings_with_a_remedy(settings, check, text, guard):
    found = deployed(guard, **settings)[check]
    assert (found.verdict, text in found.found, bool(found.remedy)) == ("warning", True, True)
    assert "secret" not in str(found)


def test_an_admin_port_that_is_off_is_well(guard):
    assert deployed(guard, admin={"port": None})["admin port"].found == "off"


def test_files_that_others_can_read_are_named(guard, tmp_path):
    (guard / "manifest.json").chmod(0o640)
    keys = tmp_path / "keys"
    keys.write_text("k1:00")
    keys.chmod(0o644)
    found = deployed(guard, proofs={"keys_file": keys})
    assert found["artefact files"].found.startswith("1 of 4 can be read by others than their owner")
    assert found["artefact files"].remedy == f"chmod 600 {guard}/*"
    assert found["proofs.keys_file"].remedy == f"chmod 600 {keys}"
    missing = deployed(guard, proofs={"keys_file": tmp_path / "none"})["proofs.keys_file"]
    assert (missing.verdict, "No such file" in missing.found) == ("problem", True)


def test_an_artefact_that_cannot_serve_is_a_problem(guard, tmp_path):
    from sameguard.artifact import read_artifact, write_artifact

    assert deployed(tmp_path / "none")["artefact"].verdict == "problem"
    assert deployed(tmp_path / "none")["artefact files"].verdict == "unknown"
    assert deployed(guard, artifact_digest="0" * 64)["artefact"].found.endswith("is not artifact_digest")
    whole = read_artifact(guard, names=("reconstruction.onnx", "auxiliary.onnx"))
    write_artifact(tmp_path / "bare", {name: value for name, value in whole.manifest.items() if name != "provider"}, whole.files)
    assert deployed(tmp_path / "bare")["artefact"].found.startswith("not calibrated")


def test_a_served_model_that_is_not_the_artefacts_is_a_problem(guard):
    other = METADATA | {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]}
    found = deployed(guard, Stub({"/v2/models/blur": other}))["served model"]
    assert (found.verdict, "must have shape" in found.found) == ("problem", True)
    assert deployed(guard, Stub({"/v2/models/blur": 503}))["served model"].found == "metadata answers 503"
    plain = deployed(guard, Stub({"/health": None}), upstream={"dialect": "plain-json"})["served model"]
    assert (plain.verdict, "no metadata to compare" in plain.found) == ("unknown", True)


def test_the_guards_own_ports_are_no_other_doors(guard):
    async def play() -> list[Finding]:
        async with served(Stub({})) as port, listening(b"x") as own:
            settings = Settings.model_validate(
                {"artifact": guard, "upstream": {"url": f"http://127.0.0.1:{port}"}, "listen": {"port": own}}
            )
            return await run_doctor(settings.upstream, settings, ports={own: "TorchServe"}, own_addresses=[])

    assert not [finding for finding in asyncio.run(play()) if finding.check.startswith("port ")]


# ---------------------------------------------------------------------- the replay store


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory) -> Iterator[Path]:
    """Socket of a real redis-server."""
    pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: no real replay store")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "socket"
    arguments = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    asyncio.run(_until(lambda: _answers(path)))
    yield path
    process.terminate()
    process.wait(timeout=10)


async def _until(ready: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await ready():
            await asyncio.sleep(0)


async def _answers(path: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
    except OSError:
        return False
    return answer.startswith(b"+PONG")


def configured(path: Path, **options: str) -> None:
    async def play() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for name, value in options.items():
            writer.write(f"CONFIG SET {name.replace('_', '-')} {value}\r\n".encode())
            assert await reader.readline() == b"+OK\r\n"
        writer.close()
        await writer.wait_closed()

    asyncio.run(play())


def test_a_store_that_forgets_is_found_out_and_one_that_does_not_is_well(guard, redis_server):
    proofs = {"store": f"unix://{redis_server}", "keys": "k1:" + "0" * 64}
    configured(redis_server, maxmemory_policy="allkeys-lru", appendonly="no")
    found = deployed(guard, proofs=proofs)
    assert (found["replay store"].verdict, "got allkeys-lru" in found["replay store"].found) == ("warning", True)
    assert found["replay store file"].remedy == "CONFIG SET appendonly yes"
    assert "0" * 64 not in str(found)
    configured(redis_server, maxmemory_policy="noeviction", appendonly="yes")
    found = deployed(guard, proofs=proofs)
    assert found["replay store"].verdict == found["replay store clock"].verdict == "ok"
    assert "replay store file" not in found


@pytest.mark.parametrize(("skew", "verdict"), [(0.0, "ok"), (-10.0, "warning"), (100.0, "problem")])
def test_a_clock_that_is_off_is_found_out(skew, verdict, guard, redis_server):
    proofs = {"store": f"unix://{redis_server}", "keys": "k1:" + "0" * 64}
    assert deployed(guard, clock=lambda: time.time() + skew, proofs=proofs)["replay store clock"].verdict == verdict


def test_a_store_that_is_down_is_a_problem(guard, tmp_path):
    pytest.importorskip("redis")
    found = deployed(guard, proofs={"store": f"unix://{tmp_path}/none", "keys": "k1:" + "0" * 64})["replay store"]
    assert (found.verdict, "must answer in time" in found.found) == ("problem", True)


@pytest.mark.parametrize(("installed", "text"), [(None, "not installed"), (object(), "is installed")])
def test_torch_is_mentioned_and_never_loaded(installed, text, guard, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: installed if name == "torch" else real(name, *rest))
    found = deployed(guard)["torch"]
    assert (found.verdict, text in found.found) == ("ok", True)
