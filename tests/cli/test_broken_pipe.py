"""`sameguard ... | head`: a reader who has enough ends the command without a word."""

import json
import subprocess
import sys

import pytest

from sameguard.server.demo_server import demo_folder

RECORD = {
    "time": "2026-01-01T12:00:00.000+00:00", "unix": 1767268800.0, "request_id": "r", "principal": "p", "digest": "d", "rows": 1,
    "outcome": "allow", "verdict": "allow", "status": 200, "score": 0.5, "stage_a_score": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "records"),
    [
        (["audit", "AUDIT", "--json"], 1),  # written from a buffer at the very end
        (["audit", "AUDIT", "--json"], 5000),
        (["audit", "AUDIT"], 1),
        (["doctor", "--upstream", "http://127.0.0.1:1", "--json"], 0),
        (["show", "ARTEFACT"], 0),
    ],
)
def test_a_reader_who_goes_away_ends_a_command_quietly(arguments, records, tmp_path):
    (tmp_path / "audit.jsonl").write_text(f"{json.dumps(RECORD)}\n" * records)
    with demo_folder() as folder:
        known = {"AUDIT": str(tmp_path / "audit.jsonl"), "ARTEFACT": str(folder / "artefact")}
        command = [sys.executable, "-m", "sameguard", *(known.get(argument, argument) for argument in arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            running.stdout.close()
            told = running.stderr.read()
            assert running.wait(60) == 1
    assert told == ""
