"""`sameguard show`: what a proof of work would cost at this artefact's calibrated levels, or why it cannot be had."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.calibration import calibrate
from sameguard.cli import app
from sameguard.policies import ProofOfWork
from sameguard.runtime import Scorer, engines


def show(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["show", *map(str, arguments)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def calibrated(artifact_directory, victim, digits, tmp_path):
    """Makes a copy of the artefact, calibrated on so many benign queries by this engine."""

    def make(queries: np.ndarray, engine: str = "onnxruntime") -> Path:
        folder = tmp_path / "guard"
        shutil.copytree(artifact_directory, folder)
        scorer = Scorer(folder, engine=engine, for_calibration=True)
        scorer.save(calibrate(scorer, queries, victim, 0.1))
        return folder

    return make


def test_levels_and_their_price_are_those_of_the_policy(calibrated, digits):
    folder = calibrated(digits.benign)
    levels = ProofOfWork(Scorer(folder).calibration).describe()
    output = show(folder)
    assert "proof of work, ARGON2ID at 0.01 s a try on one core" in output
    for level in levels:
        low, high = level.interval
        row = next(line for line in output.splitlines() if line.startswith(f"│ {level.level} "))
        for part in (f"{level.benign_share:.2%}", f"{low:.2%} to {high:.2%}", f" {level.work} ", f"{level.worst_seconds:.3g} s"):
            assert part in row
    stored = json.loads(show(folder, "--json"))
    assert stored["proof_of_work"]["puzzle"]["algorithm"] == "ARGON2ID"
    assert [(level["level"], level["work"], level["expected_seconds"]) for level in stored["proof_of_work"]["levels"]] == [
        (level.level, level.work, level.expected_seconds) for level in levels
    ]
    assert stored["schema"] == 1  # the manifest, as before


def test_a_calibration_that_is_too_small_says_how_many_queries_levels_need(calibrated, digits):
    folder = calibrated(digits.benign[:150])
    wanted = "needs at least 99 calibration queries, got 75"
    assert wanted in " ".join(show(folder).replace("│", " ").split())
    stored = json.loads(show(folder, "--json"))["proof_of_work"]
    assert stored["levels"] == []
    assert wanted in stored["why_not"]


def test_an_artefact_without_calibration_has_no_price(artifact_directory):
    assert "not calibrated yet: sameguard calibrate" in show(artifact_directory)
    assert json.loads(show(artifact_directory, "--json"))["proof_of_work"]["levels"] == []


def test_an_artefact_of_an_engine_that_is_not_here_is_shown_all_the_same(calibrated, digits, monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    folder = calibrated(digits.benign, "openvino")
    assert "at worst" in show(folder)
    monkeypatch.setattr(engines, "available_providers", lambda: [engines.REFERENCE])
    output = show(folder)
    assert "at most 10.00% of benign queries flagged" in output
    assert "bound to an engine that is not installed here" in output
