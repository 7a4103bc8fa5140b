"""score-log: a recorded row gets the score that the scorer gives it, whatever the format, the batch or the engine; a bad one costs itself only."""

import csv
import datetime
import json
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blur_artifact import write_blur_artifact
from sameguard.artifact import read_artifact, write_artifact
from sameguard.calibration import Calibration
from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError, DataNotFoundError, InvalidDataError, NotFittedError
from sameguard.runtime import Scorer
from sameguard.runtime.query_log import LogScoringError, score_log
from sameguard.runtime.query_log.json_lines import JsonLines
from sameguard.runtime.query_log.outputs import open_output
from sameguard.runtime.query_log.rows import BadRow, Frame, ScoredRows, merged, output_names
from sameguard.runtime.query_log.scoring import LogScorer, Options, p_values
from sameguard.scoring import ScoreConfig
from sameguard.victim import checked_probs
from stand_ins import CLASSES, linear_victim, noise_images, smooth_images

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no Parquet logs")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path:
    return write_blur_artifact(tmp_path_factory.mktemp("query-log") / "guard")


@pytest.fixture(scope="module")
def traffic() -> tuple[np.ndarray, np.ndarray]:
    """Queries as sent, the first 50 honest and then 20 of noise, and the victim's answers."""
    queries = np.concatenate([smooth_images(50), noise_images(20)])
    return queries, linear_victim().answer(queries)


@pytest.fixture(scope="module")
def expected(guard, traffic) -> dict[str, np.ndarray]:
    """What the scorer itself says of the traffic, at once."""
    scorer = Scorer(guard)
    queries, probs = traffic
    reconstruction = scorer.reconstruct(queries)
    probs = checked_probs(probs, len(queries), CLASSES, "probs")
    stage_a = scorer.stage_a_score(reconstruction)
    scores = scorer.combined_score(reconstruction, scorer.deviation(reconstruction, probs))
    return {"stage_a": stage_a, "score": scores, "flagged": scorer.threshold().flags(scores, stage_a)}


def lines_of(queries: np.ndarray, probs: np.ndarray | None, **columns: list[Any]) -> str:
    rows = []
    for row in range(len(queries)):
        logged = {"inputs": queries[row].tolist(), **{name: values[row] for name, values in columns.items()}}
        rows.append(logged if probs is None else logged | {"probs": probs[row].astype(float).tolist()})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def log(traffic, tmp_path) -> Path:
    path = tmp_path / "queries.jsonl"
    path.write_text(lines_of(*traffic, id=[f"q{row}" for row in range(70)], time=[1.5 * row for row in range(70)]))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows])


# ---------------------------------------------------------------------- equal scores


def test_json_lines_get_the_scorers_own_scores_and_keep_what_is_carried(guard, log, expected, tmp_path):
    summary = score_log(guard, str(log), tmp_path / "out.jsonl", batch_rows=16)
    rows = read_lines(tmp_path / "out.jsonl")
    assert list(rows[0]) == ["row", "id", "time", "stage_a_score", "score", "flagged", "p_value", "stages", "error"]
    np.testing.assert_allclose(column(rows, "score"), expected["score"], rtol=1e-5)
    np.testing.assert_allclose(column(rows, "stage_a_score"), expected["stage_a"], rtol=1e-5)
    assert [row["flagged"] for row in rows] == expected["flagged"].tolist()
    assert [(row["row"], row["id"], row["time"]) for row in rows] == [(row, f"q{row}", 1.5 * row) for row in range(70)]
    assert {row["stages"] for row in rows} == {"A+B"}
    assert (summary.rows, summary.answered, summary.stage_a_only, summary.errors) == (70, 70, 0, 0)
    assert summary.flagged == expected["flagged"].sum() >= 19
    assert summary.flagged_share == pytest.approx(expected["flagged"].mean())
    assert summary.threshold == Scorer(guard).threshold()


@pytest.mark.parametrize("batch_rows", [1, 7, 256])
def test_a_row_gets_the_same_score_in_any_batch(guard, log, expected, batch_rows, tmp_path):
    score_log(guard, str(log), tmp_path / "out.jsonl", batch_rows=batch_rows)
    np.testing.assert_allclose(column(read_lines(tmp_path / "out.jsonl"), "score"), expected["score"], rtol=1e-5)


def test_several_workers_give_equal_scores_in_the_logs_order(guard, log, tmp_path):
    for workers in (1, 3):
        score_log(guard, str(log), tmp_path / f"{workers}.jsonl", batch_rows=8, workers=workers)
    one, three = (read_lines(tmp_path / f"{workers}.jsonl") for workers in (1, 3))
    assert one == three


def parquet_log(path: Path, queries: np.ndarray, probs: np.ndarray, inputs: Any, **columns: Any) -> Path:
    table = pa.table({"id": np.arange(len(queries)), **columns, "inputs": inputs, "probs": [row.tolist() for row in probs]})
    pq.write_table(table, path, row_group_size=30)
    return path


@pytest.mark.parametrize("kind", ["list", "fixed", "binary", "double"])
def test_parquet_gets_equal_scores_however_its_inputs_are_kept(guard, traffic, expected, kind, tmp_path):
    queries, probs = traffic
    flat = queries.reshape(len(queries), -1)
    inputs = {
        "list": pa.array(flat.tolist(), pa.list_(pa.float32())),
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 16),
        "binary": pa.array([row.astype("<f4").tobytes() for row in flat], pa.binary()),
        "double": pa.array(flat.astype(float).tolist(), pa.large_list(pa.float64())),
    }[kind]
    log = parquet_log(tmp_path / "log.parquet", queries, probs, inputs)
    score_log(guard, str(log), tmp_path / "out.parquet", batch_rows=16)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(70))
    np.testing.assert_allclose(table["score"].to_numpy(), expected["score"], rtol=1e-5)
    assert table["flagged"].to_pylist() == expected["flagged"].tolist()


def test_arrays_get_equal_scores_and_their_columns_go_along(guard, traffic, expected, tmp_path):
    queries, probs = traffic
    for save in (np.savez, np.savez_compressed):
        log = tmp_path / f"{save.__name__}.npz"
        save(log, inputs=queries, victim_probs=probs, id=np.arange(70), who=np.array(["a", "bc"] * 35), grid=np.zeros((2, 2)))
        score_log(guard, str(log), tmp_path / "out.npz", batch_rows=16, overwrite=True)
        with np.load(tmp_path / "out.npz") as out:
            assert out.files == ["row", "id", "who", "stage_a_score", "score", "flagged", "p_value", "stages", "error"]
            np.testing.assert_allclose(out["score"], expected["score"], rtol=1e-5)
            assert out["flagged"].tolist() == expected["flagged"].tolist()
            assert out["who"].tolist() == ["a", "bc"] * 35
            assert (out["id"].dtype, out["error"].tolist()) == (np.int64, [""] * 70)


def test_the_formats_agree_to_the_last_digit(guard, traffic, tmp_path):
    queries, probs = traffic
    (tmp_path / "log.jsonl").write_text(lines_of(queries, probs))
    np.savez(tmp_path / "log.npz", inputs=queries.reshape(70, -1), victim_probs=probs)
    parquet_log(tmp_path / "log.parquet", queries, probs, pa.array(queries.reshape(70, -1).tolist(), pa.list_(pa.float32())))
    found = []
    for suffix in ("jsonl", "npz", "parquet"):
        score_log(guard, str(tmp_path / f"log.{suffix}"), tmp_path / f"out-{suffix}.jsonl", batch_rows=10)
        found.append(column(read_lines(tmp_path / f"out-{suffix}.jsonl"), "score"))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_raw_values_are_decoded_by_the_artefacts_contract_and_canonical_ones_on_request(traffic, expected, tmp_path):
    contract = InputContract.images(1, 4, 4, layout="NHWC", mean=(0.5,), std=(0.25,))
    normalised = write_blur_artifact(tmp_path / "normalised", contract=contract)
    queries, probs = traffic
    (tmp_path / "raw.jsonl").write_text(lines_of(contract.encode(queries), probs))
    (tmp_path / "canonical.jsonl").write_text(lines_of(queries, probs))
    for name in ("raw", "canonical"):
        score_log(normalised, str(tmp_path / f"{name}.jsonl"), tmp_path / f"out-{name}.jsonl", canonical=name == "canonical")
        np.testing.assert_allclose(column(read_lines(tmp_path / f"out-{name}.jsonl"), "score"), expected["score"], rtol=1e-5)


# ---------------------------------------------------------------------- Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own imports
        ray = pytest.importorskip("ray", reason="ray is not installed: no actors to score on")
        pytest.importorskip("ray.data", reason="ray[data] is not installed")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")
def test_ray_gives_the_same_scores_in_the_same_order(ray, guard, log, tmp_path):
    log.write_text(log.read_text() + '{"inputs": [1.0], "probs": []}\n')
    local = score_log(guard, str(log), tmp_path / "local.jsonl", batch_rows=8)
    actors = score_log(guard, str(log), tmp_path / "ray.jsonl", batch_rows=8, engine="ray", workers=2)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert actors.errors == local.errors == 1
    assert actors.engine.startswith("ray, ")
    assert ray.is_initialized()  # what was there before stays
    parted = score_log(guard, str(log), tmp_path / "parted.jsonl", batch_rows=5, engine="ray", workers=1)
    assert parted.flagged == local.flagged
    found = [column(read_lines(tmp_path / name), "score") for name in ("ray.jsonl", "parted.jsonl")]
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize(("engine", "missing", "extra"), [("ray", "ray", "ray"), ("local", "pyarrow", "parquet")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(engine, missing, extra, guard, log, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=rf"not installed: pip install 'sameguard\[{extra}\]'"):
        score_log(guard, str(log), tmp_path / "out.parquet", engine=engine)


# ---------------------------------------------------------------------- without answers


def test_without_answers_stage_a_alone_is_scored_and_says_so(guard, traffic, expected, tmp_path):
    (tmp_path / "log.jsonl").write_text(lines_of(traffic[0], None))
    summary = score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / "out.jsonl")
    rows = read_lines(tmp_path / "out.jsonl")
    np.testing.assert_allclose(column(rows, "stage_a_score"), expected["stage_a"], rtol=1e-5)
    assert {(row["stages"], row["score"]) for row in rows} == {("A", None)}
    cut = Scorer(guard).threshold().stage_a
    assert [row["flagged"] for row in rows] == (expected["stage_a"] > cut).tolist()
    benign = Scorer(guard).calibration.stage_a_scores
    assert rows[0]["p_value"] == pytest.approx((1 + (benign >= rows[0]["stage_a_score"]).sum()) / (len(benign) + 1))
    assert (summary.answered, summary.stage_a_only) == (0, 70)


def test_stage_a_only_leaves_recorded_answers_aside(guard, log, tmp_path):
    summary = score_log(guard, str(log), tmp_path / "out.jsonl", stage_a_only=True)
    assert (summary.answered, summary.stage_a_only) == (0, 70)


def test_a_log_with_some_answers_gives_each_row_the_stages_it_allows(guard, traffic, tmp_path):
    queries, probs = traffic
    (tmp_path / "log.jsonl").write_text(lines_of(queries[:3], probs[:3]) + lines_of(queries[3:5], None))
    summary = score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / "out.jsonl")
    assert [row["stages"] for row in read_lines(tmp_path / "out.jsonl")] == ["A+B"] * 3 + ["A"] * 2
    assert (summary.answered, summary.stage_a_only) == (3, 2)


def test_a_score_without_stage_a_needs_answers(traffic, tmp_path):
    directory = write_blur_artifact(tmp_path / "same-y", config=ScoreConfig(combination="weighted", reconstruction_weight=0.0))
    (tmp_path / "log.jsonl").write_text(lines_of(traffic[0][:2], None) + lines_of(traffic[0][:2], traffic[1][:2]))
    with pytest.raises(ConfigurationError, match="must have a stage A to score queries alone"):
        score_log(directory, str(tmp_path / "log.jsonl"), tmp_path / "out.jsonl", stage_a_only=True)
    summary = score_log(directory, str(tmp_path / "log.jsonl"), tmp_path / "out.jsonl")
    assert (summary.errors, summary.answered) == (2, 2)
    assert "row 0: row must have probs, got none" in summary.first_error


# ---------------------------------------------------------------------- flags and p-values


def test_another_rate_moves_the_flags(guard, log, tmp_path):
    strict, loose = (score_log(guard, str(log), tmp_path / f"{rate}.jsonl", rate=rate) for rate in (0.02, 0.4))
    assert strict.flagged < loose.flagged


@given(st.integers(0, 2**32 - 1), st.integers(5, 60), st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.booleans())
def test_a_row_is_flagged_exactly_where_its_p_value_is_at_most_the_rate(seed, n, rate, with_stage_a):
    rng = np.random.default_rng(seed)
    if int(rate * (n + 1) + 1e-9) == 0:
        n += 20
    stage_a = rng.normal(size=n) if with_stage_a else np.empty(0)
    calibration = Calibration(
        scores=rng.normal(size=n),
        stage_a_scores=stage_a,
        statistics_stage_a=np.sort(rng.normal(size=50)) if with_stage_a else np.empty(0),
        digests={},
        agreement=1.0,
        biased=False,
        canary_queries=np.empty((0, 1), np.float32),
        canary_probs=np.empty((0, 2), np.float32),
    )
    threshold = calibration.threshold(rate)
    scores, early = rng.normal(size=40) * 2, rng.normal(size=40) * 2
    early = early if with_stage_a else None
    found = p_values(calibration, threshold, scores, early)
    assert ((found > 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found <= rate + 1e-12, threshold.flags(scores, early))


# ---------------------------------------------------------------------- bad rows


BAD_LINES = {
    "not json": "{inputs: }",
    "no object": "[1, 2]",
    "NaN": json.dumps({"inputs": [float("nan")] * 16, "probs": [0.2, 0.3, 0.5]}),
    "short": json.dumps({"inputs": [0.5] * 15, "probs": [0.2, 0.3, 0.5]}),
    "no inputs": json.dumps({"probs": [0.2, 0.3, 0.5]}),
    "out of bounds": json.dumps({"inputs": [7.0] * 16, "probs": [0.2, 0.3, 0.5]}),
    "text": json.dumps({"inputs": ["0.5"] * 16, "probs": [0.2, 0.3, 0.5]}),
    "wrong classes": json.dumps({"inputs": [0.5] * 16, "probs": [0.5, 0.5]}),
    "unnormalised": json.dumps({"inputs": [0.5] * 16, "probs": [0.5] * 3}),
    "negative": json.dumps({"inputs": [0.5] * 16, "probs": [-0.1, 0.5, 0.6]}),
}


def test_bad_rows_are_written_with_their_reasons_and_cost_the_others_nothing(guard, log, expected, tmp_path):
    good = log.read_text().splitlines()
    log.write_text("\n".join([*good[:35], *BAD_LINES.values(), "", "  ", *good[35:]]) + "\n")
    summary = score_log(guard, str(log), tmp_path / "out.jsonl", batch_rows=16)
    rows = read_lines(tmp_path / "out.jsonl")
    bad = rows[35:45]
    reasons = {name: row["error"] for name, row in zip(BAD_LINES, bad, strict=True)}
    assert "line must be strict JSON" in reasons["not json"]
    assert "line must be a JSON object, got list" in reasons["no object"]
    assert "line must be strict JSON" in reasons["NaN"]
    assert "16, got 15" in reasons["short"]
    assert reasons["no inputs"] == "row must have inputs, got none."
    assert "must lie in [0, 1] after decoding" in reasons["out of bounds"]
    assert "all numbers, got strings among them" in reasons["text"]
    assert "must have the shape (3,)" in reasons["wrong classes"]
    assert "must return probabilities that sum to 1" in reasons["unnormalised"]
    assert "must return probabilities >= 0" in reasons["negative"]
    assert all(row["flagged"] is row["score"] is row["p_value"] is row["stages"] is None for row in bad)
    np.testing.assert_allclose(column(rows[:35] + rows[45:], "score"), expected["score"], rtol=1e-5)
    assert (summary.rows, summary.errors, summary.answered) == (80, 10, 70)
    assert summary.first_error.startswith("row 35: line must be strict JSON")


def test_bad_rows_of_parquet_and_arrays(guard, traffic, tmp_path):
    queries, probs = traffic
    flat = [row.tolist() for row in queries[:6].reshape(6, -1)]
    flat[1], flat[2], flat[3] = None, flat[2][:5], [None, *flat[3][1:]]
    answers = [row.tolist() for row in probs[:6]]
    answers[4], answers[5] = None, [0.5]
    pq.write_table(pa.table({"inputs": pa.array(flat, pa.list_(pa.float32())), "probs": answers}), tmp_path / "log.parquet")
    score_log(guard, str(tmp_path / "log.parquet"), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        assert out["flagged"].tolist()[1:4] == [-1] * 3
        assert np.isnan(out["score"][1:6]).all()
        assert out["stages"].tolist() == ["A+B", "", "", "", "A", ""]
        reasons = out["error"].tolist()
    assert reasons[1] == "row must have inputs, got none."
    assert "must be 16 numbers, got 5" in reasons[2]
    assert "must be finite" in reasons[3]
    assert "must be 3 numbers, got 1" in reasons[5]
    damaged = queries[:3].copy()
    damaged[1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "log.npz", inputs=damaged, victim_probs=probs[:3])
    score_log(guard, str(tmp_path / "log.npz"), tmp_path / "out.csv")
    rows = read_table(tmp_path / "out.csv")
    assert [row["flagged"] for row in rows][1] == ""
    assert "finite" in rows[1]["error"]
    assert rows[0]["error"] == ""


def test_integers_and_labels_are_read_where_the_artefact_takes_them():
    pixels = Frame((2,), "UINT8", 3, labels=True)
    np.testing.assert_array_equal(pixels.input_from_array(np.array([0.0, 255.0])), np.array([0, 255], np.uint8))
    assert pixels.input_from_array(np.array([0.5, 1.0])) == BadRow(
        "inputs of datatype UINT8 must be whole numbers in [0, 255], got another."
    )
    assert isinstance(pixels.input_from_json([1, 256]), BadRow)
    np.testing.assert_array_equal(pixels.probs_from_json(2), [0, 0, 1])
    assert pixels.probs_from_json(3) == BadRow("probs must be a label in [0, 3), got 3.")
    assert isinstance(Frame((2,), "FP32", 3).probs_from_json(2), BadRow)


# ---------------------------------------------------------------------- columns


def test_columns_of_any_kind_are_carried_into_every_format(guard, traffic, tmp_path):
    queries, probs = traffic
    mixed: dict[str, list[Any]] = {"tags": [{"a": 1}, [2], None], "n": [1, 2.5, None], "big": [2**70, 1, 2], "yes": [True, None, False]}
    (tmp_path / "log.jsonl").write_text(lines_of(queries[:3], probs[:3], **mixed, score=[0.1, 0.2, 0.3]))
    for suffix in ("jsonl", "csv", "parquet", "npz"):
        score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / f"out.{suffix}")
    rows = read_lines(tmp_path / "out.jsonl")
    assert [row["tags"] for row in rows] == mixed["tags"]
    assert [row["logged_score"] for row in rows] == [0.1, 0.2, 0.3]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["tags"].to_pylist() == ['{"a":1}', "[2]", None]
    assert table["n"].to_pylist() == [1.0, 2.5, None]
    assert table["yes"].to_pylist() == [True, None, False]
    assert read_table(tmp_path / "out.csv")[0]["tags"] == '{"a":1}'
    with np.load(tmp_path / "out.npz") as out:
        assert out["yes"].tolist() == [1, -1, 0]
        assert out["tags"].tolist() == ['{"a":1}', "[2]", ""]


def test_types_of_a_parquet_log_survive_in_parquet_and_become_text_elsewhere(guard, traffic, tmp_path):
    queries, probs = traffic
    when = pa.array([1_700_000_000_000_000_001, None, 3], pa.timestamp("ns"))
    inputs = pa.array(queries[:3].reshape(3, -1).tolist(), pa.list_(pa.float32()))
    log = parquet_log(tmp_path / "log.parquet", queries[:3], probs[:3], inputs, when=when, raw=pa.array([b"\x00", b"a", None]))
    score_log(guard, str(log), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table["when"].type, table["when"].combine_chunks()) == (when.type, when)
    for suffix in ("jsonl", "csv", "npz"):
        score_log(guard, str(log), tmp_path / f"out.{suffix}")
    row = read_lines(tmp_path / "out.jsonl")[0]
    assert row["when"].startswith("2023-11-14 22:13:20.000000001")
    assert row["raw"] == "AA=="


def test_names_that_scoring_writes_itself_are_moved_aside():
    assert output_names(["id", "score", "logged_score"]) == {"id": "id", "score": "logged_logged_score", "logged_score": "logged_score"}


# ---------------------------------------------------------------------- files


def test_a_directory_or_a_glob_is_one_log_in_order_of_names(guard, traffic, expected, tmp_path):
    queries, probs = traffic
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "b.jsonl").write_text(lines_of(queries[40:], probs[40:], only_b=list(range(30))))
    (folder / "a.jsonl").write_text(lines_of(queries[:40], probs[:40], id=list(range(40))))
    (folder / ".hidden.jsonl").write_text("{}\n")
    for spec in (folder, folder / "*.jsonl"):
        score_log(guard, str(spec), tmp_path / "out.jsonl", batch_rows=16, overwrite=True)
        rows = read_lines(tmp_path / "out.jsonl")
        np.testing.assert_allclose(column(rows, "score"), expected["score"], rtol=1e-5)
        assert (rows[0]["id"], rows[0]["only_b"], rows[-1]["id"], rows[-1]["only_b"], rows[-1]["row"]) == (0, None, None, 29, 69)


def test_an_empty_log_gives_an_empty_output(guard, tmp_path):
    (tmp_path / "log.jsonl").write_text("\n")
    for suffix in ("jsonl", "csv", "parquet", "npz"):
        summary = score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / f"out.{suffix}")
        assert (summary.rows, summary.flagged) == (0, 0)
    assert np.isnan(summary.flagged_share)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    with np.load(tmp_path / "out.npz") as out:
        assert out["score"].shape == (0,)


@pytest.mark.parametrize("suffix", ["jsonl", "npz"])
def test_memory_is_bounded_by_a_batch_not_by_the_log(guard, traffic, suffix, tmp_path):
    queries, probs = traffic
    score_log(guard, _repeated(tmp_path, queries, probs, suffix, 1), tmp_path / "warm.csv", batch_rows=32)
    peaks = []
    for times in (4, 40):
        log = _repeated(tmp_path, queries, probs, suffix, times)
        tracemalloc.start()
        score_log(guard, log, tmp_path / f"{times}.csv", batch_rows=32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # the longer log holds 700 kB of inputs more in memory, and 2 MB as lists


def _repeated(folder: Path, queries: np.ndarray, probs: np.ndarray, suffix: str, times: int) -> str:
    path = folder / f"log{times}.{suffix}"
    if suffix == "npz":
        np.savez(path, inputs=np.concatenate([queries] * times), victim_probs=np.concatenate([probs] * times))
    else:
        path.write_text(lines_of(queries, probs) * times)
    return str(path)


def test_an_interrupted_run_leaves_nothing_and_an_old_output_stays(guard, log, tmp_path):
    (tmp_path / "out.jsonl").write_text("old")

    def interrupt(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        score_log(guard, str(log), tmp_path / "out.jsonl", batch_rows=8, overwrite=True, progress=interrupt)
    for suffix in ("npz", "parquet", "csv"):
        with pytest.raises(KeyboardInterrupt):
            score_log(guard, str(log), tmp_path / f"new.{suffix}", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_an_output_that_is_there_is_not_replaced(guard, log, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(ConfigurationError, match="must be new, got a file of that name"):
        score_log(guard, str(log), tmp_path / "out.csv")
    score_log(guard, str(log), tmp_path / "out.csv", overwrite=True)
    assert (tmp_path / "out.csv").read_text().startswith("row,id,time,stage_a_score")


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(ConfigurationError, match="must be new"), open_output(tmp_path / "out.csv", {"row": "int"}, overwrite=False):
        (tmp_path / "out.csv").write_text("someone else's")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "someone else's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
        ({"batch_rows": 0}, "workers and batch_rows must be at least 1"),
        ({"workers": 0}, "workers and batch_rows must be at least 1"),
        ({"out": "out.txt"}, r"output must end in .*, got .*out\.txt"),
        ({"out": "folder.csv"}, "must be a file, got a directory"),
        ({"out": "queries.jsonl", "overwrite": True}, "must not be one of the logs"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(change, message, guard, log, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    asked: dict[str, Any] = {"out": "out.csv"} | change
    with pytest.raises(ConfigurationError, match=message):
        score_log(guard, str(log), tmp_path / asked.pop("out"), **asked)


def test_queries_that_are_not_there_or_of_two_formats_are_refused(guard, log, tmp_path):
    with pytest.raises(DataNotFoundError, match="must name a file, a directory or a glob"):
        score_log(guard, str(tmp_path / "none*.jsonl"), tmp_path / "out.csv")
    np.savez(tmp_path / "other.npz", inputs=np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(ConfigurationError, match=r"one format, .*got \.jsonl, \.npz"):
        score_log(guard, str(tmp_path), tmp_path / "out.csv")


def test_an_artefact_without_calibration_is_refused(guard, log, tmp_path):
    artifact = read_artifact(guard, names=("reconstruction.onnx", "auxiliary.onnx"))
    write_artifact(tmp_path / "bare", {name: value for name, value in artifact.manifest.items() if name != "provider"}, artifact.files)
    with pytest.raises(NotFittedError, match="must be calibrated first"):
        score_log(tmp_path / "bare", str(log), tmp_path / "out.csv")


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((3, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "must hold an array inputs, got x"),
        ({"inputs": IMAGES[:, :, 1:]}, r"inputs must be \(rows, 1, 4, 4\) of FP32, got \(3, 1, 3, 4\)"),
        ({"inputs": IMAGES.reshape(3, 4, 1, 4)}, r"must have rows of shape \(1, 4, 4\) or flat ones"),
        ({"inputs": IMAGES.astype(str)}, "inputs must be"),
        ({"inputs": np.asfortranarray(IMAGES.reshape(3, 16))}, "must lie row by row"),
        ({"inputs": IMAGES, "probs": np.zeros((2, 3))}, r"probs must be \(3, 3\) numbers, got \(2, 3\)"),
        ({"inputs": IMAGES, "probs": np.zeros(3, int)}, r"probs must be \(3, 3\) numbers, got \(3,\)"),
        ({"inputs": np.array([{}, {}], object)}, "an array of Python objects"),
    ],
)
def test_arrays_that_are_no_log_of_this_model_are_refused(arrays, message, guard, tmp_path):
    log = _npz(tmp_path / "log.npz", **arrays)
    with pytest.raises(InvalidDataError, match=message):
        score_log(guard, str(log), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_damaged_files_are_named(guard, traffic, monkeypatch, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"inputs": ["text"]}), tmp_path / "c.parquet")
    for name, message in (
        ("a.npz", "must be an .npz of arrays"),
        ("a.parquet", "must be readable Parquet"),
        ("b.parquet", "must have a column inputs, got x"),
        ("c.parquet", "column inputs must be a list of numbers or binary, got string"),
    ):
        with pytest.raises(InvalidDataError, match=message):
            score_log(guard, str(tmp_path / name), tmp_path / "out.csv")
    monkeypatch.setattr("sameguard.runtime.query_log.json_lines.LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(lines_of(*(part[:1] for part in traffic)))
    with pytest.raises(InvalidDataError, match="got a line of more than 100 bytes"):
        score_log(guard, str(tmp_path / "a.jsonl"), tmp_path / "out.csv")


def test_an_archive_cut_off_after_its_survey_is_an_error_not_a_short_output(guard, traffic, tmp_path):
    rows = LogScorer(Options(str(guard)))
    (tmp_path / "log.jsonl").write_text(lines_of(*traffic))
    survey = JsonLines(rows.frame).survey(str(tmp_path / "log.jsonl"), 70)
    assert (survey.rows, [piece.rows for piece in survey.pieces]) == (70, [70])

    def shorten(done: int, rows: int) -> None:
        (tmp_path / "log.jsonl").write_text(lines_of(*(part[:12] for part in traffic)))

    with pytest.raises(LogScoringError, match="rows must come back in the log's order"):
        score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / "out.csv", batch_rows=4, progress=shorten)


def test_columns_of_two_types_in_two_parquet_files_are_refused(guard, traffic, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    inputs = pa.array(traffic[0][:2].reshape(2, -1).tolist(), pa.list_(pa.float32()))
    for name, values in (("a", [1, 2]), ("b", [datetime.date(2026, 1, 1)] * 2)):
        pq.write_table(pa.table({"inputs": inputs, "when": values}), folder / f"{name}.parquet")
    with pytest.raises(InvalidDataError, match="column 'when' must have one type in all files, got int64 and date32"):
        score_log(guard, str(folder), tmp_path / "out.csv")


def test_a_text_too_long_for_an_array_is_refused(guard, traffic, tmp_path):
    (tmp_path / "log.jsonl").write_text(lines_of(*(part[:1] for part in traffic), note=["x" * 2000]))
    with pytest.raises(InvalidDataError, match="texts of at most 1024 letters, got 2000"):
        score_log(guard, str(tmp_path / "log.jsonl"), tmp_path / "out.npz")
    assert not list(tmp_path.glob("*out*"))


def test_no_surveys_are_an_empty_log():
    assert merged([]).rows == 0
    empty = ScoredRows(0, *(np.empty(0) for _ in range(4)), [], [], {})
    assert empty.columns()["score"] == []
