"""Victims over HTTP on the command line: an artefact and a theft as from a file, answers kept, clear sentences otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from stub_guard import StubGuard, die_half_way, served
from typer.testing import CliRunner

from sameguard.artifact import read_artifact
from sameguard.cli import app
from sameguard.cli.client_proxy import client_proxy_command
from sameguard.client import ClientConfig, proxy_serving
from sameguard.contract import InputContract
from sameguard.detectors.export import to_onnx
from sameguard.protocol import ModelContract

RUNNER = CliRunner()
SHORT = ["--epochs", 2, "--auxiliary-epochs", 3, "--batch-size", 256, "--precision", "fp32", "--engine", "onnxruntime"]


def call(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def said(done) -> str:
    return " ".join(done.output.replace("│", " ").split())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(ClientConfig, "wait_seconds", lambda *_: 0.0)


@pytest.fixture(scope="module")
def folder(victim, digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    (folder / "model.onnx").write_bytes(to_onnx(victim.module, (1, 8, 8), "image", ["logits"]))
    np.savez(folder / "train.npz", inputs=digits.train.inputs, labels=digits.train.labels)
    np.savez(folder / "benign.npz", inputs=digits.benign)
    np.savez(folder / "test.npz", inputs=digits.test.inputs[:60], labels=digits.test.labels[:60])
    return folder


@pytest.fixture
def server(victim):
    """The digits victim behind HTTP, under names of its own, answering everything; only noise begins with a white pixel."""
    contract = InputContract.images(1, 8, 8, name="pixels")
    return StubGuard(victim, "allow", model=ModelContract("digits", contract, 10, "scores", max_rows=64, binary_tensors=True))


@pytest.fixture
def url(server):
    with served(server) as url:
        yield url


def answered_rows(server) -> int:
    return sum(heard.rows for heard in server.heard)


# ---------------------------------------------------------------------- fit, calibrate, score


def test_a_fit_over_http_that_died_goes_on_and_asks_no_query_twice_and_what_it_made_scores(folder, digits, server, url):
    over_http = ("--victim", url, "--model", "digits", "--ledger", folder / "answers.ledger", "--batch-rows", 32)
    given = ("--data", folder / "train.npz", "--benign", folder / "benign.npz", "--out", folder / "guard", *SHORT)
    server.faults.extend([None] * 5 + [die_half_way] * 6)
    died = call("fit", *over_http, *given)
    assert died.exit_code == 2
    assert "at the last of 6 attempts" in died.output
    assert answered_rows(server) == 5 * 32  # of which 32 are asked at the start, to know the victim by, and found in the ledger later
    done = call("fit", *over_http, *given, "--resume")
    assert done.exit_code == 0, done.output
    assert "of benign queries flagged" in done.output
    different = len(np.unique(np.concatenate([digits.train.inputs, digits.benign]), axis=0))
    assert answered_rows(server) == different
    manifest = read_artifact(folder / "guard").manifest
    assert (manifest["contract"]["name"], manifest["victim"]["output"]) == ("pixels", "probs")

    again = call("calibrate", folder / "guard", *over_http, "--benign", folder / "benign.npz", "--engine", "onnxruntime")
    assert again.exit_code == 0, again.output
    assert answered_rows(server) == different

    scored = call("score", folder / "guard", "--victim", url, "--model", "digits", "--data", folder / "test.npz", "--json")
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["queries"] == 60
    assert answered_rows(server) > different + 60 - 1


def test_a_guard_is_not_what_to_fit_on(folder, server, url):
    server.suspicion = "reject"
    white = np.load(folder / "train.npz")["inputs"]
    white[:, 0, 0, 0] = 1
    np.savez(folder / "white.npz", inputs=white)
    done = call("fit", "--victim", url, "--model", "digits", "--data", folder / "white.npz", "--out", folder / "never", *SHORT)
    assert done.exit_code == 2
    assert "must answer every query, got 32 of 32 refused: this is a guard" in said(done)


# ---------------------------------------------------------------------- attack


def attack(folder, victim, *more):
    given = ("--test", folder / "test.npz", "--budget", 80, "--epochs", 3, "--set", "kind=bernoulli", "--json")
    done = call("attack", "noise", "--victim", victim, *given, *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_attack_on_a_url_is_the_attack_on_the_file(folder, url):
    local, remote = attack(folder, folder / "model.onnx"), attack(folder, url, "--model", "digits")
    same = ("used", "answered", "test", "judged", "victim_accuracy", "notes")
    assert {name: remote[name] for name in same} == {name: local[name] for name in same}
    assert remote["fidelity"] == pytest.approx(local["fidelity"], abs=0.1)
    assert local["cost"] is None
    assert (remote["cost"]["challenges"], remote["cost"]["requests"]) == (0, 2)  # 64 and 16 queries


def test_a_guarded_url_is_paid_and_the_copy_judged_by_what_is_answered_unpaid_or_by_the_judge(folder, server, url):
    server.suspicion = "challenge"
    ledger = folder / "attack.ledger"
    paid = attack(folder, url, "--model", "digits", "--ledger", ledger)
    assert paid["answered"] == 80
    assert paid["cost"]["challenges"] == 2
    assert paid["cost"]["tries"] > 1
    assert paid["judged"] == paid["test"] == 60
    server.heard.clear()
    again = attack(folder, url, "--model", "digits", "--ledger", ledger, "--judge", folder / "model.onnx")
    assert server.heard == []
    assert (again["fidelity"], again["cost"]["challenges"]) == (pytest.approx(paid["fidelity"]), 0)


def test_a_thief_who_does_not_pay_gets_less_and_the_table_says_on_what_the_copy_was_judged(folder, server, url):
    server.suspicion = "challenge"
    white = dict(np.load(folder / "test.npz"))
    white["inputs"][:45, 0, 0, 0] = 1
    np.savez(folder / "white_test.npz", **white)
    given = ("--test", folder / "white_test.npz", "--budget", 40, "--epochs", 1, "--batch-rows", 1, "--set", "kind=bernoulli")
    done = call("attack", "noise", "--victim", url, "--model", "digits", "--solve-seconds", 0, *given)
    assert done.exit_code == 0, done.output
    assert "of 15 test inputs, those of 60 that are answered unpaid" in said(done)
    assert "proofs of work 0 in 0.0 CPU seconds" in said(done)
    white["inputs"][:, 0, 0, 0] = 1
    np.savez(folder / "white_test.npz", **white)
    done = call("attack", "noise", "--victim", url, "--model", "digits", "--solve-seconds", 0, *given)
    assert "unknown of 0 test inputs" in said(done)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ("--model", "cifar"),
            "must tell the classes of model 'cifar', got no metadata of it in dialect oip: check the model's name and the",
        ),
        (
            ("--model", "cifar", "--classes", 10),
            "got status 404: not-found, there is no such door: check the model's name, 'cifar', and the",
        ),
        (
            ("--model", "digits", "--dialect", "tf-serving"),
            "in dialect tf-serving: check the model's name and the dialect (oip or plain-json?)",
        ),
        (("--model", "digits", "--dialect", "plain-json", "--classes", 10), "and the dialect, plain-json (oip or tf-serving?)"),
        (("--model", "digits", "--dialect", "grpc"), "--dialect must be one of oip, tf-serving, plain-json, got 'grpc'"),
        (("--model", "digits", "--output-name", "logits"), "must have an output 'logits', got ['scores']"),
        (("--model", "digits", "--header", "Key"), "--header must be NAME:VALUE or NAME:@FILE, in one line of ASCII, got one named 'Key'"),
        (("--model", "digits", "--header", "K: a\nb"), "--header must be NAME:VALUE or NAME:@FILE"),
        (("--model", "digits", "--path", "where=/x"), "--path must be NAME=PATH with a name of infer, health, tensor, probs, batched"),
        (("--model", "digits", "--path", "batched=1"), "--path batched must be yes or no, got '1'"),
    ],
)
def test_options_that_do_not_fit_the_server_are_refused(folder, url, more, sentence):
    done = call("attack", "noise", "--victim", url, "--test", folder / "test.npz", "--budget", 10, *more)
    assert done.exit_code == 2
    assert sentence in said(done)


def test_options_for_urls_are_not_ignored_elsewhere_and_a_judge_has_the_same_classes(folder, url, monkeypatch):
    given = ("--test", folder / "test.npz", "--budget", 10)
    done = call("attack", "noise", "--victim", folder / "model.onnx", *given, "--model", "digits", "--header", "A: b")
    assert done.exit_code == 2
    assert "--model, --header is for victims over HTTP, got --victim" in said(done)
    (folder / "judges.py").write_text("from sameguard.victim import BlackBox\nfrom sameguard.contract import InputContract\n"
                                      "other = BlackBox(lambda raw: raw, InputContract.images(1, 8, 8), classes=3)\n")  # fmt: skip
    monkeypatch.chdir(folder)
    done = call("attack", "noise", "--victim", url, "--model", "digits", *given, "--judge", "judges:other")
    assert done.exit_code == 2
    assert "declares 3, got --classes 10" in said(done)


def test_headers_go_with_every_request_and_their_values_may_lie_in_a_file(folder, server, url):
    (folder / "key.txt").write_text("secret\n")
    attack(folder, url, "--model", "digits", "--header", f"X-Api-Key: @{folder / 'key.txt'}", "--header", "X-Team: red")
    assert all((heard.headers["x-api-key"], heard.headers["x-team"]) == ("secret", "red") for heard in server.heard)


# ---------------------------------------------------------------------- client-proxy


@pytest.fixture
def started(monkeypatch):
    """Calls the command, and gives what it would have served."""
    runs = []

    async def not_served(app, host, port, concurrency, started):
        started(port)
        runs.append((app, host, port))

    monkeypatch.setattr(proxy_serving, "serve_proxy", not_served)
    proxy = typer.Typer()
    proxy.command()(client_proxy_command)

    def start(*arguments):
        return RUNNER.invoke(proxy, [str(argument) for argument in arguments]), runs

    return start


def test_the_proxy_listens_on_loopback_unless_told_otherwise_and_says_what_that_means(started):
    done, runs = started("--upstream", "http://guard:8080")
    assert done.exit_code == 0, done.output
    assert "http://127.0.0.1:8090 to http://guard:8080" in done.stderr
    assert runs[0][1:] == ("127.0.0.1", 8090)
    done, runs = started("--upstream", "http://guard:8080", "--host", "0.0.0.0", "--port", 9000, "--header", "A: b")
    assert "warning: 0.0.0.0 is not loopback" in done.stderr
    assert runs[1][1] == "0.0.0.0"


def test_the_proxy_as_started_serves(started, server, url):
    _, ((app, *_),) = started("--upstream", url)
    with served(app, lifespan="on") as proxy:
        assert call("attack", "noise", "--victim", proxy, "--model", "nobody", "--test", "digits", "--budget", 5).exit_code == 2
