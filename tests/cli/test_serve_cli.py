"""`sameguard serve` as an operator calls it: settings checked before anything starts, mistakes named in one sentence, a demonstration that answers."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.artifact import write_artifact
from sameguard.cli import app
from sameguard.client import RemoteEndpoint
from sameguard.runtime import Scorer
from sameguard.server.audit_file import AuditFile
from sameguard.server.demo_server import demo_contract, demo_folder

RUNNER = CliRunner()
WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is not installed here", name="torch")

sys.meta_path.insert(0, NoTorch())
from sameguard.cli import app
app()
"""
KEY = bytes(range(32)).hex()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """A copy of the bundled artefact."""
    copy = tmp_path_factory.mktemp("serve") / "artefact"
    with demo_folder() as folder:
        shutil.copytree(folder / "artefact", copy)
    return copy


@pytest.fixture
def config(tmp_path, artifact) -> Path:
    """A file of good settings."""
    path = tmp_path / "guard.yaml"
    path.write_text(f"artifact: {artifact}\nupstream: {{url: 'http://127.0.0.1:1', model: digits, output: logits}}\n")
    return path


def call(*arguments: object, **variables: str):
    environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SAMEGUARD_")}
    return RUNNER.invoke(
        app, ["serve", *map(str, arguments)], env=environment | {f"SAMEGUARD_{name}": text for name, text in variables.items()}
    )


# ---------------------------------------------------------------------- settings


def test_good_settings_are_told_with_what_they_decide(config, artifact):
    done = call("--config", config, "--check-config")
    assert done.exit_code == 0, done.output
    assert Scorer(artifact).manifest["sha256"] in done.stdout
    assert "mode shadow, policy proof-of-work, before http://127.0.0.1:1 (oip)" in done.stdout
    assert done.stdout.count("level ") == 4
    assert "s at worst on one core" in done.stdout


def test_every_mistake_is_listed_with_its_place_and_nothing_is_started(config):
    config.write_text(config.read_text() + "mode: enforced\nlisten: {port: 99999}\n")
    done = call("--config", config, "--policy", "bribe", "--check-config", CACHE__SECONDS="-1")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert "error: settings are not valid:" in lines[0]
    for name, place in (("mode", config), ("listen.port", config), ("policy.kind", "flag"), ("cache.seconds", "environment")):
        assert [line for line in lines if line.startswith(f"  {name} (") and str(place) in line], done.stderr
    assert not done.stdout


def test_flags_win_over_the_environment_and_the_environment_over_the_file(config):
    config.write_text(config.read_text() + "mode: enforce\npolicy: {kind: ladder}\n")
    by_file = call("--config", config, "--check-config")
    by_environment = call("--config", config, "--check-config", MODE="shadow", POLICY__KIND="coarsen")
    by_flag = call("--config", config, "--check-config", "--policy", "reject", MODE="shadow", POLICY__KIND="coarsen")
    assert "mode enforce, policy ladder" in by_file.stdout
    assert "mode shadow, policy coarsen" in by_environment.stdout
    assert "mode shadow, policy reject" in by_flag.stdout


def test_the_environment_alone_is_enough(artifact):
    done = call(
        "--check-config", ARTIFACT=str(artifact), UPSTREAM__URL="http://127.0.0.1:1", UPSTREAM__OUTPUT_KIND="logits", MODE="enforce"
    )
    assert done.exit_code == 0, done.output
    assert "mode enforce" in done.stdout


MISTAKES = {
    "a secret that is none": ({"PROOFS__KEYS": "one:zz"}, "proofs.keys must be kid:hex"),
    "keys twice": ({"PROOFS__KEYS": f"one:{KEY}", "PROOFS__KEYS_FILE": "/x"}, "both give the keys"),
    "a shared store without shared keys": ({"PROOFS__STORE": "redis://127.0.0.1:1"}, "need the same proofs.keys"),
    "a store at a port that none is": ({"PROOFS__STORE": "redis://x:99999", "PROOFS__KEYS": f"one:{KEY}"}, "a port up to 65535"),
    "a store with an unknown option": ({"PROOFS__STORE": "redis://x/0?foo=1", "PROOFS__KEYS": f"one:{KEY}"}, "options that redis-py knows"),
    "another store": ({"PROOFS__STORE": "memcached://x", "PROOFS__KEYS": f"one:{KEY}"}, "proofs.store must be memory"),
    "challenges that end before they are solved": ({"PROOFS__WORST_SECONDS": "100"}, "ttl_seconds must be at least twice the worst solve"),
    "proxies that are no addresses": ({"LISTEN__TRUSTED_PROXIES": '["gateway"]'}, "listen.trusted_proxies must be addresses"),
    "another engine": ({"SCORER__ENGINE": "tpu"}, "engine must be"),
    "another artefact than the pinned one": ({"ARTIFACT_DIGEST": "0" * 64}, "must have digest 0000"),
    "an admin port for everybody": ({"ADMIN__HOST": "0.0.0.0"}, "needs admin.token"),
    "a name with a typo": ({"UPSTREEM__URL": "http://x"}, "SAMEGUARD_UPSTREEM__URL names no setting"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_would_not_start_is_not_called_valid(config, name):
    variables, sentence = MISTAKES[name]
    done = call("--config", config, "--check-config", **variables)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.output


def test_mistakes_of_different_parts_are_told_together(config, tmp_path):
    (tmp_path / "file").write_text("")
    done = call(
        "--config", config, "--artifact", tmp_path / "none", "--check-config",
        PROOFS__KEYS="one:zz", AUDIT__PATH=str(tmp_path / "file" / "log"), LISTEN__TRUSTED_PROXIES='["gateway"]',
    )  # fmt: skip
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the guard would not start:")
    for sentence in ("proofs.keys must be kid:hex", "must hold a manifest.json", "audit.path", "listen.trusted_proxies"):
        assert [line for line in done.stderr.splitlines() if line.startswith("  ") and sentence in line], done.stderr


def test_a_decision_log_that_cannot_be_written_is_a_mistake_and_nothing_is_made(config, tmp_path):
    (tmp_path / "folder").mkdir()
    done = call("--config", config, "--check-config", AUDIT__PATH=str(tmp_path / "folder"))
    assert done.exit_code == 2
    assert f"audit.path {tmp_path / 'folder'} must be a file, got something else of this name" in done.stderr
    new = tmp_path / "new" / "audit.jsonl"
    assert call("--config", config, "--check-config", AUDIT__PATH=str(new)).exit_code == 0
    assert not new.parent.exists()


def test_a_decision_log_that_another_guard_holds_is_noted_by_a_check_and_stops_a_start(config, tmp_path):
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, 2**20, 1)
    try:
        done = call("--config", config, "--check-config", AUDIT__PATH=str(path))
        assert done.exit_code == 0
        assert f"note: audit.path {path} is held by another guard" in done.stderr
        done = call("--config", config, "--port", 0, "--admin-port", 0, AUDIT__PATH=str(path))
        assert done.exit_code == 2
        assert f"audit.path {path} must be written by one guard, and another one holds it" in done.stderr
    finally:
        file.close()
    assert "note:" not in call("--config", config, "--check-config", AUDIT__PATH=str(path)).stderr


def test_files_that_are_not_there_are_named(config, tmp_path):
    missing = tmp_path / "missing"
    for arguments, sentence in (
        (["--config", missing], f"settings file {missing} must be readable"),
        (["--config", config, "--artifact", missing], f"artefact {missing} must hold a manifest.json"),
    ):
        done = call(*arguments, "--check-config")
        assert done.exit_code == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_artefact_that_was_never_calibrated_serves_nobody(config, artifact, tmp_path):
    manifest = {name: value for name, value in Scorer(artifact).manifest.items() if name in (
        "sameguard", "contract", "classes", "score", "views", "auxiliary", "victim", "preset"
    )}  # fmt: skip
    fresh = tmp_path / "fresh"
    write_artifact(fresh, manifest, {name: (artifact / name).read_bytes() for name in ("reconstruction.onnx", "auxiliary.onnx")})
    for more in ([], ["--check-config"]):
        done = call("--config", config, "--artifact", fresh, "--admin-port", 0, "--port", 0, *more)
        assert done.exit_code == 2, done.output
        assert f"must be calibrated before it can serve, got none: sameguard calibrate {fresh}." in done.stderr


def test_a_damaged_artefact_is_one_sentence(config, artifact, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    (damaged / "auxiliary.onnx").write_bytes(b"nothing")
    done = call("--config", config, "--artifact", damaged, "--check-config")
    assert done.exit_code == 2
    assert "auxiliary.onnx" in done.stderr
    assert "SHA-256" in done.stderr


@pytest.mark.parametrize("door", ["listen", "admin"])
def test_a_port_that_is_taken_is_one_sentence(config, door):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"listen": ["--port", port, "--admin-port", 0], "admin": ["--port", 0, "--admin-port", port]}[door]
        done = call("--config", config, *ports)
    assert done.exit_code == 2
    assert f"{door}.host and {door}.port must be free, got 127.0.0.1:{port}: Address already in use." in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demonstration_takes_no_other_model(config):
    done = call("--demo", "--config", config)
    assert done.exit_code == 2
    assert "--demo brings artefact and model server with it" in done.stderr


# ---------------------------------------------------------------------- the demonstration, in a process without torch


@contextlib.contextmanager
def demonstration(policy: str, log: Path) -> Iterator[tuple[str, str, subprocess.Popen]]:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports.append(taken.getsockname()[1])
    command = [
        sys.executable, "-c", WITHOUT_TORCH, "serve", "--demo", "--policy", policy, "--port", str(ports[0]), "--admin-port", str(ports[1])
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/readyz", timeout=5).close()
                    break
                time.sleep(0.05)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(20)


def queries() -> tuple[np.ndarray, np.ndarray]:
    with demo_folder() as folder, np.load(folder / "queries.npz", allow_pickle=False) as stored:
        return stored["digits"].astype(np.float32) / 255, stored["glyphs"].astype(np.float32) / 255


def statuses_of(url: str, rows: np.ndarray) -> list[int]:
    """Asked as plain JSON, one by one."""
    found = []
    for row in rows:
        tensor = {"name": "digit", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": row.ravel().tolist()}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v2/models/digits/infer", json.dumps({"inputs": [tensor]}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found.append(answer.status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
    return found


def test_the_demonstration_answers_digits_and_refuses_glyphs_without_torch_and_ends_when_told_to(tmp_path):
    digits, glyphs = queries()
    with demonstration("reject", tmp_path / "log") as (url, admin, process):
        assert statuses_of(url, digits[:20]).count(200) >= 16
        assert statuses_of(url, glyphs[:20]).count(403) >= 8
        with urllib.request.urlopen(admin + "/", timeout=30) as page:
            assert b"sameguard" in page.read().lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert f"guard: {url}" in log
    assert "Traceback" not in log


def test_the_demonstration_charges_for_glyphs_and_the_shipped_client_pays(tmp_path):
    digits, glyphs = queries()
    with demonstration("proof-of-work", tmp_path / "log") as (url, _, _):
        assert statuses_of(url, digits[:20]).count(200) >= 16
        charged = [index for index, status in enumerate(statuses_of(url, glyphs[:12])) if status == 402]
        assert charged
        with RemoteEndpoint(url, demo_contract()) as endpoint:
            answers = endpoint.query(glyphs[charged[:2]])
            assert answers.answered.all()
            assert endpoint.traffic.challenges >= 1
        _triton_sees_a_digit(url, digits)


def _triton_sees_a_digit(url: str, digits: np.ndarray) -> None:
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    with http.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_model_ready("digits")
        allowed = next(digit[None] for digit in digits if statuses_of(url, digit[None]) == [200])
        tensor = http.InferInput("digit", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(allowed)
        assert client.infer("digits", [tensor]).as_numpy("logits").shape == (1, 10)
