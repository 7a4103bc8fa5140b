"""`sameguard audit`: records, filters, summary, and exit codes."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sameguard.cli import app as whole_app
from sameguard.cli.audit import audit_command
from sameguard.server.audit import AuditLog
from sameguard.server.decision import Decision
from sameguard.server.settings import AuditSettings

RUNNER = CliRunner()
NOON = 1_767_225_600.0 + 12 * 3600  # 2026-01-01 12:00 UTC


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """30 requests, one a minute from noon; every third is refused."""
    path = tmp_path / "audit.jsonl"
    written = AuditLog(AuditSettings(path=path, rotate_bytes=4000))
    for number in range(30):
        refused = number % 3 == 0
        written.observe(
            Decision(
                NOON + 60 * number, f"r-{number}", "aa11" if number < 20 else "bb22", "digits", "f" * 64, "d" * 64, 2,
                "refuse" if refused else "allow", "refuse" if refused else "allow", 403 if refused else 200,
                enforced=True, score=float(number), stage_a_score=0.5,
            ),
            None,
        )  # fmt: skip
    written.close()
    return path


def call(*arguments: object, columns: int = 200):
    """As `sameguard audit` is called once it is registered; errors as the whole command turns them."""
    app = typer.Typer(cls=whole_app.info.cls, pretty_exceptions_enable=False)
    app.command("audit")(audit_command)
    app.command("other")(lambda: None)
    return RUNNER.invoke(app, ["audit", *map(str, arguments)], env={"COLUMNS": str(columns)})


def test_a_table_shows_the_last_requests(log):
    done = call(log)
    assert done.exit_code == 0, done.output
    assert "01-01 12:29:00  allow " in done.output
    assert done.output.splitlines()[-1] == "the last 20 of 30 requests, from 2026-01-01 12:10:00 to 2026-01-01 12:29:00 UTC"
    assert "r-10" in done.output
    assert "r-9 " not in done.output  # twenty of thirty
    assert "r-9 " in call(log, "--tail", 25).output
    assert "no request meets these conditions" in call(log, "--outcome", "denied").output


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_table_fits_its_terminal_and_cuts_nothing(tmp_path, columns):
    """A batch and a single query, watched in shadow mode, a paid one, and one that was not understood, at their widest."""
    path = tmp_path / "audit.jsonl"
    written = AuditLog(AuditSettings(path=path))
    for number, (verdict, outcome, status, more) in enumerate(
        [
            ("too-costly", "allow", 200, {"rows": 4096, "score": 0.000123456, "stage_a_score": 1.23456e-05}),
            ("challenge", "allow", 200, {"rows": 1, "score": 1.2345e-05, "stage_a_score": 3.0}),
            ("", "allow", 200, {"rows": 1, "level": 3, "proof": "valid"}),
            ("", "denied", 400, {"rows": 0, "reason": "input-invalid"}),
            ("refuse", "refuse", 403, {"rows": 1, "stage_a_score": 7.5}),
        ]
    ):
        given = {"rows": 1} | more
        rows = given.pop("rows")
        decision = Decision(NOON, f"{number:024x}", "ab" * 32, "digits", "f" * 64, "d" * 64, rows, outcome, verdict, status, **given)
        written.observe(decision, None)
    written.close()
    done = call(path, columns=columns)
    assert done.exit_code == 0, done.output
    assert "…" not in done.output
    lines = done.output.splitlines()
    assert max(len(line.rstrip()) for line in lines[:-1]) <= max(80, columns)
    words = done.output.split()
    assert words.count("(1.235e-05)") == 1  # of a batch, stage A may have settled some row
    for part in ("(too-costly)", "(challenge)", "0.0001235", "1.234e-05", "4096", "(7.5)", "level", "valid", "input-invalid", "abababab"):
        assert part in words, part
    assert ("000000000000000000000002" in words) == (columns >= 100)


def test_json_is_a_record_a_line_and_filters_select(log):
    lines = call(log, "--json").stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [f"r-{number}" for number in range(30)]
    arguments = ("--json", "--since", "2026-01-01T12:10", "--until", "2026-01-01T13:20+01:00", "--verdict", "refuse", "--principal", "aa")
    assert [json.loads(line)["request_id"] for line in call(log, *arguments).stdout.splitlines()] == ["r-12", "r-15", "r-18"]
    assert len(call(log, "--json", "--tail", 3).stdout.splitlines()) == 3
    assert call(log, "--json", "--outcome", "challenge").stdout == ""
    assert len(call(log, "--json", "--request-id", "r-7").stdout.splitlines()) == 1
    assert len(call(log, "--json", "--digest", "dd").stdout.splitlines()) == 30


def test_how_long_ago_is_counted_from_now(log, monkeypatch):
    monkeypatch.setattr("sameguard.cli.audit.time.time", lambda: NOON + 30 * 60)
    assert len(call(log, "--json", "--since", "5m").stdout.splitlines()) == 5
    assert len(call(log, "--json", "--since", "1h", "--until", "1500s").stdout.splitlines()) == 6


def test_a_summary_counts_with_an_interval(log):
    found = json.loads(call(log, "--summary", "--json").stdout)
    assert (found["requests"], found["rows"], found["flagged"]) == (30, 60, 10)
    assert found["verdicts"] == {"allow": 20, "refuse": 10}
    assert found["interval"] == pytest.approx([0.1729, 0.5281], abs=1e-4)
    assert found["scores"]["score"]["0.5"] == 14.5
    table = " ".join(call(log, "--summary").output.split())
    assert "10 of 30 judged: 33.33% (95 % interval 17.29% to 52.81%)" in table
    assert "allow 20, refuse 10" in table
    assert "none" in " ".join(call(log, "--summary", "--outcome", "denied").output.split())


def test_damaged_lines_are_a_finding(log):
    with log.open("ab") as file:
        file.write(b'{"time":"2026\n')
    done = call(log, "--summary")
    assert done.exit_code == 1
    assert "1 damaged lines were skipped." in done.stderr
    assert "10 of 30 judged" in done.stdout


def test_what_a_client_wrote_cannot_steer_the_terminal(log):
    with log.open("ab") as file:
        file.write(json.dumps({"unix": NOON, "time": "2026-01-01T12:00:00", "request_id": "\x1b[31m[red]x\x9b"}).encode() + b"\n")
    output = call(log).output
    assert "\x1b[31m" not in output
    assert "\x9b" not in output
    assert "[red]x" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tail", "0"], "--tail must be at least 1, got 0"),
        (["--since", "yesterday"], "--since must be an ISO date or time"),
        (["--outcome", "refused"], "outcome must be one of allow"),
        (["--since", "1h", "--until", "2h"], "since must lie before until"),
    ],
)
def test_usage_errors_are_one_sentence(log, arguments, sentence):
    done = call(log, *arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())


def test_a_log_that_is_not_there_is_named(tmp_path):
    done = call(tmp_path / "none.jsonl")
    assert done.exit_code == 2
    assert "must be a file that a guard wrote" in done.output


def test_the_example_of_the_help_runs(log, monkeypatch):
    monkeypatch.chdir(log.parent)
    example = next(line for line in audit_command.__doc__.splitlines() if "Example: " in line).split("sameguard audit ")[1].split()
    done = call(*example)
    assert done.exit_code == 0, done.output
