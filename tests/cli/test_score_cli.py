"""`sameguard score` on an artefact without training: what it prints, and a victim's file that is not there."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from blur_artifact import write_blur_artifact
from sameguard.cli import app
from sameguard.runtime import Scorer
from stand_ins import linear_victim, noise_images

VICTIM = linear_victim()  # what `--victim test_score_cli:VICTIM` names


@pytest.fixture
def guard(tmp_path) -> Path:
    np.savez(tmp_path / "queries.npz", inputs=noise_images(20))
    return write_blur_artifact(tmp_path / "guard")


def call(guard: Path, victim: str):
    arguments = ["score", str(guard), "--victim", victim, "--data", str(guard.parent / "queries.npz")]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def test_the_table_is_followed_by_what_the_threshold_promises(guard):
    done = call(guard, "test_score_cli:VICTIM")
    assert done.exit_code == 0, done.output
    assert "median" in done.output
    assert done.stdout.splitlines()[-1] == str(Scorer(guard).threshold())
    assert "…" not in done.output


def test_a_victims_file_that_is_not_there_is_named_in_one_sentence(guard):
    done = call(guard, "nowhere/model.onnx")
    assert done.exit_code == 2
    assert "error: victim file nowhere/model.onnx must exist, got none at /" in done.output
