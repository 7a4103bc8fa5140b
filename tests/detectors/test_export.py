import numpy as np
import pytest

from sameguard.artifact import read_artifact
from sameguard.detectors import SAME, export
from sameguard.errors import ArtifactError
from sameguard.runtime import Scorer, available_providers


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_raw_terms_of_the_artefact_equal_fp32_torch(fitted_same: SAME, artifact_directory, victim, digits, rows):
    scorer = Scorer(artifact_directory, engine="onnxruntime")
    queries = digits.contract.canonicalise(digits.benign[:rows])
    answers = victim.answer(queries)
    torch_terms, onnx_terms = fitted_same.score_terms(queries, answers), scorer.score_terms(queries, answers)
    assert set(torch_terms) == set(onnx_terms)
    for name, expected in torch_terms.items():
        np.testing.assert_allclose(onnx_terms[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        scorer.reconstruct(queries).views["masked"], fitted_same.reconstruct(queries).views["masked"], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("provider", [str(provider) for provider in available_providers()])
def test_every_engine_here_gives_terms_that_do_not_depend_on_the_batch(artifact_directory, victim, digits, provider):
    scorer = Scorer(artifact_directory, engine=provider)
    queries = digits.contract.canonicalise(digits.benign[:20])
    answers = victim.answer(queries)
    together = scorer.score_terms(queries, answers)
    for row in range(20):
        alone = scorer.score_terms(queries[row : row + 1], answers[row : row + 1])
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[row], rel=1e-5, abs=1e-8), (provider, name)


def test_a_graph_that_does_not_reproduce_torch_is_never_written(fitted_same: SAME, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "RELATIVE_TOLERANCE", 0.0)
    monkeypatch.setattr(export, "ABSOLUTE_TOLERANCE", 0.0)
    with pytest.raises(ArtifactError, match="must equal torch's at batch"):
        fitted_same.export(tmp_path / "artefact")
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_that_is_there_is_not_overwritten_unasked(fitted_same: SAME, artifact_directory):
    before = (artifact_directory / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match="must be new or empty"):
        fitted_same.export(artifact_directory)
    assert (artifact_directory / "manifest.json").read_bytes() == before


def test_the_artefact_holds_the_documented_files_and_a_full_manifest(artifact_directory):
    artifact = read_artifact(artifact_directory)
    assert set(artifact.files) == {"reconstruction.onnx", "auxiliary.onnx", "weights.safetensors", "benign.npz"}
    manifest = artifact.manifest
    assert manifest["classes"] == 10
    assert manifest["contract"]["shape"] == [1, 8, 8]
    assert manifest["fit"]["agreement"] > 0.9
    assert manifest["auxiliary"] == {"view": "full", "target": "victim_ce", "share": "none", "network": "SmallConv"}
    assert len(artifact.arrays("benign.npz")["digests.train"]) == manifest["fit"]["rows"]
