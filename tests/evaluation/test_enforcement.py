"""Figure 4, thefts under enforcement and many accounts: what the guard itself did to users who asked it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sameguard.calibration import calibrate
from sameguard.evaluation.accounts import SYBILS
from sameguard.evaluation.enforcement import experience, seconds_per_try
from sameguard.evaluation.report import write_report
from sameguard.evaluation.run import Order, evaluate_exhibits
from sameguard.evaluation.scenarios import SAME, AttackRow, Exhibit, settings_of
from sameguard.guard import Guard
from sameguard.policies import CUT_POINTS, PUZZLES, Pricing, ProofOfWork, Reject
from stand_ins import BlurScorer, linear_victim, noise_images, smooth_images

DIGITS = settings_of("tiny")["digits"]
MINI = replace(
    DIGITS, fit_epochs=2, auxiliary_epochs=3, substitute=DIGITS.substitute.with_(epochs=2), round_fit=DIGITS.round_fit.with_(epochs=1), seeds=20,
    resamples=20, rates=(0.05,),
)  # fmt: skip
KNOCKOFF = AttackRow("knockoff-60", "Knockoff, random", "knockoff", 60, "development")
KINDS = (("figure-4", "add-ons"), ("accounts", "accounts"), ("enforcement", "enforcement"))


@pytest.fixture(scope="module")
def scorer() -> BlurScorer:
    scorer = BlurScorer()
    calibrate(scorer, smooth_images(400), linear_victim(), 0.05)
    return scorer


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Result by exhibit, and the report of them all."""
    out = tmp_path_factory.mktemp("laboratory") / "results"
    chosen = [Exhibit(name, name, kind, MINI, (KNOCKOFF,), (SAME,)) for name, kind in KINDS]
    outcomes = evaluate_exhibits(Order(out, "tiny"), chosen)
    assert [outcome.missing for outcome in outcomes] == [(), (), ()]
    found = {outcome.exhibit.name: json.loads(outcome.path.read_text())["data"] for outcome in outcomes}
    return found, [path.read_text() for path in write_report(out)]


# ---------------------------------------------------------------------- one user


def test_without_a_guard_every_query_is_answered_and_nothing_is_worked():
    met = experience(linear_victim(), smooth_images(30), per_try=1.0)
    assert (met["answered"], met["challenged"], met["mean_tries"], met["core_hours_per_10000"]) == (1.0, 0.0, 0.0, 0.0)
    assert 0.0 < met["median_seconds"] <= met["p95_seconds"]
    assert met["answers_per_hour"] == pytest.approx(3600 / met["mean_seconds"])


def test_refusal_answers_what_the_guard_answers_and_costs_no_work(scorer):
    queries = np.concatenate([smooth_images(60, seed=3), noise_images(60)])
    guard = Guard(linear_victim(), scorer, Reject(scorer.calibration.threshold(0.05)))
    met = experience(guard, queries, per_try=1.0)
    assert met["answered"] == pytest.approx(guard.query(queries).answered.mean())
    assert 0.3 < met["answered"] < 0.6
    assert met["mean_tries"] == 0.0


def test_tries_are_the_guards_own_and_their_time_is_added(scorer):
    guard = Guard(linear_victim(), scorer, ProofOfWork(scorer.calibration), seed=3)
    queries = noise_images(80)
    met = experience(guard, queries, per_try=0.01)
    assert guard.challenged > 60
    assert met["challenged"] == guard.challenged / 80
    assert met["mean_tries"] == guard.tries / 80
    assert met["mean_seconds"] == pytest.approx(0.01 * guard.tries / 80, abs=0.05)
    assert met["core_hours_per_10000"] == pytest.approx(0.01 * guard.tries / 80 * 10_000 / 3600)
    again = experience(Guard(linear_victim(), scorer, ProofOfWork(scorer.calibration), seed=3), queries, per_try=0.01)
    assert again["mean_tries"] == met["mean_tries"]


def test_a_slow_client_leaves_what_would_take_longer_than_its_patience(scorer):
    fast, slow = (
        experience(Guard(linear_victim(), scorer, ProofOfWork(scorer.calibration), seed=3), noise_images(80), per_try=per_try)
        for per_try in (Pricing().puzzle.seconds_per_try, 0.1)
    )
    assert fast["answered"] == 1.0  # an honest core solves the last level in time
    assert slow["answered"] < 0.7
    assert slow["answers_per_hour"] < fast["answers_per_hour"]


def test_a_try_is_measured_in_the_order_of_what_the_code_says():
    for puzzle in PUZZLES.values():
        assert puzzle.seconds_per_try / 30 < seconds_per_try(puzzle, tries=3) < puzzle.seconds_per_try * 30


# ---------------------------------------------------------------------- the exhibits


def test_figure_4_has_every_user_under_every_defence(results):
    data = results[0]["figure-4"]
    assert [(row["user"], row["defence"]) for row in data["rows"]] == [
        (user, defence) for user in ("benign", "Knockoff, random") for defence in ("none", "refusal", "proof of work")
    ]
    rows = {(row["user"], row["defence"]): row for row in data["rows"]}
    assert rows["Knockoff, random", "none"]["n"] == 60
    assert rows["benign", "none"]["answered"] == 1.0
    assert rows["benign", "refusal"]["answered"] > rows["Knockoff, random", "refusal"]["answered"]
    assert rows["benign", "proof of work"]["mean_tries"] < rows["Knockoff, random", "proof of work"]["mean_tries"]
    assert data["p_levels"] == list(CUT_POINTS)
    assert [level["work"] for level in data["levels"]] == list(Pricing().works(len(CUT_POINTS)))


def test_every_number_of_accounts_is_tried_and_named_once(results):
    rows = [row for row in results[0]["accounts"]["rows"] if row["user"] == "Knockoff, random"]
    assert [row["accounts"] for row in rows] == list(SYBILS)


def test_enforcement_runs_each_theft_open_and_guarded_with_soft_and_hard_answers(results):
    rows = results[0]["enforcement"]["rows"]
    assert [(row["rate"], row["labels"]) for row in rows] == [(None, "soft"), (None, "hard"), (0.05, "soft"), (0.05, "hard")]
    assert all(row["used"] == 60 for row in rows)
    assert rows[2]["answered"] < rows[0]["answered"] == 60


def test_the_report_prints_them(results):
    html, text = results[1]
    assert "proof of work" in text
    assert "Refusal at 5%" in text
    assert "Refusal and proof of work" in html
