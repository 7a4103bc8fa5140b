import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sameguard.artifact import read_artifact
from sameguard.calibration import Threshold, calibrate, flag_count_range
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ArtifactError, ConfigurationError, NotFittedError
from sameguard.guard import Guard
from sameguard.policies import Reject
from sameguard.runtime import Provider, Scorer, available_providers, choose_engine
from sameguard.runtime import scorer as scorer_module

OPENVINO = Provider("openvino", "fp32") in available_providers()


@pytest.fixture(scope="module")
def calibrated(artifact_directory: Path, victim, digits, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("calibrated") / "digits"
    shutil.copytree(artifact_directory, directory)
    scorer = Scorer(directory, for_calibration=True)
    scorer.save(calibrate(scorer, digits.benign, victim, 0.05))
    return directory


def test_a_saved_calibration_scores_and_flags_as_before(calibrated, artifact_directory, victim, digits):
    fresh = Scorer(artifact_directory, for_calibration=True)
    threshold = calibrate(fresh, digits.benign, victim, 0.05)
    loaded = Scorer(calibrated)
    queries = digits.contract.canonicalise(digits.test.inputs[:50])
    answers = victim.answer(queries)
    np.testing.assert_allclose(loaded.score(queries, answers), fresh.score(queries, answers), rtol=1e-12)
    assert loaded.threshold() == threshold
    assert loaded.threshold(0.1).value <= threshold.value


def test_the_roles_of_data_are_disjoint_and_stored(calibrated):
    arrays = read_artifact(calibrated).arrays("benign.npz")
    roles = [set(arrays[f"digests.{role}"].tolist()) for role in ("train", "statistics", "calibration")]
    assert all(roles)
    assert sum(map(len, roles)) == len(set.union(*roles))


def test_a_scorer_runs_with_torch_absent(calibrated, tmp_path, digits, victim):
    queries = digits.contract.canonicalise(digits.test.inputs[:5])
    answers = victim.answer(queries)
    np.savez(tmp_path / "queries.npz", queries=queries, answers=answers)
    script = textwrap.dedent(
        f"""
        import sys
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "sklearn", "scipy", "onnx", "safetensors", "matplotlib"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, NoTorch())
        import numpy as np
        from sameguard import BlackBox, Guard, MeteredEndpoint, Reject, Scorer
        import sameguard.cli.sources
        found = np.load({str(tmp_path / "queries.npz")!r})
        scorer = Scorer({str(calibrated)!r})
        canaries = scorer.calibration.canary_probs
        victim = BlackBox(lambda raw: canaries if len(raw) == len(canaries) else found["answers"][: len(raw)], scorer.contract, classes=10)
        guard = Guard(victim, scorer, Reject(scorer.threshold()))
        MeteredEndpoint(guard, budget=5).query(found["queries"])
        np.save({str(tmp_path / "scores.npy")!r}, scorer.score(found["queries"], found["answers"]))
        assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), Scorer(calibrated).score(queries, answers), rtol=1e-9)


def test_a_guarded_victim_refuses_noise_answers_digits_and_counts_both(calibrated, victim, digits):
    scorer = Scorer(calibrated)
    endpoint = MeteredEndpoint(Guard(victim, scorer, Reject(scorer.threshold())), budget=200)
    honest = endpoint.query(digits.test.inputs[:100])
    noise = endpoint.query((np.random.default_rng(1).random((100, 1, 8, 8)) < 0.5).astype(np.float32))
    assert honest.answered.mean() > 0.85
    assert noise.answered.mean() < 0.05
    assert np.isnan(noise.probs[~noise.answered]).all()
    assert endpoint.remaining == 0


def test_flags_on_the_test_digits_lie_in_their_beta_binomial_range(calibrated, victim, digits):
    scorer = Scorer(calibrated)
    threshold = scorer.threshold()
    terms = scorer.score_terms(digits.test.inputs, victim.query(digits.test.inputs).probs)
    flags = threshold.flags(scorer.combination.score(terms), scorer.combination.stage_a(terms)).sum()
    low, high = flag_count_range(len(digits.test), threshold.k, threshold.n, confidence=0.999)
    assert low <= flags <= high


@pytest.mark.skipif(not OPENVINO, reason="openvino is not installed")
def test_a_scorer_on_another_engine_refuses_and_names_the_remedy(calibrated):
    with pytest.raises(ArtifactError, match=r"was calibrated on onnxruntime-fp32, got openvino-fp32.*sameguard calibrate"):
        Scorer(calibrated, engine="openvino")
    assert Scorer(calibrated, engine="openvino", for_calibration=True).calibration is None


def test_an_engine_that_is_not_here_is_refused_with_the_remedy(calibrated, monkeypatch):
    monkeypatch.setattr("sameguard.runtime.engines.available_providers", lambda: [Provider("openvino", "fp32")])
    with pytest.raises(ArtifactError, match=r"is bound to onnxruntime-fp32, this machine runs openvino-fp32.*calibrate again"):
        Scorer(calibrated)


def test_an_unknown_engine_is_refused(calibrated):
    with pytest.raises(ConfigurationError, match="engine must be auto"):
        Scorer(calibrated, engine="tensorrt")


def test_an_uncalibrated_artefact_has_no_threshold_and_no_score(artifact_directory, digits, victim):
    scorer = Scorer(artifact_directory)
    queries = digits.contract.canonicalise(digits.benign[:2])
    with pytest.raises(NotFittedError, match="must be calibrated first"):
        scorer.threshold()
    with pytest.raises(NotFittedError, match=r"run calibrate\(\) first"):
        scorer.score(queries, victim.answer(queries))
    with pytest.raises(NotFittedError, match="save needs a calibrated scorer"):
        scorer.save(Threshold(1.0, np.inf, 0.05, 99, 5, (0.0, 1.0)))


def test_a_disk_that_fills_while_saving_leaves_the_old_calibration_loadable(calibrated, victim, digits, monkeypatch, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(calibrated, directory)
    before = Scorer(directory).threshold()
    scorer = Scorer(directory, for_calibration=True)
    threshold = calibrate(scorer, digits.benign, victim, 0.2, seed=5)

    def full(path, content):
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sameguard.artifact._write_file", full)
    with pytest.raises(ArtifactError, match=r"could not be changed.*No space left.*it is as it was"):
        scorer.save(threshold)
    monkeypatch.undo()
    assert Scorer(directory).threshold() == before


def test_choosing_an_engine_measures_all_and_keeps_an_eligible_one(calibrated, victim, digits):
    scorer = Scorer(calibrated, for_calibration=True)
    found = choose_engine(scorer, digits.benign, victim)
    assert set(found) == {str(provider) for provider in available_providers()}
    chosen = found[str(scorer.provider)]
    assert chosen["rank_correlation"] > 0.999
    assert chosen["flag_agreement"] >= 0.998
    assert found["onnxruntime-fp32"]["rank_correlation"] == pytest.approx(1.0)


def test_an_engine_whose_benign_ranks_differ_is_not_chosen(calibrated, victim, digits, monkeypatch):
    scorer = Scorer(calibrated, for_calibration=True)
    monkeypatch.setattr(scorer_module, "_rank_correlation", lambda first, second: 1.0 if first is second else 0.99)
    choose_engine(scorer, digits.benign, victim)
    assert scorer.provider == Provider("onnxruntime", "fp32")


def test_scoring_memory_does_not_grow_with_the_number_of_queries(calibrated, victim, digits):
    scorer = Scorer(calibrated)
    queries = digits.contract.canonicalise(np.tile(digits.test.inputs[:100], (16, 1, 1, 1)))
    answers = np.tile(victim.answer(queries[:100]), (16, 1))
    peaks = []
    for rows in (160, 1600):
        tracemalloc.start()
        terms = scorer.score_terms(queries[:rows], answers[:rows])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_query = (peaks[1] - peaks[0]) / 1440
    assert per_query < 4 * 8 * len(terms)  # the terms, in parts and joined, and nothing of the 1,280 bytes of reconstructions
