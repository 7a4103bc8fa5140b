"""The verb doctor, as an operator would call it."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sameguard.cli import _Group
from sameguard.cli.doctor import doctor_command
from sameguard.cli.score_log import score_log_command

RUNNER = CliRunner()
app = typer.Typer(cls=_Group)
app.command("doctor")(doctor_command)
app.command("score-log")(score_log_command)


def call(*arguments: object):
    return RUNNER.invoke(app, ["doctor", *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def upstream() -> Iterator[str]:
    """A model server that is healthy and has a repository."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/v2/health/ready": 200, "/v2/repository/index": 405}.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_it_prints_a_table_with_remedies_and_no_problem_is_exit_code_0(upstream):
    done = call("--upstream", upstream, "--model", "m")
    assert done.exit_code == 0, done.output
    assert "door /v2/repository/index" in done.stdout
    assert "--http-restricted-api" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" unknown")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_worst_comes_first_and_every_line_fits(upstream, columns):
    done = RUNNER.invoke(app, ["doctor", "--upstream", upstream], env={"COLUMNS": columns})
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    verdicts = [line.split()[0] for line in lines if line.startswith(("problem", "warning", "unknown", "ok"))]
    assert verdicts == sorted(verdicts, key=("problem", "warning", "unknown", "ok").index)
    assert {"warning", "ok"} <= set(verdicts)
    unwrapped = " ".join(" ".join(lines).split())
    assert (
        "door /v2/repository/index: open to control (405 to GET) -> restrict it (Triton: --http-restricted-api) or let nobody" in unwrapped
    )


def test_json_holds_the_same_findings(upstream):
    found = json.loads(call("--upstream", upstream, "--json").stdout)
    assert {"check", "verdict", "found", "remedy"} == set(found[0])
    assert {"upstream", "other ports", "other models"} <= {finding["check"] for finding in found}


def test_a_problem_is_exit_code_1(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "guard.yaml").write_text(f"artifact: {tmp_path}/none\nupstream: {{url: 'http://127.0.0.1:{port}'}}\n")
    done = call("--config", tmp_path / "guard.yaml", "--json")
    assert done.exit_code == 1
    verdicts = {finding["check"]: finding["verdict"] for finding in json.loads(done.stdout)}
    assert verdicts["upstream"] == verdicts["artefact"] == "problem"
    assert verdicts["mode"] == "warning"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "must be given --config or --upstream, got neither: give one"),
        (("--config", "guard.yaml", "--upstream", "http://x"), "got both: give one"),
        (("--upstream", "ftp://x"), "--upstream is not valid: must be http://host"),
        (("--upstream", "http://127.0.0.1:1", "--dialect", "grpc"), "--dialect is not valid"),
        (("--upstream", "http://127.0.0.1:1", "--timeout", "0"), "--timeout must be positive"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message):
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_the_help_has_an_example():
    assert "sameguard doctor --config guard.yaml" in call("--help").stdout
