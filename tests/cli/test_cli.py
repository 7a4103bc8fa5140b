"""The verbs fit, calibrate, score and show, as a user would call them, on scikit-learn's digits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from sameguard.artifact import read_artifact
from sameguard.cli import app
from sameguard.detectors.export import to_onnx
from sameguard.networks import SmallConv
from sameguard.training import seeded

RUNNER = CliRunner()
SHORT = ["--epochs", "2", "--auxiliary-epochs", "3", "--batch-size", "256", "--precision", "fp32", "--engine", "onnxruntime"]


@pytest.fixture(scope="module")
def folder(victim, digits, tmp_path_factory) -> Path:
    """What an owner has: model.onnx, train.npz, benign.npz, queries.npz."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "model.onnx").write_bytes(to_onnx(victim.module, (1, 8, 8), "image", ["logits"]))
    np.savez(folder / "train.npz", inputs=digits.train.inputs, labels=digits.train.labels)
    np.savez(folder / "benign.npz", inputs=digits.benign)
    np.savez(folder / "queries.npz", inputs=(np.random.default_rng(0).random((50, 1, 8, 8)) < 0.5).astype(np.float32))
    return folder


def call(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def plain(output: str) -> str:
    """A table's text without its frame and line breaks."""
    return " ".join(output.replace("│", " ").split())


@pytest.fixture(scope="module")
def guard(folder) -> Path:
    done = call(
        "fit",
        "--victim",
        folder / "model.onnx",
        "--data",
        folder / "train.npz",
        "--benign",
        folder / "benign.npz",
        "--out",
        folder / "guard",
        *SHORT,
    )
    assert done.exit_code == 0, done.output
    assert "auxiliary agrees with the victim on" in done.output
    assert "at most 5.00% of benign queries flagged" in done.output
    return folder / "guard"


def test_fit_writes_a_calibrated_artefact_of_an_onnx_victim(guard):
    manifest = read_artifact(guard).manifest
    assert manifest["victim"]["output"] == "logits"
    assert manifest["thresholds"][0]["false_positive_rate"] == 0.05
    assert manifest["provider"]["engine"] == "onnxruntime"


def test_score_flags_noise_and_writes_every_row(guard, folder):
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", folder / "queries.npz", "--out", folder / "rows.csv", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["queries"] == 50
    assert summary["flagged"] > 45
    lines = (folder / "rows.csv").read_text().splitlines()
    assert lines[0].startswith("row,score,flagged,stage_a,error_full,error_masked")
    assert len(lines) == 51
    call("score", guard, "--victim", folder / "model.onnx", "--data", folder / "queries.npz", "--out", folder / "rows.npz", "--limit", 7)
    assert np.load(folder / "rows.npz")["score"].shape == (7,)


def test_a_place_that_cannot_be_written_is_one_sentence(guard, folder):
    (folder / "file").write_text("not a folder")
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", folder / "queries.npz", "--out", folder / "file" / "rows.csv")
    assert done.exit_code == 2
    assert "error: " in done.output
    assert "Traceback" not in done.output


def test_score_takes_another_rate_from_the_stored_scores(guard, folder):
    arguments = ("score", guard, "--victim", folder / "model.onnx", "--data", folder / "benign.npz", "--json")
    strict, loose = (json.loads(call(*arguments, "--rate", rate).stdout) for rate in (0.02, 0.3))
    assert strict["flagged"] < loose["flagged"]


def test_show_prints_what_the_artefact_is_and_promises(guard):
    done = call("show", guard)
    assert done.exit_code == 0
    for part in ("10 classes", "typicality", "at most 5.00%", "onnxruntime", "disjoint by digest"):
        assert part in plain(done.output), part
    assert json.loads(call("show", guard, "--json").stdout)["schema"] == 1


def test_calibrate_sets_another_rate(guard, folder):
    done = call(
        "calibrate", guard, "--victim", folder / "model.onnx", "--benign", folder / "benign.npz", "--rate", 0.1, "--engine", "onnxruntime"
    )
    assert done.exit_code == 0, done.output
    assert "at most 10.00%" in done.output
    assert read_artifact(guard).manifest["thresholds"][0]["false_positive_rate"] == 0.1


def test_calibrate_refuses_a_rate_that_the_data_cannot_support(guard, folder):
    done = call(
        "calibrate", guard, "--victim", folder / "model.onnx", "--benign", folder / "benign.npz", "--rate", 0.001, "--engine", "onnxruntime"
    )
    assert done.exit_code == 2
    assert "needs at least 999 calibration queries" in done.output


def test_calibrating_on_training_data_is_refused_or_names_the_bias(guard, folder, tmp_path):
    refused = call("calibrate", guard, "--victim", folder / "model.onnx", "--benign", folder / "train.npz", "--engine", "onnxruntime")
    assert refused.exit_code == 2
    assert "must not be training data" in refused.output
    biased = call(
        "calibrate",
        guard,
        "--victim",
        folder / "model.onnx",
        "--data",
        folder / "train.npz",
        "--from-training-data",
        "--engine",
        "onnxruntime",
    )
    assert biased.exit_code == 0, biased.output
    assert "warning: calibration uses the victim's own training data" in biased.output
    assert "biased" in biased.output
    assert read_artifact(guard).manifest["calibrated_on_training_data"] is True


def test_fit_without_benign_data_says_how_to_calibrate(folder, tmp_path):
    done = call("fit", "--victim", folder / "model.onnx", "--data", folder / "train.npz", "--out", tmp_path / "guard", *SHORT)
    assert done.exit_code == 0, done.output
    assert "Not calibrated" in done.output
    assert "sameguard calibrate" in done.output


def test_a_time_budget_stops_cleanly_and_resume_finishes(folder, tmp_path):
    arguments = (
        "fit",
        "--victim",
        folder / "model.onnx",
        "--data",
        folder / "train.npz",
        "--out",
        tmp_path / "guard",
        "--snapshot-epochs",
        "1,2",
        *SHORT,
    )
    stopped = call(*arguments, "--time-budget", 0)
    assert stopped.exit_code == 75, stopped.output
    assert "the time budget is spent" in stopped.output
    assert "--resume" in stopped.output
    assert not (tmp_path / "guard").exists()
    forgotten = call(*arguments)
    assert forgotten.exit_code == 2
    assert "go on with --resume" in forgotten.output
    resumed = call(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "guard" / "manifest.json").exists()
    snapshots = sorted((tmp_path / "guard.work").glob("autoencoder-epoch-*.safetensors"))
    assert [path.stem[-1] for path in snapshots] == ["1", "2"]
    assert not torch.equal(*(load_file(path)["head.weight"] for path in snapshots))


def test_python_objects_serve_as_victims(folder, tmp_path, monkeypatch, digits):
    (tmp_path / "owner_models.py").write_text(
        "import numpy as np\n"
        "import torch\n"
        "from sameguard import BlackBox, InputContract\n"
        "from sklearn.linear_model import LogisticRegression\n"
        f"data = np.load({str(folder / 'train.npz')!r})\n"
        "forest = LogisticRegression(max_iter=300).fit(data['inputs'].reshape(len(data['inputs']), -1), data['labels'])\n"
        "def labels(raw):\n    return forest.predict(raw.reshape(len(raw), -1))\n"
        "nothing = 3\n"
        "class Answer(torch.nn.Module):\n"
        "    def __init__(self, answer):\n        super().__init__()\n        self.answer = answer\n"
        "    def forward(self, batch):\n        return self.answer(batch)\n"
        "mapping = Answer(lambda batch: {'logits': batch.flatten(1)})\n"
        "failing = Answer(lambda batch: batch.no_such_method())\n"
        "box = BlackBox(forest.predict_proba, InputContract.images(1, 8, 8, layout='flat'), classes=10)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    common = ("--data", folder / "train.npz", "--benign", folder / "benign.npz", *SHORT)
    done = call("fit", "--victim", "owner_models:forest", "--out", "first", *common)
    assert done.exit_code == 0, done.output
    done = call("fit", "--victim", "owner_models:labels", "--classes", 10, "--output", "labels", "--out", "second", *common)
    assert done.exit_code == 0, done.output
    assert read_artifact("second").manifest["victim"]["output"] == "labels"
    assert "label-only" in plain(call("show", "second").output)
    for victim, message in (
        ("owner_models:labels", "give --classes"),
        ("owner_models:absent", "could not be imported"),
        ("owner_models:nothing", "must be a torch module"),
        ("no_such_module:x", "could not be imported"),
        ("model", "must be model.onnx, package.module:object or http://host:port"),
        ("missing.onnx", "must exist"),
        ("owner_models:mapping", "must return one tensor (batch, classes), got dict"),
        ("owner_models:failing", "must take a batch of shape (1, 1, 8, 8), got AttributeError"),
    ):
        done = call("fit", "--victim", victim, "--out", "third", *common)
        assert done.exit_code == 2, done.output
        assert message in done.output, done.output
    for victim, flags, message in (
        ("owner_models:box", ("--output", "labels"), "declares probs, got --output labels"),
        ("owner_models:box", ("--classes", 3), "declares 10, got --classes 3"),
        ("owner_models:box", ("--layout", "NCHW"), "make them agree"),
        ("owner_models:forest", ("--classes", 3), "must be what victim owner_models:forest was fitted on, 10, got 3"),
        ("owner_models:forest", ("--output", "logits"), "must be probs or labels, got 'logits'"),
        ("owner_models:forest", ("--mean", "1,2", "--std", "1,2"), "--mean must be one number or one for each of 1 channels, got 2"),
    ):
        done = call("fit", "--victim", victim, "--out", "third", *common, *flags)
        assert done.exit_code == 2, done.output
        assert message in done.output, done.output


def test_a_swapped_victim_and_another_output_are_noticed(guard, folder, tmp_path, digits, monkeypatch):
    with seeded(5):
        stranger = SmallConv(10)
    (tmp_path / "stranger.onnx").write_bytes(to_onnx(stranger, (1, 8, 8), "image", ["logits"]))
    done = call("score", guard, "--victim", tmp_path / "stranger.onnx", "--data", folder / "queries.npz")
    assert done.exit_code == 2
    assert "must answer as it did at calibration" in done.output
    for verb, data in (("score", "--data"), ("calibrate", "--benign")):
        done = call(verb, guard, "--victim", folder / "model.onnx", data, folder / "benign.npz", "--output", "probs")
        assert done.exit_code == 2
        assert "--output must be logits, what the artefact was fitted for, got probs" in done.output


def test_benign_queries_that_are_training_data_are_refused_before_training(folder, tmp_path):
    done = call(
        "fit", "--victim", folder / "model.onnx", "--data", folder / "train.npz", "--benign", folder / "train.npz", "--out", tmp_path / "g",
        *SHORT,
    )  # fmt: skip
    assert done.exit_code == 2
    assert "benign queries must not be training data" in done.output
    assert not (tmp_path / "g.work").exists()


def test_a_flat_folder_of_images_is_scored_and_resized(guard, folder, tmp_path, digits):
    for row, image in enumerate(digits.test.raw[:20]):
        pixels = np.rint(np.asarray(image[0], np.float32) * (255 if image.dtype != np.uint8 else 1)).astype(np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(tmp_path / f"{row}.png")
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", tmp_path, "--size", 8, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["queries"] == 20
    shown = call("data", "show", tmp_path, "--size", 8, "--json")
    assert json.loads(shown.stdout)["train"] == {"inputs": 20, "shape": [1, 8, 8], "classes": 0}
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", folder / "queries.npz", "--size", 8)
    assert done.exit_code == 2
    assert "--size resizes a folder of images" in done.output


def test_named_data_and_a_held_out_share_calibrate(folder, tmp_path):
    done = call("fit", "--victim", folder / "model.onnx", "--data", "digits", "--held-out", 0.3, "--out", tmp_path / "guard", *SHORT)
    assert done.exit_code == 0, done.output
    roles = read_artifact(tmp_path / "guard").manifest["roles"]
    assert roles["statistics"] + roles["calibration"] + roles["train"] <= 1797
    again = call(
        "calibrate", tmp_path / "guard", "--victim", folder / "model.onnx", "--data", "digits", "--held-out", 0.3, "--engine", "onnxruntime"
    )
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--data", "nowhere"), "must be a known name"),
        (("--held-out", "1.5"), r"must be in [0, 1)"),
        (("--preset", "fast"), "preset must be one of"),
        (("--precision", "fp8"), "precision must be auto, fp32 or bf16"),
        (("--rate", "0.0001"), "serve as statistics"),
        (("--engine", "tensorrt"), "engine must be auto"),
        (("--snapshot-epochs", "a"), "must be comma-separated whole numbers"),
        (("--share", "trunk"), "share trunk needs a TorchVictim"),
        (("--patch-size", "9"), "patch_size must be in"),
        (("--mean", "a,b", "--std", "1"), "must be comma-separated numbers"),
    ],
)
def test_bad_settings_end_in_one_sentence_and_exit_code_2(folder, tmp_path, changes, message):
    benign = () if "--held-out" in changes else ("--benign", folder / "benign.npz")
    done = call(
        "fit", "--victim", folder / "model.onnx", "--data", folder / "train.npz", *benign, "--out", tmp_path / "guard", *SHORT, *changes
    )
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "guard").exists()


def test_an_output_directory_with_content_is_kept(folder, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    done = call("fit", "--victim", folder / "model.onnx", "--data", folder / "train.npz", "--out", tmp_path, *SHORT)
    assert done.exit_code == 2
    assert "must be new or empty" in done.output
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_score_refuses_data_of_another_shape_and_an_edited_artefact(guard, folder, tmp_path):
    np.savez(tmp_path / "wide.npz", inputs=np.zeros((3, 1, 9, 9), np.float32))
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", tmp_path / "wide.npz")
    assert done.exit_code == 2
    assert "query shape must be" in done.output
    content = bytearray((guard / "auxiliary.onnx").read_bytes())
    content[100] ^= 1
    (guard / "auxiliary.onnx").write_bytes(content)
    done = call("score", guard, "--victim", folder / "model.onnx", "--data", folder / "queries.npz")
    assert done.exit_code == 2
    assert "it was truncated or edited" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "{folder}/train.npz/guard"), "must be or lie below a directory, got the file"),
        (("--out", "{folder}/train.npz"), "must be or lie below a directory, got the file"),
        (("--out", "{tmp}/g", "--work", "{folder}/train.npz/w"), "--work"),
        (("--out", "{tmp}/g", "--time-budget", "nan"), "--time-budget must be a number of seconds from 0 on, got nan"),
        (("--out", "{tmp}/g", "--checkpoint-seconds", "-1"), "--checkpoint-seconds must be a number of seconds from 0 on, got -1"),
    ],
)
def test_fit_refuses_before_training_what_it_could_not_write_or_wait_for(folder, tmp_path, options, said):
    filled = [str(option).format(folder=folder, tmp=tmp_path) for option in options]
    done = call("fit", "--victim", folder / "model.onnx", "--data", folder / "train.npz", *filled)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "g").exists()
