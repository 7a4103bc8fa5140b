"""`sameguard show`: what a proof of work would cost at this artefact's calibrated levels, or why it cannot be had."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.artifact import read_artifact
from sameguard.calibration import calibrate
from sameguard.cli import app
from sameguard.policies import ProofOfWork
from sameguard.runtime import Scorer, engines
from sameguard.server.demo_server import demo_folder


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


@pytest.fixture
def bundled(tmp_path) -> Path:
    """A copy of the demonstration's artefact, which comes without training weights."""
    with demo_folder() as folder:
        shutil.copytree(folder / "artefact", tmp_path / "artefact")
    return tmp_path / "artefact"


def test_the_bundled_artefact_is_shown_and_says_what_was_left_out_of_it(bundled):
    assert "weights.safetensors" not in read_artifact(bundled).manifest["files"]
    output = " ".join(show(bundled).replace("│", " ").split())
    assert "left out: it serves and can be calibrated again, but its networks cannot be trained further" in output
    assert "at most 5.00% of benign queries flagged" in output
    assert f"artifact_digest: {read_artifact(bundled).manifest['sha256']}" in output  # whole, to be pinned


def test_a_whole_artefact_says_nothing_of_weights_that_are_left_out(artifact_directory):
    assert "left out" not in show(artifact_directory)


@pytest.mark.parametrize("name", ["reconstruction.onnx", "auxiliary.onnx", "benign.npz"])
def test_a_listed_file_that_is_missing_or_was_edited_is_not_shown(bundled, name):
    path = bundled / name
    whole = path.read_bytes()
    for content, sentence in ((None, "is named in the manifest and missing"), (whole + b"x", "it was truncated or edited")):
        path.unlink() if content is None else path.write_bytes(content)
        done = CliRunner().invoke(app, ["show", str(bundled)])
        assert done.exit_code == 2
        assert sentence in done.output


def test_a_manifest_from_which_a_file_was_struck_is_not_shown(bundled):
    manifest = json.loads((bundled / "manifest.json").read_text())
    del manifest["files"]["benign.npz"]
    (bundled / "manifest.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, ["show", str(bundled)])
    assert done.exit_code == 2
    assert "it was edited" in done.output
