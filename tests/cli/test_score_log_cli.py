"""The verb score-log, as an operator would call it."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from blur_artifact import write_blur_artifact
from sameguard.cli import _Group
from sameguard.cli.doctor import doctor_command
from sameguard.cli.score_log import score_log_command
from stand_ins import linear_victim, noise_images, smooth_images

RUNNER = CliRunner()
app = typer.Typer(cls=_Group)
app.command("score-log")(score_log_command)
app.command("doctor")(doctor_command)  # a second verb: with one alone, typer takes no verb


def call(*arguments: object):
    return RUNNER.invoke(app, ["score-log", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path:
    return write_blur_artifact(tmp_path_factory.mktemp("score-log") / "guard")


@pytest.fixture
def log(tmp_path) -> Path:
    queries = np.concatenate([smooth_images(30), noise_images(10)])
    np.savez(tmp_path / "queries.npz", inputs=queries, victim_probs=linear_victim().answer(queries))
    return tmp_path / "queries.npz"


def test_it_writes_the_rows_and_says_on_stderr_what_it_found(guard, log, tmp_path):
    done = call(guard, log, "--out", tmp_path / "scores.csv", "--batch-rows", 16)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    flagged = sum(line.split(",")[3] == "1" for line in (tmp_path / "scores.csv").read_text().splitlines()[1:])
    assert f"40 rows, {flagged} flagged ({flagged / 40:.2%} of 40 scored)" in lines[0]
    assert lines[0].endswith("scores.csv [local, onnxruntime-fp32]")
    assert lines[1].startswith("calibrated: score > ")
    assert "at most 5.00% of benign queries flagged" in lines[1]


def test_a_row_without_a_score_is_a_finding_unless_it_is_allowed(guard, tmp_path):
    good = {"inputs": smooth_images(1)[0].tolist(), "probs": [0.2, 0.3, 0.5]}
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(good)}\nnonsense\n")
    found = call(guard, tmp_path / "log.jsonl", "--out", tmp_path / "scores.jsonl")
    assert found.exit_code == 1
    assert "1 rows without a score, see column error; first: row 1: line must be strict JSON" in found.stderr
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2
    allowed = call(guard, tmp_path / "log.jsonl", "--out", tmp_path / "scores.jsonl", "--overwrite", "--allow-errors")
    assert allowed.exit_code == 0


def test_stage_a_alone_says_that_it_is(guard, log, tmp_path):
    done = call(guard, log, "--out", tmp_path / "scores.parquet", "--stage-a-only", "--rate", 0.2)
    assert done.exit_code == 0, done.output
    assert "40 rows by stage A alone" in done.stderr
    assert "calibrated:" not in done.stderr


def test_a_mistake_is_one_sentence_and_exit_code_2(guard, log, tmp_path):
    for arguments, message in (
        ((guard, log, "--out", tmp_path / "scores.txt"), "output must end in"),
        ((guard, tmp_path / "none.npz", "--out", tmp_path / "scores.csv"), "must name a file, a directory or a glob"),
        ((tmp_path / "none", log, "--out", tmp_path / "scores.csv"), "must hold a manifest.json"),
        ((guard, log, "--out", tmp_path / "scores.csv", "--rate", 0.0001), "needs at least 9999 calibration queries"),
        ((guard, log, "--out", tmp_path / "scores.csv", "--engine", "spark"), "engine must be local or ray"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2, done.output
        assert "error: " in done.output
        assert message in done.output


def test_the_help_has_the_example_that_runs(guard, log, tmp_path, monkeypatch):
    assert "sameguard score-log guard/ queries.jsonl --out scores.csv" in " ".join(call("--help").stdout.split())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard").symlink_to(guard)
    row = {"inputs": smooth_images(1)[0].tolist(), "probs": [0.2, 0.3, 0.5]}
    (tmp_path / "queries.jsonl").write_text(json.dumps(row) + "\n")
    assert call("guard/", "queries.jsonl", "--out", "scores.csv").exit_code == 0
