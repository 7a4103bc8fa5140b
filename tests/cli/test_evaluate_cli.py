"""The verbs attack, evaluate and report, as a user would call them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.calibration import calibrate
from sameguard.cli import app
from sameguard.detectors.export import to_onnx

RUNNER = CliRunner()


def call(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(victim, digits, tmp_path_factory) -> Path:
    """What a thief and an owner have: model.onnx, test.npz, seeds.npz, proxy.npz."""
    folder = tmp_path_factory.mktemp("thief")
    (folder / "model.onnx").write_bytes(to_onnx(victim.module, (1, 8, 8), "image", ["logits"]))
    np.savez(folder / "test.npz", inputs=digits.test.inputs, labels=digits.test.labels)
    np.savez(folder / "seeds.npz", inputs=digits.benign[:60])
    np.savez(folder / "proxy.npz", inputs=digits.benign[60:])
    return folder


def attack(folder, name, *more, budget=80):
    return call("attack", name, "--victim", folder / "model.onnx", "--test", folder / "test.npz", "--budget", budget, "--epochs", 3, *more)


def test_an_attack_prints_what_it_cost_and_how_good_the_copy_is_and_keeps_its_queries(folder):
    done = attack(folder, "knockoff", "--proxy", folder / "proxy.npz", "--save-queries", folder / "stolen.npz")
    assert done.exit_code == 0, done.output
    assert "knockoff: 80 of 80 queries spent" in done.stdout
    assert "fidelity of the copy" in done.stdout
    assert "accuracy of the victim" in done.stdout
    with np.load(folder / "stolen.npz") as stolen:
        assert stolen["inputs"].shape == (80, 1, 8, 8)
        assert stolen["victim_probs"].shape == (80, 10)
        assert stolen["answered"].all()


def test_an_attack_goes_on_from_its_ledger_with_options_and_as_json(folder):
    given = (
        "--seeds",
        folder / "seeds.npz",
        "--seed-count",
        20,
        "--set",
        "step=0.05",
        "--set",
        "direction=loss",
        "--ledger",
        folder / "j.ledger",
        "--json",
    )
    first = attack(folder, "jbda", *given)
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert (found["used"], found["answered"], found["notes"]["step"], found["notes"]["direction"]) == (80, 80, 0.05, "loss")
    size = (folder / "j.ledger").stat().st_size
    again = json.loads(attack(folder, "jbda", *given).stdout)
    timed = ("seconds", "finished", "peak_memory_mib")
    assert {name: again[name] for name in again if name not in timed} == {name: found[name] for name in found if name not in timed}
    assert (folder / "j.ledger").stat().st_size == size
    other = attack(folder, "jbda", *given, "--seed", 1)
    assert other.exit_code == 2
    assert "must be replayed by the attack that it was written for" in other.output


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("theft", (), "attack must be one of noise, knockoff"),
        ("knockoff", (), "attack knockoff needs proxy, got none"),
        ("noise", ("--set", "kind"), "--set must be NAME=VALUE, got 'kind'"),
        ("noise", ("--set", "width=3"), "attack noise takes the options kind, got width"),
        ("noise", ("--labels", "rough"), "labels must be soft or hard, got 'rough'"),
    ],
)
def test_what_an_attack_cannot_do_is_one_sentence_and_exit_code_2(folder, name, more, sentence):
    done = attack(folder, name, *more)
    assert done.exit_code == 2
    assert sentence in done.output


def test_a_budget_below_the_seeds_is_refused(folder):
    done = attack(folder, "jbda", "--seeds", folder / "seeds.npz", "--seed-count", 20, budget=10)
    assert done.exit_code == 2
    assert "budget must cover the seeds" in done.output


def test_an_attack_can_be_sent_against_a_guard(folder, fitted_same, digits, victim, tmp_path):
    scorer = fitted_same.export(tmp_path / "guard")
    scorer.save(calibrate(scorer, digits.benign, victim))
    done = attack(folder, "noise", "--guard", tmp_path / "guard", "--set", "kind=bernoulli", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["used"] == 80
    assert found["answered"] < 8


def test_a_plan_can_be_listed_without_running_it(tmp_path):
    done = call("evaluate", "--scale", "cpu", "--table", "1", "--figure", "6", "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "table-1-mnist" in done.stdout
    assert "figure-6-mnist" in done.stdout
    assert "table-2" not in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--scale", "huge"), "scale must be one of tiny, cpu, paper, got 'huge'"),
        (("--table", "7"), "table or figure at scale tiny must be one of"),
        (("--figure", "3"), "got 'figure-3'"),
    ],
)
def test_an_impossible_order_is_one_sentence_and_exit_code_2(tmp_path, arguments, sentence):
    done = call("evaluate", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert not (tmp_path / "out").exists()


def test_missing_data_are_named_with_the_remedy_and_the_exit_code_is_1(tmp_path):
    done = call("evaluate", "--scale", "cpu", "--figure", "7", "--data-root", tmp_path, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 1
    (made,) = json.loads(done.stdout)
    assert made["result"] is None
    assert "sameguard data fetch mnist" in done.stderr


def test_a_spent_time_budget_is_exit_code_75_and_nothing_is_lost(tmp_path):
    done = call("evaluate", "--out", tmp_path / "out", "--time-budget", "0")
    assert done.exit_code == 75
    assert "The same command goes on from there." in done.output
    assert (tmp_path / "out" / "laboratory.json").exists()


def test_report_on_an_empty_or_missing_folder_says_so(tmp_path):
    for target in (tmp_path, tmp_path / "nowhere"):
        done = call("report", target)
        assert done.exit_code == 2
        assert "must hold laboratory.json, got none: run sameguard evaluate" in done.output
