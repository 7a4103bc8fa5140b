"""What a guard changes: the stolen model, open and refused at fixed benign costs; refusal and proof of work (Figure 4); many accounts.

Thefts under enforcement are run anew, since an attack that asks again depends on what it was told. Figure 4 asks `Guard` query by query, in
process: its policies are those that serve, its numbers of tries are drawn as a server draws them, and what a try takes is measured here.
"""

import time
from dataclasses import asdict
from typing import Any

import altcha
import numpy as np

from sameguard.calibration import Threshold, clopper_pearson
from sameguard.detectors.prada import Prada, alarm_rates, calibrate_threshold
from sameguard.endpoint import Endpoint
from sameguard.evaluation.accounts import SYBILS
from sameguard.evaluation.detection import Found, Made, columns_of
from sameguard.evaluation.families import TEXTURE, TYPICALITY, benign_scores
from sameguard.evaluation.scenarios import SAME, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import Laboratory
from sameguard.guard import Guard
from sameguard.policies import Pricing, ProofOfWork, Puzzle, Reject

ASKED = 1000  # queries of each user in Figure 4
PATIENCE_SECONDS = 10.0  # a client leaves a challenge that takes longer: twice an honest core at the worst price, see `Pricing`
BENIGN_USERS = 12


def enforcement(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """The substitute's accuracy and fidelity, open and at each benign false-positive rate, learnt from soft or hard answers."""
    setting, rows = exhibit.setting, []
    for row in made.attacks:
        for rate in (None, *setting.rates):
            for labels in ("soft", "hard"):
                facts = lab.theft(setting, row, rate=rate, labels=labels).facts
                rows.append({
                    "attack": row.title, "rate": rate, "labels": labels, "status": row.status,
                    **{name: facts[name] for name in ("used", "answered", "accuracy", "fidelity", "test")},
                })  # fmt: skip
    return Found({"rows": rows, "victim_accuracy": lab.victim_stage(setting).facts["accuracy"], "benign": benign_cost(lab, setting)})


def benign_cost(lab: Laboratory, setting: Setting) -> list[dict[str, Any]]:
    """How much of the test set each threshold flags, with its interval."""
    scores = benign_scores(lab, setting, SAME)
    found = []
    for stored in lab.scorer_stage(setting).facts["thresholds"]:
        threshold = Threshold.from_json(stored)
        flags = threshold.flags(scores[TYPICALITY], scores[TEXTURE])
        flagged = int(flags.sum())
        interval = list(clopper_pearson(flagged, len(flags)))
        found.append({"rate": threshold.false_positive_rate, "flagged": flagged, "of": len(flags), "interval": interval})
    return found


# ---------------------------------------------------------------------- Figure 4


def add_ons(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """Answered queries and response time without a guard, under refusal and under proof of work, for benign and malicious users."""
    setting = exhibit.setting
    victim, scorer, pricing = lab.victim(setting), lab.scorer(setting), Pricing()
    threshold, price = scorer.threshold(setting.rates[0]), ProofOfWork(scorer.calibration, pricing=pricing)
    per_try = seconds_per_try(pricing.puzzle)
    users = {"benign": lab.roles(setting).test_queries[:ASKED]}  # they lie in a random order
    for row in made.attacks:
        column = columns_of(lab.theft(setting, row), row)[0]
        users[row.title] = column.theft.queries[_spread(column.rows, ASKED)]
    rows = []
    for user, queries in users.items():
        lab.stop_at_deadline("evaluation")
        defences: dict[str, Endpoint] = {
            "none": victim, "refusal": Guard(victim, scorer, Reject(threshold)), "proof of work": Guard(victim, scorer, price, seed=lab.seed),
        }  # fmt: skip
        for name, endpoint in defences.items():
            rows.append({"user": user, "defence": name, **experience(endpoint, queries, per_try), "n": len(queries)})
    levels = price.describe()
    return Found({
        "rows": rows, "rate": threshold.false_positive_rate, "patience_seconds": PATIENCE_SECONDS, "tries_per_second": 1.0 / per_try,
        "puzzle": asdict(pricing.puzzle), "levels": [asdict(level) for level in levels], "p_levels": [level.benign_share for level in levels],
        "first_work": levels[0].work, "work_factor": pricing.factor,
    })  # fmt: skip


def experience(endpoint: Endpoint, queries: np.ndarray, per_try: float) -> dict[str, float]:
    """What one client with one core meets who asks these queries one after the other.

    Seconds until an answer or a refusal: measured here, and where the guard challenges, what its tries take at `per_try` seconds each. A
    client that would have to work longer than its patience leaves without an answer.
    """
    answered, seconds, tries = np.zeros(len(queries), bool), np.zeros(len(queries)), np.zeros(len(queries))
    for row in range(len(queries)):
        before, began = getattr(endpoint, "tries", 0), time.perf_counter()
        answered[row] = endpoint.query(queries[row : row + 1]).answered[0]
        seconds[row] = time.perf_counter() - began
        tries[row] = getattr(endpoint, "tries", 0) - before
    work = tries * per_try
    answered &= work <= PATIENCE_SECONDS
    seconds += work
    return {
        "answered": float(answered.mean()), "challenged": getattr(endpoint, "challenged", 0) / len(queries), "mean_tries": float(tries.mean()),
        "mean_seconds": float(seconds.mean()), "median_seconds": float(np.median(seconds)), "p95_seconds": float(np.quantile(seconds, 0.95)),
        "answers_per_hour": float(3600.0 * answered.sum() / seconds.sum()), "core_hours_per_10000": float(work.mean() * 10_000 / 3600),
    }  # fmt: skip


def seconds_per_try(puzzle: Puzzle, tries: int = 12) -> float:
    """How long a core that has nothing else to do takes for one key derivation: processor time, the mean of a few."""
    began = time.process_time()
    for counter in range(1, tries + 1):  # to set a challenge is one derivation
        altcha.create_challenge(
            puzzle.algorithm, puzzle.cost, counter=counter, memory_cost=puzzle.memory_cost, parallelism=puzzle.parallelism
        )
    return (time.process_time() - began) / tries


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Evenly spaced ones: an attack's queries change while it goes on."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


# ---------------------------------------------------------------------- accounts


def accounts(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """PRADA, calibrated so that no benign user of the calibration streams ever alarms, against one thief with ever more accounts."""
    setting, roles, victim = exhibit.setting, lab.roles(exhibit.setting), lab.victim(exhibit.setting)
    streams = _users(roles.benign, min(BENIGN_USERS, max(2, len(roles.benign) // 300)))
    threshold = calibrate_threshold([(queries, victim.answer(queries)) for queries in streams], roles.classes)
    length = len(streams[0])
    rows = []
    fresh = _users(roles.test_queries[: len(roles.test_queries) // length * length or length], max(1, len(roles.test_queries) // length))
    alarmed = [Prada(roles.classes, threshold).observe(queries, victim.answer(queries)).any() for queries in fresh]
    rows.append(
        {
            "user": f"benign, {length} test images each",
            "accounts": len(fresh),
            "alarmed_accounts": float(np.mean(alarmed)),
            "alarmed_queries": None,
        }
    )
    skewed = _one_class(roles, length)
    flags = Prada(roles.classes, threshold).observe(skewed, victim.answer(skewed))
    rows.append({
        "user": f"benign, one class only ({len(skewed)} images)", "accounts": 1, "alarmed_accounts": float(flags.any()), "alarmed_queries": float(flags.mean()),
    })  # fmt: skip
    for row in made.attacks:
        rows += _dealt(lab, setting, row, threshold)
    return Found({"rows": rows, "threshold": threshold, "users": len(streams), "stream": length})


def _dealt(lab: Laboratory, setting: Setting, row: AttackRow, threshold: float) -> list[dict[str, Any]]:
    theft = lab.theft(setting, row)
    probs = lab.victim(setting).answer(theft.queries)
    found = alarm_rates(theft.queries, probs, lab.roles(setting).classes, threshold, SYBILS)
    return [{"user": row.title, "queries": len(theft.queries), **entry._asdict()} for entry in found]


def _users(queries: np.ndarray, users: int) -> list[np.ndarray]:
    return np.array_split(queries, users)


def _one_class(roles: Any, length: int) -> np.ndarray:
    return roles.test_queries[roles.test.labels == 0][:length]
