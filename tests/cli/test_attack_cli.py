"""The verb attack beyond the plain theft: options, networks, copies of the guard, victims that die, where numbers come from, own attacks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.calibration import calibrate
from sameguard.cli import app
from sameguard.data.folders import read_arrays
from sameguard.detectors.export import to_onnx

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import numpy as np
import torch

net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
frozen = torch.nn.Bilinear(2, 2, 2)
weights = np.random.default_rng(0).normal(size=(64, 10))
asked = []
left = 10**9
error = RuntimeError("out of memory")


def mortal(raw):
    global left
    left -= len(raw)
    if left < 0:
        raise error
    asked.append(len(raw))
    logits = raw.reshape(len(raw), -1) @ weights
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def wide(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, classes))


def none():
    return "no network"


class Idle:
    pass


class Silent:
    def __init__(self, substitute, budget):
        pass

    def run(self, endpoint, seed):
        return None
"""


def call(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def said(done) -> str:
    return " ".join(done.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def owned(victim, digits, tmp_path_factory) -> Path:
    """What a thief has: model.onnx, test.npz, seeds.npz, proxy.npz."""
    folder = tmp_path_factory.mktemp("belongings")
    (folder / "model.onnx").write_bytes(to_onnx(victim.module, (1, 8, 8), "image", ["logits"]))
    np.savez(folder / "test.npz", inputs=digits.test.inputs[:60], labels=digits.test.labels[:60])
    np.savez(folder / "seeds.npz", inputs=digits.benign[:60])
    np.savez(folder / "proxy.npz", inputs=digits.benign[60:])
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with victims.py and own_attack.py, freshly imported by whoever asks."""
    (tmp_path / "victims.py").write_text(MODULE)
    shutil.copy(ROOT / "examples" / "own_attack.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("victims", "own_attack"):
        sys.modules.pop(name, None)


def attack(owned, name, *more, victim=None, budget=40):
    given = ("--test", owned / "test.npz", "--proxy", owned / "proxy.npz", "--budget", budget, "--epochs", 1)
    return call("attack", name, "--victim", victim or owned / "model.onnx", *given, *more)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "setting", "sentence"),
    [
        ("jbda", "step=abc", "option step of attack jbda must be a finite number, got 'abc': leave it out for 0.1"),
        ("jbda", "step=nan", "option step of attack jbda must be a finite number, got 'nan'"),
        ("jbda", "step=1e999", "must be a finite number, got '1e999'"),
        ("jbda", "step=True", "must be a finite number, got 'True'"),
        ("jbda", "step=-0.1", "step must be positive, got -0.1"),
        ("jbda", "reservoir=2.5", "option reservoir of attack jbda must be a whole number or None, got '2.5'"),
        ("jbda", "direction=3", "direction must be jacobian or loss and of prob or logit, got '3'"),
        ("dfme", "batch_size=x", "option batch_size of attack dfme must be a whole number, got 'x': leave it out for 256"),
        ("dfme", "batch_size=", "must be a whole number, got ''"),
        ("dfme", "batch_size=-1", "batch_size must be at least 1, got -1"),
        ("dfme", "width=3", "takes the options probe_step, probes, batch_size, keep, got width: sameguard attack --list tells them"),
        ("knockoff", "disguise=wig", "disguise must be blur, median, jpeg or levels, got 'wig'"),
        ("knockoff", "disguise=levels", "disguise levels needs seeds, natural images whose grey levels are copied, got none: add --seeds"),
        ("copycat", "labels=soft", "attack copycat takes the options none, got labels"),
    ],
)
def test_an_option_that_is_wrong_is_one_sentence_and_exit_code_2(owned, here, name, setting, sentence):
    seeds = ("--seeds", owned / "seeds.npz", "--seed-count", 20) if name == "jbda" else ()
    done = attack(owned, name, "--set", setting, *seeds)
    assert done.exit_code == 2, done.output
    assert sentence in said(done)


def test_an_option_given_twice_is_refused(owned, here):
    done = attack(owned, "noise", "--set", "kind=uniform", "--set", "kind=bernoulli")
    assert done.exit_code == 2
    assert "--set must give each option once, got kind twice" in done.output


def test_the_list_has_every_attack_with_its_needs_and_options_within_80_columns():
    done = RUNNER.invoke(app, ["attack", "--list"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    for word in ("knockoff-filtered", "--copy", "--seeds", "probe_step=0.001", "flip_every=5", "package.module:Class", "signed descent"):
        assert word in done.output
    assert max(map(len, done.output.splitlines())) <= 80


# ---------------------------------------------------------------------- what a thief lacks or brings


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("knockoff", "attack knockoff needs proxy, got none: add --proxy NAME|PATH."),
        ("jbda", "attack jbda needs seeds, got none: add --seeds NAME|PATH."),
        ("knockoff-filtered", "attack knockoff-filtered needs proxy and score, got none: add --proxy NAME|PATH and --copy ARTIFACT."),
    ],
)
def test_what_is_lacking_is_told_as_the_option_to_add(owned, here, name, sentence):
    done = call("attack", name, "--victim", owned / "model.onnx", "--test", owned / "test.npz", "--budget", 40)
    assert done.exit_code == 2
    assert sentence in said(done)


@pytest.fixture(scope="module")
def guard(fitted_same, digits, victim, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "guard"
    scorer = fitted_same.export(folder)
    scorer.save(calibrate(scorer, digits.benign, victim))
    return folder


@pytest.mark.parametrize("name", ["knockoff-filtered", "knockoff-projected"])
def test_a_thief_who_knows_the_guard_has_a_copy_of_its_artefact(owned, here, guard, name):
    against_it = attack(owned, name, "--guard", guard, "--json")
    assert against_it.exit_code == 0, against_it.output
    found = json.loads(against_it.stdout)
    assert found["used"] == 40
    open_victim = attack(owned, name, "--copy", guard, "--json", "--save-queries", here / "known.npz")
    assert json.loads(open_victim.stdout)["answered"] == 40
    if name == "knockoff-filtered":
        assert found["notes"]["proxy_rows"] == len(np.load(owned / "proxy.npz")["inputs"])
        assert found["answered"] > 20  # what the copy lets through, the guard lets through
    else:
        sent = np.load("known.npz")["inputs"]
        np.testing.assert_array_equal(np.rint(sent * 255) / np.float32(255), sent)  # the thief's pictures lie on the grid


def test_a_copy_of_another_guard_or_one_that_cannot_rank_is_refused(owned, here, guard, fitted_same):
    fitted_same.export(here / "raw")
    done = attack(owned, "knockoff-filtered", "--copy", here / "raw")
    assert done.exit_code == 2
    assert "copy of the detector must be calibrated to rank queries" in said(done)
    np.savez(here / "small.npz", inputs=np.random.default_rng(0).integers(0, 255, (60, 1, 4, 16), dtype=np.uint8))
    given = ("--victim", "victims:mortal", "--classes", 10, "--test", here / "small.npz", "--proxy", here / "small.npz", "--budget", 5)
    done = call("attack", "knockoff-filtered", *given, "--copy", guard)
    assert done.exit_code == 2
    assert "--copy must be of the victim's inputs (1, 4, 16) and 10 classes, got (1, 8, 8) and 10" in said(done)


# ---------------------------------------------------------------------- the network that the thief trains


def test_the_substitute_of_a_torch_victim_has_its_architecture_and_others_are_told_why_not(owned, here):
    done = attack(owned, "noise", "--json", victim="victims:net")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["substitute"] == "Sequential, the victim's architecture"
    done = attack(owned, "noise", "--json")
    assert json.loads(done.stdout)["substitute"] == "SmallConv, the default for its input: the victim does not show its architecture"


@pytest.mark.parametrize("spec", ["SmallConv", "victims:wide", "victims:net"])
def test_the_substitute_can_be_named(owned, here, spec):
    done = attack(owned, "noise", "--substitute", spec, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["substitute"].startswith(spec)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("resnet", "substitute must be one of MLP, SmallConv, Conv3, FastCifar, ResNet18, or package.module:factory, got 'resnet'"),
        ("MLP", "substitute MLP takes vectors, got queries of shape (1, 8, 8)"),
        ("Conv3", "substitute Conv3 takes square images of at least 16 pixels, got queries of shape (1, 8, 8)"),
        ("victims:none", "substitute victims:none must make a torch module, got str"),
        ("victims:weights", "substitute victims:weights must be a torch module, or a function that makes one"),
        ("victims:lost", "substitute victims:lost could not be imported: AttributeError"),
        ("victims:frozen", "substitute must take queries of shape (1, 8, 8), got TypeError from Bilinear"),
    ],
)
def test_a_substitute_that_does_not_suit_is_one_sentence(owned, here, spec, sentence):
    done = attack(owned, "noise", "--substitute", spec)
    assert done.exit_code == 2, done.output
    assert sentence in said(done)


# ---------------------------------------------------------------------- victims that die


def dying(owned, here, *more):
    given = ("--proxy", owned / "proxy.npz", "--test", owned / "test.npz", "--budget", 200, "--epochs", 1)
    return call("attack", "knockoff", "--victim", "victims:mortal", "--classes", 10, *given, *more)


def test_what_a_dying_victim_answered_is_kept_without_being_asked_and_the_same_command_goes_on(owned, here):
    import victims

    victims.left = 140
    died = dying(owned, here)
    assert died.exit_code == 2
    assert "out of memory" in said(died)
    (kept,) = here.glob("sameguard-attack-*.ledger")
    assert f"128 answers are kept in {kept}: the same command goes on from there." in said(died)
    victims.left = 10**9
    victims.asked.clear()
    done = dying(owned, here, "--json")
    assert done.exit_code == 0, done.output
    assert "128 answers are in" in done.stderr
    assert json.loads(done.stdout)["answered"] == 200
    assert sum(victims.asked) == 72 + 60  # the rest of the budget, and the test inputs
    assert not list(here.glob("*.ledger"))


def test_another_attack_does_not_meet_the_kept_answers(owned, here):
    import victims

    victims.left = 140
    dying(owned, here)
    victims.left = 10**9
    other = dying(owned, here, "--seed", 1, "--json")
    assert other.exit_code == 0, other.output
    assert len(list(here.glob("*.ledger"))) == 1  # the first one's, still


def test_kept_answers_lie_beside_the_saved_queries_and_a_named_ledger_stays(owned, here):
    import victims

    victims.left = 140
    died = dying(owned, here, "--save-queries", here / "out" / "stolen.npz")
    assert "128 answers are kept in" in said(died)
    assert len(list((here / "out").glob("*.ledger"))) == 1
    victims.left = 10**9
    assert dying(owned, here, "--ledger", here / "mine.ledger").exit_code == 0
    assert (here / "mine.ledger").exists()
    assert not list(here.glob("sameguard-*.ledger"))


def test_an_interrupted_attack_keeps_what_was_answered_and_ends_with_130(owned, here):
    import victims

    victims.left, victims.error = 140, KeyboardInterrupt()
    done = dying(owned, here)
    assert done.exit_code == 130
    assert "128 answers are kept in" in said(done)
    assert "interrupted." in done.output


def test_a_victim_that_dies_while_the_copy_is_judged_costs_no_query(owned, here):
    import victims

    victims.left = 200
    died = dying(owned, here)
    assert died.exit_code == 2
    assert "200 answers are kept in" in said(died)


def test_where_nothing_can_be_written_the_attack_runs_and_says_so(owned, here, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    done = attack(owned, "noise")
    assert done.exit_code == 0, done.output
    assert "answers are not kept" in done.stderr
    assert not list(here.glob("*.ledger"))


# ---------------------------------------------------------------------- where numbers come from


def test_json_and_saved_queries_record_seed_code_machine_libraries_and_time(owned, here):
    done = attack(owned, "noise", "--set", "kind=bernoulli", "--seed", 3, "--json", "--save-queries", here / "stolen.npz")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["seed"], found["options"], found["labels"], found["epochs"]) == (3, {"kind": "bernoulli"}, "soft", 1)
    assert found["code"]["sameguard"]
    assert found["machine"]["cores"] >= 1
    assert {"python", "torch", "numpy"} <= set(found["versions"])
    assert found["seconds"] > 0
    assert found["finished"].startswith("20")
    with np.load(here / "stolen.npz") as saved:
        assert json.loads(str(saved["about"])) == found
    assert len(read_arrays(here / "stolen.npz").train) == 40  # still a file of inputs to every other command


def test_the_attacks_in_the_readme_run_as_they_are_written(here):
    (here / "src").symlink_to(ROOT / "src")
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## The laboratory")[1].split("## ")[0]
    commands = [line.split()[1:] for line in section.splitlines() if line.startswith("sameguard attack ")]
    assert len(commands) == 2
    shares = []
    for command in commands:
        done = call(*command, "--json", "--epochs", 5)
        assert done.exit_code == 0, done.output
        shares.append(json.loads(done.stdout)["answered"] / 500)
    assert shares[0] == 1
    assert shares[1] < 0.9
    assert len(read_arrays(here / "stolen.npz").train) == 500


@pytest.mark.parametrize("arguments", [("--list",), ("noise", "--victim", "model.onnx", "--test", "digits", "--budget", "5")])
def test_without_torch_the_command_is_there_and_says_what_it_needs(arguments):
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocked())
from sameguard.cli import app
app(["attack", *{arguments!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "attack trains a substitute and needs torch: pip install 'sameguard[train]'" in done.stderr


# ---------------------------------------------------------------------- an attack of one's own


def test_an_attack_of_ones_own_is_run_by_its_path_with_its_options(owned, here):
    done = attack(owned, "own_attack:Blended", "--set", "share=0.7", "--json", "--labels", "hard")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["attack"], found["used"], found["notes"]) == ("own_attack:Blended", 40, {"share": 0.7})


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("own_attack:Blended", ("--set", "share=half"), "option share of attack own_attack:Blended must be a finite number, got 'half'"),
        ("own_attack:Blended", ("--set", "shape=1"), "attack own_attack:Blended takes the options share, got shape"),
        ("own_attack:Lost", (), "attack own_attack:Lost could not be imported: AttributeError"),
        ("victims:weights", (), "attack victims:weights must be a class or a function that makes one, got ndarray"),
        ("victims:Idle", (), "attack victims:Idle must have run(endpoint, seed), got Idle without it"),
        ("victims:Silent", (), "attack victims:Silent must return an Extraction from run, got NoneType"),
    ],
)
def test_an_own_attack_that_cannot_be_run_is_one_sentence(owned, here, name, more, sentence):
    done = attack(owned, name, *more)
    assert done.exit_code == 2, done.output
    assert sentence in said(done)


def test_an_own_attack_says_what_it_lacks(owned, here):
    done = call("attack", "own_attack:Blended", "--victim", owned / "model.onnx", "--test", owned / "test.npz", "--budget", 40)
    assert done.exit_code == 2
    assert "attack own_attack:Blended needs proxy, got none: add --proxy NAME|PATH." in said(done)
