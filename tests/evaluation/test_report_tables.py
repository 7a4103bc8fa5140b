"""Tables from results by hand: several seeds, what belongs to the paper, what is said once, and what is folded away."""

import pytest

from sameguard.evaluation import families
from sameguard.evaluation.detection import RIVALS
from sameguard.evaluation.families import EDM, OE, PAPER, TYPICALITY
from sameguard.evaluation.figures import figures_of, wrapped
from sameguard.evaluation.printing import amount, mean, noted
from sameguard.evaluation.report import to_html
from sameguard.evaluation.results import Result
from sameguard.evaluation.scenarios import settings_of
from sameguard.evaluation.stages import Laboratory
from sameguard.evaluation.tables import section

COUNTS = {"n_pos": 1000, "n_neg": 1000, "intervals": {"auroc": [0.35, 0.45]}}
METRICS = ("auroc", "average_precision", "aupr_trapezoid", "fpr95", "fpr90", "tpr_at_1_percent")


def cell(rate: float, **more: float):
    return {**dict.fromkeys(METRICS, rate), **COUNTS, **more}


def run(kind, data, seed, *, exhibit="table-1", dataset="mnist", **more):
    setting = {"name": dataset, "title": dataset, "dataset": dataset, "victim_accuracy": 0.99}
    code, machine = {"sameguard": "0.1.0", "commit": None, "changed": None}, {"processor": "abacus", "threads": 1}
    return {
        "exhibit": exhibit, "title": exhibit, "kind": kind, "seed": seed, "setting": setting, "data": data, "code": code, "machine": machine,
        "seconds": 100.0 + seed, "peak_memory_mib": 500.0, "stages": {"fit": 100.0}, "reused": {"victim": 60.0} if seed == 0 else {}, **more,
    }  # fmt: skip


def seeds(kind, make, **more) -> Result:
    """Seed 0 with a rate of .4, seed 1 with one of .6: the mean is .5, half the range .1."""
    return Result("key", (run(kind, make(0.4), 0, **more), run(kind, make(0.6), 1, **more)))


def column(name="knockoff-1000", part="all", **more):
    return {
        "name": name, "title": "Knockoff, random" if part == "all" else f"Knockoff, random, {part}", "part": part, "budget": 1000, "status": "development",
        "reported": "Knockoff", "scored": 1000, "natural": 0, "caps": None, "used": 1000, "kept": 1000, "answered": 1000, "accuracy": 0.8,
        "fidelity": 0.8, "notes": {}, **more,
    }  # fmt: skip


def detection(rate, columns=None, titles=(TYPICALITY, PAPER, "share faint")):
    columns = columns or [column(accuracy=rate, fidelity=rate, notes={"step": rate, "kind": "uniform"})]
    rows = [{"group": "scores", "title": title, "cells": {one["name"]: cell(rate) for one in columns}} for title in titles]
    guard = {"rate": 0.05, "flagged": round(10 * rate), "of": 100, "expected": [2, 9], "attacks": {one["name"]: rate for one in columns}}
    training = [
        {"title": "SAME", "frozen": True, "victim_accuracy": 0.99, "network": "conv3", "preset": "cpu", "epochs": 24, "auxiliary_epochs": 8,
         "masked_auxiliary_epochs": 4},
        {"title": OE, "frozen": False, "victim_accuracy": rate, "network": "conv3", "epochs": 2, "members": 1, "outliers": "kmnist"},
        {"title": EDM, "frozen": False, "victim_accuracy": rate, "network": "strong_small", "epochs": 1, "members": 5, "outliers": "kmnist"},
    ]  # fmt: skip
    return {
        "columns": columns, "rows": rows, "curves": [], "infeasible": [], "training": training,
        "guard": {"engine": "onnxruntime", "agreement": rate, "calibration": 200, "rates": [guard]},
    }  # fmt: skip


def enforcement(rate):
    row = {"attack": "JBDA", "rate": 0.05, "labels": "soft", "used": 100, "answered": round(100 * rate), "accuracy": rate, "fidelity": rate}
    return {"rows": [row], "benign": [{"rate": 0.05, "flagged": round(100 * rate), "of": 100, "interval": [0.01, 0.09]}]}


def costs(rate, growth=None):
    row = {"method": OE, "victim_accuracy": rate, "seconds": {"victim": 100 * rate}, "training_seconds": 100 * rate}
    memory = {"alone": {"together": 20, "victim": 10}, "shared": {"together": 11}}
    row |= {"weights_bytes": 3 * 2**20, "memory_growth_mib": growth}
    return {"rows": [row], "memory_bytes": memory, "detection": [{"attack": "JBDA", "title": TYPICALITY, **cell(rate)}]}


def named(rate, **more):
    return {"rows": [{"attack": "JBDA", "title": TYPICALITY, **cell(rate), **more}]}


def ratios(rate):
    lists = {name: [rate, rate, rate] for name in METRICS}
    return {"draws": 20, "rows": [{"attack": "JBDA", "title": TYPICALITY, "ratio": 0.1, "n_pos": 10, "n_neg": 100, **lists}]}


def epochs(rate):
    return {"rows": [{"epoch": 3, "queries": "benign", "error_full": rate, "error_masked": rate, "n": 359}]}


def add_ons(rate):
    names = ("answered", "mean_seconds", "median_seconds", "p95_seconds", "mean_tries", "core_hours_per_10000")
    rows = [{"user": "benign", "defence": name, **dict.fromkeys(names, rate)} for name in ("none", "refusal", "proof of work")]
    return {
        "rows": rows, "rate": 0.05, "patience_seconds": 10.0, "tries_per_second": 100.0, "puzzle": {"algorithm": "argon2id"},
        "levels": [{"work": 4, "benign_share": 0.05}],
    }  # fmt: skip


def accounts(rate):
    row = {"user": "JBDA", "queries": 300, "accounts": 400, "alarmed_accounts": rate, "alarmed_queries": rate}
    return {"rows": [row], "threshold": 0.9, "users": 12, "stream": 400}


KINDS = {
    "detection": detection, "enforcement": enforcement, "costs": costs, "ratios": ratios, "components": named,
    "weights": lambda rate: named(rate, weight=0.5), "histograms": named, "epochs": epochs, "widths": lambda rate: named(rate, width=64, view="full"),
    "add-ons": add_ons, "accounts": accounts,
}  # fmt: skip


# ---------------------------------------------------------------------- several seeds


@pytest.mark.parametrize("kind", KINDS)
def test_two_seeds_become_their_mean_and_half_their_range_wherever_a_number_stands(kind):
    text = "\n".join(section(seeds(kind, KINDS[kind])))
    assert ("0.50000 ± 0.10000" if kind == "epochs" else "50.0 ± 10.0") in text
    assert "Seeds: 0, 1." in text
    for alone in ("| 40.0 |", "| 60.0 |", "| 0.40000 |", "| 40.0 /"):
        assert alone not in text


def test_guarded_rates_flags_facts_and_benign_cost_are_of_all_seeds_too():
    text = "\n".join(section(seeds("detection", detection)))
    assert "auxiliary agrees on 50.0 ± 10.0" in text
    assert "| 5% | 5.0 ± 1.0 of 100 (2 to 9 expected) | 50.0 ± 10.0 |" in text
    assert "substitute's accuracy 50.0 ± 10.0, fidelity 50.0 ± 10.0; step 0.5 ± 0.1; kind uniform." in text
    assert "at 5%, 50.0 ± 10.0 of 100 test images are refused (seed 0: 1.0 to 9.0 %)" in "\n".join(
        section(seeds("enforcement", enforcement))
    )
    assert "50 ± 10 (victim 50 ± 10)" in "\n".join(section(seeds("costs", costs)))


def test_an_interval_names_the_seed_that_it_is_of():
    assert "95 % interval of AUROC (seed 0), and counts:" in section(seeds("detection", detection))
    assert "AUROC, 95 %, seed 0" in section(seeds("components", named))[0]
    late = Result("key", (run("components", named(0.4), 3),))
    assert "AUROC, 95 %, seed 3" in section(late)[0]
    assert "Seed: 3." in section(late)[-1]


def test_a_picture_says_which_seed_it_shows():
    ((caption, picture),) = figures_of(seeds("add-ons", add_ons))
    assert caption == "Refusal and proof of work, seed 0"
    assert picture.startswith(b"\x89PNG")


def test_numbers_of_one_value_have_no_spread_and_equal_ones_are_printed_once():
    assert (mean([0.5]), mean([0.25, 0.75]), mean([])) == ("50.0", "50.0 ± 25.0", "–")
    assert (amount([1200]), amount([7.0, 7.4]), amount([1000, 3000])) == ("1,200", "7", "2,000 ± 1,000")
    assert (noted([5, 5]), noted(["a", "a"]), noted(["a", "b"]), noted([0.123456]), noted([True, True])) == (
        "5",
        "a",
        "a, b",
        "0.123",
        "True",
    )


def test_what_all_stages_took_and_what_was_trained_elsewhere_ends_a_table():
    closing = section(seeds("weights", KINDS["weights"]))[-1]
    assert "100 s, at most 500 MiB in the process, victim trained elsewhere in 60 s (seed 0)" in closing
    assert closing.count("abacus, 1 thread.") == 1
    assert "101 s, at most 500 MiB in the process (seed 1)" in closing


# ---------------------------------------------------------------------- what belongs where


def test_how_the_defences_were_trained_and_their_victims_accuracy_stand_in_each_detection_table():
    text = section(Result("key", (run("detection", detection(0.9), 0),)))
    assert "| SAME | 99.0, frozen | preset cpu: autoencoder 24 epochs, auxiliary (conv3) 8 epochs, on masked views 4 epochs |" in text
    assert "| Outlier Exposure | 90.0 | conv3, 2 epochs, outliers kmnist |" in text
    assert "| Ensemble of Diverse Models | 90.0 | 5 members of strong_small, 1 epoch, outliers kmnist |" in text


def test_every_metric_of_the_main_scores_is_folded_away_with_the_papers_own_aupr_beside_ours():
    result = Result("key", (run("detection", detection(0.4), 0),))
    text = section(result)
    start = text.index("<details><summary>All metrics of the main scores, 1,000 queries</summary>")
    found = text[start : text.index("</details>")]
    assert "| AP | AUPR, trapezoid | the paper's AUPR | FPR95 | FPR90 | TPR at 1 % FPR |" in found[2]
    values = "40.0 | 35.0 to 45.0 | 40.0 | 40.0 | {} | 40.0 | 40.0 | 40.0 | 1,000 / 1,000 |"
    assert f"| Knockoff, random | {PAPER} | {values.format('99.5')}" in found
    assert f"| Knockoff, random | no learning: share of faint pixels | {values.format('–')}" in found
    assert any(line.startswith("**1,000 queries.** AUROC / AP / FPR95; the paper's rows have its trapezoid AUPR") for line in text)
    elsewhere = section(Result("key", (run("detection", detection(0.4), 0, exhibit="attacks"),)))
    assert "**1,000 queries.** AUROC / AP / FPR95." in elsewhere
    assert not any("the paper's AUPR" in line for line in elsewhere)


def test_folded_lines_become_details_that_hold_a_table():
    html = "".join(
        to_html(["<details><summary>All & more</summary>", "", "| a |", "|---|", "| 1 |", "", "</details>", "", "<details open>"])
    )
    assert "<details><summary>All &amp; more</summary><div" in html
    assert "</table></div></details>" in html
    assert "<p>&lt;details open&gt;</p>" in html


def test_a_late_generators_scored_share_is_said_and_a_column_without_seeds_repeats_no_facts():
    late = column("dfme-late", title="DFME, late generator", used=4000, kept=600, answered=600, scored=120)
    synthetic = column("jbda-synthetic", "synthetic only", scored=800)
    lines = section(Result("key", (run("detection", detection(0.4, [late, synthetic]), 0),)))
    facts = [line for line in lines if line.startswith("- ")]
    assert len(facts) == 1
    assert "4,000 queries, of which 600 were kept, 600 of these answered" in facts[0]
    assert "scored: the last 20% of the queries that were kept" in facts[0]


def test_the_papers_costs_stand_beside_ours_on_its_own_data_alone():
    digits, cifar = ("\n".join(section(Result("key", (run("costs", costs(0.9), 0, dataset=name),)))) for name in ("digits", "cifar10"))
    assert "paper" not in digits
    assert "1,563" not in digits
    assert "| Outlier Exposure | 80.83 | 90.0 | 1,563 | 90 (victim 90) | 3.0 | – |" in cifar


def test_the_process_is_not_printed_as_a_defences_memory_where_its_growth_is_unknown():
    lines = section(Result("key", (run("costs", costs(0.9, growth=123.4), 0), run("costs", costs(0.9), 1))))
    assert "| Outlier Exposure | 90.0 | 90 (victim 90) | 3.0 | 123 |" in lines
    old = costs(0.9)
    old["rows"] = [{"method": OE, "victim_accuracy": 0.9, "seconds": {"victim": 1.0}, "training_seconds": 1.0, "peak_memory_mib": 919.0}]
    assert "| Outlier Exposure | 90.0 | 1 (victim 1) | – | – |" in section(Result("key", (run("costs", old, 0),)))


def test_accounts_that_hold_no_query_are_counted_out_loud():
    assert "| JBDA | 400 (100 hold none) | 40.0 | 40.0 |" in section(Result("key", (run("accounts", accounts(0.4), 0),)))


def test_no_table_has_two_columns_of_one_name():
    for kind, make in KINDS.items():
        for line, below in zip(lines := section(seeds(kind, make)), lines[1:], strict=False):
            if below.startswith("|---"):
                heading = [name.strip() for name in line.strip("|").split("|")]
                assert len(set(heading)) == len(heading), (kind, heading)


def test_a_long_title_of_a_panel_is_broken_and_a_break_of_its_own_stays():
    assert (
        wrapped("SAME, Eq. 6 as the paper (masked, z-scores, .5)\nAUROC 59.1")
        == "SAME, Eq. 6 as the paper (masked,\nz-scores, .5)\nAUROC 59.1"
    )


def test_the_plain_autoencoder_is_drawn_under_the_name_that_its_family_gives_it(monkeypatch):
    class Stub(Laboratory):
        detector = property(lambda self: self)

        def __init__(self):
            pass

        def score(self, queries, probs):
            return queries

        def plain_autoencoder(self, setting):
            return self

        def victim(self, setting):
            return None

    monkeypatch.setattr(families, "VictimOnReconstruction", lambda *_: Stub())
    names = families.SCORINGS[families.AUTOENCODER](Stub(), settings_of("tiny")["digits"])([], [])
    assert set(names) & set(RIVALS) == {"its reconstruction error"}
