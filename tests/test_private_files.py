"""What is written of a defence is for its owner only, whatever the umask: the artefact, answers that were paid for, scores of many queries."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from blur_artifact import write_blur_artifact
from sameguard.artifact import read_artifact, update_artifact, write_artifact
from sameguard.cli import app
from sameguard.cli.fit import _make_work
from sameguard.ledger import Ledger
from sameguard.runtime.query_log import score_log
from sameguard.server.doctor.deployment import _mode_of
from stand_ins import IMAGES, EchoEndpoint, linear_victim, smooth_images

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs file modes")
PLAIN = {"sameguard": "0.1", "contract": {}, "classes": 3, "score": {}, "views": [], "auxiliary": {"view": "full"}}
VICTIM = linear_victim()  # what `--victim test_private_files:VICTIM` names


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The one that lets everybody read what a user writes."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> set[int]:
    return {mode(path) for path in folder.iterdir()}


def test_an_artefact_is_its_owners_when_written_replaced_and_changed(tmp_path):
    folder = tmp_path / "new" / "guard"
    write_artifact(folder, PLAIN, {"auxiliary.onnx": b"graph"})
    assert (mode(folder), modes(folder)) == (0o700, {0o600})
    folder.chmod(0o755)
    (folder / "manifest.json").chmod(0o644)
    update_artifact(folder, read_artifact(folder).manifest, {"scores": np.arange(3.0)})
    assert modes(folder) == {0o600}
    write_artifact(folder, PLAIN, {"auxiliary.onnx": b"another"}, overwrite=True)
    assert (mode(folder), modes(folder)) == (0o700, {0o600})


def test_nobody_can_read_an_artefacts_file_while_it_is_being_written(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.fsync", lambda descriptor: seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    write_artifact(tmp_path / "guard", PLAIN, {"auxiliary.onnx": b"graph"})
    assert seen == [0o600, 0o600]


def test_doctor_has_nothing_to_say_of_a_calibrated_artefact(tmp_path):
    folder = write_blur_artifact(tmp_path / "guard")
    assert _mode_of("artefact files", list(folder.glob("*")), "").verdict == "ok"


def test_a_ledger_is_its_owners(tmp_path):
    path = tmp_path / "answers" / "kept.ledger"
    Ledger(EchoEndpoint(IMAGES), path).query(smooth_images(3))
    assert mode(path) == 0o600


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".npz", ".parquet"])
def test_scores_of_a_log_are_their_owners_while_they_are_written_and_afterwards(tmp_path, monkeypatch, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = write_blur_artifact(tmp_path / "guard")
    np.savez(tmp_path / "log.npz", inputs=smooth_images(4))
    seen, replace = [], os.replace
    monkeypatch.setattr("os.replace", lambda old, new: (seen.append(mode(Path(old))), replace(old, new)))
    score_log(folder, str(tmp_path / "log.npz"), tmp_path / "out" / f"scores{suffix}")
    assert (seen, mode(tmp_path / "out" / f"scores{suffix}")) == ([0o600], 0o600)


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_scores_of_queries_are_their_owners(tmp_path, monkeypatch, suffix):
    folder = write_blur_artifact(tmp_path / "guard")
    np.savez(tmp_path / "queries.npz", inputs=smooth_images(4))
    out = tmp_path / f"scores{suffix}"
    arguments = ["score", folder, "--victim", "test_private_files:VICTIM", "--data", tmp_path / "queries.npz", "--out", out]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert mode(out) == 0o600


def test_the_work_of_a_fit_lies_where_only_its_owner_goes(tmp_path):
    _make_work(tmp_path / "deep" / "guard.work")
    assert mode(tmp_path / "deep" / "guard.work") == 0o700
    _make_work(tmp_path / "deep" / "guard.work")  # resumed: no warning


def test_a_work_directory_that_others_can_read_keeps_its_mode_with_a_warning(tmp_path):
    (tmp_path / "shared").mkdir()
    with pytest.warns(UserWarning, match=r"shared can be read by others than its owner, .*: chmod 700"):
        _make_work(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o755
