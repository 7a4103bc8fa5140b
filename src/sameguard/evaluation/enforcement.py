"""What a guard changes: the stolen model, open and refused at fixed benign costs; refusal and proof of work (Figure 4); many accounts.

Thefts under enforcement are run anew, since an attack that asks again depends on what it was told. Proof of work is in process: levels by
the query's benign p-value, work drawn as a server draws it (uniform on [1, 2W]), seconds from the hash rate measured on this machine.
"""

import hashlib
import time
from typing import Any

import numpy as np

from sameguard.calibration import Threshold, clopper_pearson
from sameguard.detectors.prada import Prada, alarm_rates, calibrate_threshold
from sameguard.evaluation.detection import Found, Made, columns_of
from sameguard.evaluation.families import TEXTURE, TYPICALITY, benign_scores, malicious_scores
from sameguard.evaluation.scenarios import ACCOUNTS, SAME, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import Laboratory

P_LEVELS = (0.25, 0.05, 0.01, 0.002)  # a query climbs a level below each of these benign p-values
FIRST_WORK, WORK_FACTOR = 64, 4  # mean tries at level 0, and how much a level multiplies them
KDF_COST = 1000  # iterations of PBKDF2-SHA-256 in one try
PATIENCE_SECONDS = 5.0  # a client gives up a challenge that takes longer
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
    """Answered queries and response time under refusal and under proof of work, for benign and malicious users."""
    setting = exhibit.setting
    scorer = lab.scorer(setting)
    threshold = Threshold.from_json(lab.scorer_stage(setting).facts["thresholds"][0])
    rate, base = tries_per_second(), _victim_seconds(lab, setting)
    benign = benign_scores(lab, setting, SAME)
    users = {"benign": (benign[TYPICALITY], benign[TEXTURE])}
    for row in made.attacks:
        column, scores = columns_of(lab.theft(setting, row), row)[0], malicious_scores(lab, setting, SAME, row)
        users[row.title] = (scores[TYPICALITY][column.rows], scores[TEXTURE][column.rows])
    rows = []
    for name, (scores, stage_a) in users.items():
        answered = ~threshold.flags(scores, stage_a)
        rows.append({"user": name, "defence": "none", **_times(np.full(len(scores), base)), "answered": 1.0, "n": len(scores)})
        rows.append(
            {"user": name, "defence": "refusal", **_times(np.full(len(scores), base)), "answered": float(answered.mean()), "n": len(scores)}
        )
        seconds = base + work_of(p_values(scorer.calibration.scores, scores), np.random.default_rng(lab.seed)) / rate
        rows.append({
            "user": name, "defence": "proof of work", **_times(seconds), "answered": float((seconds <= PATIENCE_SECONDS).mean()), "n": len(scores),
            "core_hours_per_10000": float(seconds.mean() * 10_000 / 3600),
        })  # fmt: skip
    return Found({
        "rows": rows, "tries_per_second": rate, "victim_seconds": base, "patience_seconds": PATIENCE_SECONDS, "rate": threshold.false_positive_rate,
        "p_levels": list(P_LEVELS), "first_work": FIRST_WORK, "work_factor": WORK_FACTOR,
    })  # fmt: skip


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Benign p-values (1 + #{calibration >= score}) / (n + 1)."""
    ordered = np.sort(calibration)
    return (1.0 + len(ordered) - np.searchsorted(ordered, scores, side="left")) / (len(ordered) + 1.0)


def work_of(p: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Tries until each query's challenge is solved: uniform on [1, 2W], W = FIRST_WORK WORK_FACTOR^level."""
    levels = (p[:, None] < np.array(P_LEVELS)).sum(axis=1)
    return draw.integers(1, 2 * FIRST_WORK * WORK_FACTOR**levels, endpoint=True)


def tries_per_second(seconds: float = 0.2) -> float:
    """How many key derivations one core does in a second, here and now."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        hashlib.pbkdf2_hmac("sha256", done.to_bytes(4, "big"), b"salt", KDF_COST)
        done += 1
    return done / (time.perf_counter() - began)


def _victim_seconds(lab: Laboratory, setting: Setting) -> float:
    """One query through victim and scorer, at batch 1: the median of a few."""
    victim, scorer, queries = lab.victim(setting), lab.scorer(setting), lab.roles(setting).test_queries
    times = []
    for row in range(9):
        began = time.perf_counter()
        scorer.score(queries[row : row + 1], victim.answer(queries[row : row + 1]))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _times(seconds: np.ndarray) -> dict[str, float]:
    return {
        "mean_seconds": float(seconds.mean()),
        "median_seconds": float(np.median(seconds)),
        "p95_seconds": float(np.quantile(seconds, 0.95)),
    }


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
    found = alarm_rates(theft.queries, probs, lab.roles(setting).classes, threshold, ACCOUNTS)
    return [{"user": row.title, **entry._asdict()} for entry in found]


def _users(queries: np.ndarray, users: int) -> list[np.ndarray]:
    return np.array_split(queries, users)


def _one_class(roles: Any, length: int) -> np.ndarray:
    return roles.test_queries[roles.test.labels == 0][:length]
