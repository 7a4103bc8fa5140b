"""A shortened `sameguard demo`: everything it promises is written, and its numbers fit together."""

import json
import warnings

import pytest
import torch
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from sameguard import Scorer
from sameguard.calibration import WeakAuxiliaryWarning, beta_interval, clopper_pearson
from sameguard.cli.demo import demo_command
from sameguard.errors import ConfigurationError
from sameguard.evaluation import demo as demo_module
from sameguard.evaluation.demo import DemoConfig, run_demo
from sameguard.reconstruction import MAEConfig
from sameguard.training import FitConfig

SHORT = FitConfig(epochs=6, batch_size=64, learning_rate=2e-3, precision="fp32")
SMALL = MAEConfig((1, 8, 8), 2, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
CONFIG = DemoConfig(
    seed=1, budget=120, victim=SHORT, fit=SHORT.with_(epochs=10), auxiliary=SHORT, autoencoder=SMALL, substitute=SHORT.with_(epochs=40)
)


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory, events):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakAuxiliaryWarning)  # two epochs make no good autoencoder
        return run_demo(tmp_path_factory.mktemp("demo") / "out", CONFIG, events.append)


def test_the_digits_are_all_used_and_the_promise_is_the_calibration_s(result):
    assert result.train + result.benign + result.test == 1797
    assert result.promised_rate == 0.05
    k = int(0.05 * (result.calibration_n + 1))
    assert result.promised_interval == pytest.approx(beta_interval(k, result.calibration_n))
    assert result.false_positive_rate == result.false_positives / result.test
    assert result.false_positive_interval == pytest.approx(clopper_pearson(result.false_positives, result.test))


def test_the_thief_pays_the_same_with_and_without_the_guard(result):
    assert result.open.used == result.guarded.used == result.open.answered == result.n_pos == 120
    assert 0 <= result.guarded.answered <= 120
    assert result.n_neg == result.test


def test_the_victim_learned_and_the_open_thief_too(result):
    assert result.victim_accuracy > 0.85
    assert result.open.fidelity > 0.3
    low, high = result.auroc_interval
    assert 0 <= low <= result.auroc <= high <= 1


def test_the_artefact_can_be_served_with_the_threshold_that_was_shown(result):
    scorer = Scorer(result.artefact)
    assert scorer.threshold().false_positive_rate == result.promised_rate
    assert scorer.threshold().n == result.calibration_n


def test_the_picture_is_one_of_a_size_that_can_be_read(result):
    assert result.picture.is_absolute()
    with Image.open(result.picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 800


def test_every_stage_reports_its_progress_to_its_end(result, events):
    last = {event.stage: event for event in events}
    assert list(last) == [
        "victim", "autoencoder", "answers", "reconstructions", "auxiliary", "export", "calibration",
        "thief, no guard", "thief, guarded", "evaluation", "picture",
    ]  # fmt: skip
    assert all(event.step == event.steps for event in last.values())
    assert set(last) == set(result.seconds)


def test_the_thread_setting_of_the_caller_is_put_back(result, monkeypatch):
    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(demo_module, "_run", lambda *_: seen.append(torch.get_num_threads()) or result)
    run_demo("unused")
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_the_command_prints_one_table_and_says_what_it_is(result, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(demo_module, "run_demo", lambda out, config, progress: asked.append((out, config)) or result)
    app = Typer()
    app.command()(demo_command)
    printed = CliRunner().invoke(app, ["--out", str(tmp_path), "--seed", "5"], terminal_width=160)
    assert printed.exit_code == 0
    assert asked == [(tmp_path, DemoConfig(seed=5))]
    assert "victim accuracy" in printed.stdout
    assert str(result.picture) in printed.stdout
    assert "not how good SAME is" in printed.stdout
    as_json = CliRunner().invoke(app, ["--json"])
    assert json.loads(as_json.stdout) == json.loads(json.dumps(result.to_json()))


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="budget must be at least 1 query, got 0"):
        DemoConfig(budget=0)
