"""The laboratory on a handful of digits: it runs, resumes, caches, reports, and says what is missing."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.evaluation import ablations, exhibits
from sameguard.evaluation.cache import SCHEMA, Cache
from sameguard.evaluation.detection import RIVALS
from sameguard.evaluation.metrics import auroc, average_precision, fpr_at_tpr
from sameguard.evaluation.report import to_html, write_report
from sameguard.evaluation.results import read_failures, read_results
from sameguard.evaluation.run import Order, _spent, check_folder, evaluate, evaluate_exhibits
from sameguard.evaluation.scenarios import OUTPUTS, SAME, TRIVIAL, AttackRow, Exhibit, Source, settings_of
from sameguard.evaluation.stages import Laboratory
from sameguard.evaluation.tables import markdown
from sameguard.training import RunControl, TrainingPausedError

DIGITS = settings_of("tiny")["digits"]
MINI = replace(
    DIGITS, fit_epochs=2, auxiliary_epochs=3, substitute=DIGITS.substitute.with_(epochs=2), round_fit=DIGITS.round_fit.with_(epochs=1), seeds=20,
    resamples=20,
)  # fmt: skip
JBDA, KNOCKOFF = (
    AttackRow("jbda-60", "JBDA", "jbda", 60, "development"),
    AttackRow("knockoff-60", "Knockoff, random", "knockoff", 60, "development"),
)
BROKEN = AttackRow("jbda-5", "JBDA, fewer than its seeds", "jbda", 5)
TABLE = Exhibit("table-1", "Table 1: detection", "detection", MINI, (JBDA, KNOCKOFF, BROKEN), (SAME, OUTPUTS, TRIVIAL))
SWEEP = Exhibit("weights", "The weight of Eq. 6", "weights", MINI, (JBDA,))
KEPT = tuple(
    Exhibit(name, name, kind, MINI, (JBDA,))
    for name, kind in (("figure-2", "histograms"), ("table-3", "costs"), ("figure-5", "components"), ("table-4", "ratios"))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A results folder whose first two runs were cut off: by the time budget, and by Ctrl-C in the middle of a stage."""
    out = tmp_path_factory.mktemp("laboratory") / "results"
    order = Order(out, "tiny", save_queries=True)
    with pytest.raises(TrainingPausedError, match="time budget is spent"):
        evaluate_exhibits(order, [TABLE], RunControl().with_time_budget(0.0))

    def interrupt(event):
        if event.title == "digits: jbda-60" and event.inner is not None and event.inner.stage == "queries" and event.inner.step > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_exhibits(order, [TABLE], progress=interrupt)
    return out


@pytest.fixture(scope="module")
def outcomes(folder):
    events = []
    made = evaluate_exhibits(Order(folder, "tiny", save_queries=True), [TABLE, SWEEP], progress=events.append)
    assert events[-1].share == pytest.approx(1.0)
    assert [event.step for event in events] == sorted(event.step for event in events)
    return made


def result_of(outcome):
    return json.loads(outcome.path.read_text())


def test_an_interrupted_theft_was_kept_in_its_ledger_and_went_on(folder, outcomes):
    (ledger,) = folder.glob("cache/attack-jbda-60-*/work/answers.ledger")
    assert ledger.stat().st_size > 60 * 32
    (column, *_) = result_of(outcomes[0])["data"]["columns"]
    assert (column["name"], column["used"], column["answered"]) == ("jbda-60", 60, 60)


def test_a_table_has_every_attack_and_score_with_counts_and_intervals(outcomes):
    result = result_of(outcomes[0])
    names = [column["name"] for column in result["data"]["columns"]]
    assert names == ["jbda-60", "jbda-60-synthetic", "knockoff-60"]
    titles = [row["title"] for row in result["data"]["rows"]]
    assert {"SAME, typicality (default)", "MSP", "share faint", "share faint (two-sided)", "off the 8-bit grid"} <= set(titles)
    for row in result["data"]["rows"]:
        for name, cell in row["cells"].items():
            assert cell["n_pos"] == (40 if name == "jbda-60-synthetic" else 60)
            assert cell["n_neg"] == 60
            low, high = cell["intervals"]["auroc"]
            assert low <= cell["auroc"] + 1e-4
            assert cell["auroc"] <= high + 1e-4
    assert result["data"]["columns"][0]["caps"]["auroc"] == pytest.approx(1 - 20 / 60 / 2)
    assert result["data"]["columns"][1]["caps"] is None
    assert {"code", "machine", "versions", "seconds", "peak_memory_mib", "seed"} <= set(result)
    drawn = {curve["title"] for curve in result["data"]["curves"]}
    assert set(RIVALS) - drawn == {"its reconstruction error"}  # no plain autoencoder in this table
    (trained,) = result["data"]["training"]
    assert (trained["title"], trained["epochs"], trained["auxiliary_epochs"], trained["frozen"]) == ("SAME", 2, 3, True)
    assert trained["victim_accuracy"] == result["setting"]["victim_accuracy"]


def test_seconds_and_peak_of_a_result_are_those_of_every_stage_that_it_rests_on(folder, outcomes):
    result = result_of(outcomes[0])
    assert set(result["stages"]) >= {
        "victim-digits", "fit-default-digits", "fit-masked-digits", "calibrated-digits", "attack-jbda-60-digits", "attack-knockoff-60-digits",
        "scores-same-test-digits", "scores-same-jbda-60-digits", "scores-trivial-knockoff-60-digits",
    }  # fmt: skip
    records = {}
    for path in folder.glob("cache/*/record.json"):
        record = json.loads(path.read_text())
        records[record["stage"]] = record
    used = [records[name] for name in result["stages"]]
    assert result["stages"] == {record["stage"]: record["seconds"] for record in used}
    assert result["seconds"] == pytest.approx(sum(record["seconds"] for record in used), abs=0.06)
    assert result["peak_memory_mib"] == max(record["peak_memory_mib"] for record in used)
    assert result["reused"] == {}
    assert not any("knockoff" in name for name in result_of(outcomes[1])["stages"])


def test_what_was_trained_elsewhere_is_named_with_the_seconds_that_it_took_there(tmp_path):
    cache, facts = Cache(tmp_path), {"reused": "runs/mnist", "seconds": {"autoencoder": 300.0, "auxiliary": 12.5, "this_call": 900.0}}
    made = [
        cache.stage("victim-mnist", {}, (), {}),
        cache.stage("fit-default-mnist", {}, (), {}),
        cache.stage("calibrated-mnist", {}, (), {}),
    ]
    for stage, found in zip(made, ({"reused": "runs/mnist", "training_seconds": 122.4}, facts, {}), strict=True):
        with stage.making() as making:
            making.facts |= found
    spent = _spent(made)
    assert spent["reused"] == {"victim-mnist": 122.4, "fit-default-mnist": 312.5}
    assert spent["seconds"] < 5.0
    assert "runs" not in json.dumps(spent)  # a path of one machine says nothing to another


def test_8_bit_queries_never_leave_the_grid_and_the_test_for_it_is_blind(outcomes):
    (row,) = [row for row in result_of(outcomes[0])["data"]["rows"] if row["title"] == "off the 8-bit grid"]
    assert {cell["auroc"] for cell in row["cells"].values()} == {0.5}


def test_metrics_can_be_computed_again_from_the_raw_scores(folder, outcomes):
    result = result_of(outcomes[0])
    with np.load(folder / "scores" / "table-1-digits-seed0.npz") as scores:
        for number, row in enumerate(result["data"]["rows"]):
            for place, column in enumerate(result["data"]["columns"]):
                benign, malicious = scores[f"m{number:03d}b"][:60], scores[f"m{number:03d}c{place:02d}"]
                cell = row["cells"][column["name"]]
                assert cell["auroc"] == pytest.approx(auroc(benign, malicious), abs=1e-5)
                assert cell["average_precision"] == pytest.approx(average_precision(benign, malicious), abs=1e-5)
                assert cell["fpr90"] == pytest.approx(fpr_at_tpr(benign, malicious, 0.9), abs=1e-5)


@pytest.fixture(scope="module")
def kept(folder, outcomes):
    """The exhibits that keep their raw scores row by row, with these scores."""
    found = [outcomes[1], *evaluate_exhibits(Order(folder, "tiny"), KEPT)]
    dumps = {}
    for outcome in found:
        with np.load(folder / "scores" / f"{outcome.exhibit.key}-seed0.npz") as scores:
            dumps[outcome.exhibit.kind] = dict(scores)
    return {outcome.exhibit.kind: result_of(outcome)["data"] for outcome in found}, dumps


@pytest.mark.parametrize(("kind", "table"), [("histograms", "rows"), ("components", "rows"), ("costs", "detection"), ("weights", "rows")])
def test_other_tables_and_figures_keep_the_scores_of_each_row_too(kept, kind, table):
    data, scores = kept[0][kind], kept[1][kind]
    for number, row in enumerate(data[table]):
        if row.get("weight", 0.0) in (0.0, 1.0):  # those between are sums of these
            benign, malicious = scores[f"r{number:03d}b"], scores[f"r{number:03d}m"]
            assert row["auroc"] == pytest.approx(auroc(benign, malicious), abs=1e-5)
            assert (len(malicious), len(benign)) == (row["n_pos"], row["n_neg"])


def test_table_4_keeps_the_one_set_of_scores_that_it_draws_from(kept):
    data, scores = kept[0]["ratios"], kept[1]["ratios"]
    first, second = (
        next(n for n, row in enumerate(data["rows"]) if row["title"] == title) for title in dict.fromkeys(r["title"] for r in data["rows"])
    )
    assert set(scores) == {f"r{number:03d}{kind}" for number in (first, second) for kind in "bm"}
    assert len(scores[f"r{first:03d}m"]) == 60


def test_figures_6_and_7_keep_the_errors_of_every_query(folder, outcomes, monkeypatch):
    for module in (ablations, exhibits):
        monkeypatch.setattr(module, "WIDTHS", (32,))
    chosen = [Exhibit(name, name, kind, MINI, (JBDA,)) for name, kind in (("figure-6", "epochs"), ("figure-7", "widths"))]
    for outcome in evaluate_exhibits(Order(folder, "tiny"), chosen):
        rows = result_of(outcome)["data"]["rows"]
        with np.load(folder / "scores" / f"{outcome.exhibit.key}-seed0.npz") as scores:
            for number, row in enumerate(rows):
                if outcome.exhibit.kind == "epochs":
                    assert row["error_full"] == pytest.approx(scores[f"r{number:03d}full"].mean())
                    assert row["error_masked"] == pytest.approx(scores[f"r{number:03d}masked"].mean())
                else:
                    assert row["auroc"] == pytest.approx(auroc(scores[f"r{number:03d}b"], scores[f"r{number:03d}m"]), abs=1e-5)
        outcome.path.unlink()  # the report of this folder lacks figure 6


def test_table_3_counts_the_weights_of_each_defence_with_and_without_sharing(kept):
    data = kept[0]["costs"]
    (row,) = data["rows"]
    alone, shared = data["memory_bytes"]["alone"], data["memory_bytes"]["shared"]
    assert row["weights_bytes"] - row["weights_bytes_shared"] == alone["together"] - shared["together"] > 0
    assert row["weights_bytes"] > alone["together"]  # the autoencoder
    assert 0 <= row["memory_growth_mib"] < 2000


def test_what_could_not_be_made_is_named_and_the_rest_goes_on(outcomes):
    assert [entry["what"] for entry in outcomes[0].missing] == ["jbda-5"]
    assert "budget must cover the seeds" in outcomes[0].missing[0]["why"]
    assert outcomes[1].missing == ()


def test_saved_queries_can_be_read_back(folder, outcomes):
    with np.load(folder / "queries" / "digits-jbda-60-seed0.npz") as saved:
        assert saved["inputs"].shape == (60, 1, 8, 8)
        assert saved["natural"].sum() == 20
        np.testing.assert_allclose(saved["inputs"] * 255, np.rint(saved["inputs"] * 255), atol=1e-4)


def test_a_second_run_finds_everything_and_writes_nothing(folder, outcomes):
    before = outcomes[1].path.stat().st_mtime_ns
    events = []
    again = evaluate_exhibits(Order(folder, "tiny"), [TABLE, SWEEP], progress=events.append)
    assert [outcome.cached for outcome in again] == [True, True]
    assert {event.title for event in events if event.making} == {"digits: jbda-5"}  # what fails is tried again
    assert events[-1].cached == events[-1].steps - 4  # it, and its scores by three families
    assert outcomes[1].path.stat().st_mtime_ns == before


def test_the_weights_of_the_sweep_end_in_the_terms_alone(outcomes):
    rows = result_of(outcomes[1])["data"]["rows"]
    assert len(rows) == 2 * 11
    title = "full error and disagreement"
    by_weight = {row["weight"]: row["auroc"] for row in rows if row["title"] == title}
    cells = {row["title"]: row["cells"]["jbda-60"]["auroc"] for row in result_of(outcomes[0])["data"]["rows"]}
    assert by_weight[1.0] == pytest.approx(cells["SAME-X (reconstruction error alone)"], abs=1e-4)
    assert by_weight[0.0] == pytest.approx(cells["SAME-Y (disagreement alone)"], abs=1e-4)


def test_the_report_is_one_page_without_a_network_and_the_same_tables_as_markdown(folder, outcomes):
    page, text = write_report(folder)
    html = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "<script" not in html
    assert html.count("data:image/png;base64,") >= 6
    for part in (html, text.read_text()):
        assert "Table 1: detection" in part
        assert "JBDA, synthetic only" in part
        assert "20 of 60 are natural images" in part
        assert "no jbda-5: budget must cover the seeds" in part
        assert "Figure 6: epochs of the autoencoder (8x8 digits, small convolutional victim): not run yet." in part
        assert "92.53" in part
    assert "paper: SAME" not in text.read_text()  # other budgets than the paper's


def test_the_papers_numbers_stand_beside_ours_where_attack_and_budget_agree(folder, outcomes, tmp_path):
    stored = result_of(outcomes[0])
    for column in stored["data"]["columns"]:
        column |= {"budget": 1000, "reported": {"jbda": "JBDA", "knockoff": "Knockoff"}[column["attack"]]}
    (tmp_path / "results").mkdir()
    (tmp_path / "laboratory.json").write_text((folder / "laboratory.json").read_text())
    for seed in (0, 1):
        (tmp_path / "results" / f"table-1-digits-seed{seed}.json").write_text(json.dumps(stored | {"seed": seed}))
    text = markdown(tmp_path)
    assert "| *paper: SAME* | 93.3 / 93.0 / 27.4 | – | 99.4 / 99.5 / 1.3 |" in text
    assert "± 0.0" in text
    assert "Seeds: 0, 1" in text


def test_a_partial_folder_is_reported_and_an_empty_foreign_or_damaged_one_is_a_sentence(tmp_path, folder, outcomes):
    with pytest.raises(ConfigurationError, match=r"must hold laboratory.json, got none: run sameguard evaluate"):
        write_report(tmp_path)
    (tmp_path / "laboratory.json").write_text(json.dumps({"schema": SCHEMA, "scale": "tiny"}))
    with pytest.raises(ConfigurationError, match="must hold at least one result, got none"):
        write_report(tmp_path)
    (tmp_path / "results").mkdir()
    target = tmp_path / "results" / "weights-digits-seed0.json"
    target.write_text(outcomes[1].path.read_text())
    _, text = write_report(tmp_path)
    assert "Table 1: detection (8x8 digits, small convolutional victim): not run yet." in text.read_text()
    target.write_text(json.dumps(result_of(outcomes[1]) | {"schema": 99}))
    with pytest.raises(InvalidDataError, match="must be of version 1, got 99"):
        read_results(tmp_path)
    target.write_text("{")
    with pytest.raises(InvalidDataError, match="must be readable JSON"):
        read_results(tmp_path)
    (tmp_path / "laboratory.json").write_text(json.dumps({"schema": 99, "scale": "tiny"}))
    with pytest.raises(ConfigurationError, match="must be of version 1, got 99"):
        write_report(tmp_path)
    (tmp_path / "laboratory.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="must be readable JSON of a results folder"):
        write_report(tmp_path)


def test_a_folder_of_another_scale_or_with_other_files_is_refused_before_anything_runs(tmp_path, folder, outcomes):
    with pytest.raises(ConfigurationError, match="is of scale tiny, got cpu: choose another --out"):
        evaluate(Order(folder, "cpu"))
    with pytest.raises(ConfigurationError, match="is of scale tiny, got cpu: choose another --out"):
        check_folder(folder, "cpu")
    check_folder(tmp_path / "new", "cpu")
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match=r"must be new, empty or a results folder, got one with thesis\.tex in it"):
        evaluate(Order(tmp_path, "tiny"))


def test_an_exhibit_whose_data_are_absent_is_missing_with_the_remedy(tmp_path):
    absent = replace(MINI, dataset="mnist", victim="conv3", name="mnist", title="MNIST", proxies=(Source("kmnist"),))
    out = tmp_path / "out"
    (outcome,) = evaluate_exhibits(Order(out, "tiny", seed=3, data_root=tmp_path), [replace(SWEEP, setting=absent)])
    assert outcome.path is None
    assert "sameguard data fetch mnist" in outcome.missing[0]["why"]
    assert [path.name for path in (out / "results").iterdir()] == ["weights-mnist-seed3.missing.json"]
    page, text = write_report(out)  # of failures alone
    for part in (page.read_text(), text.read_text()):
        assert "The weight of Eq. 6 (MNIST), seed 3: nothing could be made: " in part
        assert "sameguard data fetch mnist" in part
        assert "The weight of Eq. 6 (8x8 digits, small convolutional victim): not run yet." in part
        assert "no Table 2, and none of its numbers can be compared with the paper" in part


def test_a_reason_goes_when_a_result_comes_and_a_result_stays_when_a_later_run_fails(folder, outcomes):
    reason = folder / "results" / "weights-digits-seed0.missing.json"
    known = {"schema": SCHEMA, "exhibit": "weights", "title": "Weight", "setting": {"name": "digits", "title": "digits"}, "seed": 0}
    reason.write_text(json.dumps({**known, "missing": [{"what": "Weight", "why": "the disk was full"}]}))
    assert [run["missing"][0]["why"] for run in read_failures(folder)["weights-digits"]] == ["the disk was full"]
    assert "weights-digits" in [result.key for result in read_results(folder)]
    assert "seed 0: the last run made nothing, what is here is an earlier one's: the disk was full" in markdown(folder)
    evaluate_exhibits(Order(folder, "tiny"), [SWEEP])
    assert not reason.exists()
    assert outcomes[1].path.exists()


def test_our_markdown_becomes_html_and_is_escaped():
    lines = ["**bold** & <b>", "", "| a | b |", "|---|---|", "| **group** |  |", "| *x* | 1 |", "", "- one", "- two"]
    html = "\n".join(to_html(lines))
    assert "<p><strong>bold</strong> &amp; &lt;b&gt;</p>" in html
    assert '<tr class="group"><td><strong>group</strong></td><td></td></tr>' in html
    assert "<td><em>x</em></td><td>1</td>" in html
    assert "<ul>\n<li>one</li>\n<li>two</li>\n</ul>" in html


def test_another_victim_on_the_same_data_gets_the_autoencoder_that_is_there(folder, outcomes):
    trained = []
    lab = Laboratory(folder, control=RunControl(progress=lambda event: trained.append(event.stage)))
    stage = lab.fit_stage(replace(MINI, name="digits-twin"))
    assert {"victim", "auxiliary"} <= set(trained)
    assert "autoencoder" not in trained
    assert "reconstructions" not in trained
    first = lab.fit_stage(MINI)
    assert stage.folder != first.folder
    assert (stage.folder / "artefact" / "reconstruction.onnx").read_bytes() == (
        first.folder / "artefact" / "reconstruction.onnx"
    ).read_bytes()
    trained.clear()
    lab.fit_stage(replace(MINI, name="digits-longer", fit_epochs=3))
    assert "autoencoder" in trained
