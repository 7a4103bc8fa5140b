"""The scorer that serves: the artefact's ONNX graphs on a fast engine, without torch.

It shares the two-stage code with the torch detector, so both compute the same terms; thresholds belong to the engine and precision that
they were calibrated on, and a scorer on another one refuses to apply them.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sameguard.artifact import Artifact, read_artifact, update_artifact
from sameguard.calibration import Calibration, Threshold
from sameguard.contract import InputContract
from sameguard.errors import ArtifactError, NotFittedError
from sameguard.runtime.engines import REFERENCE, Provider, available_providers, open_graph, parse_provider, require
from sameguard.scoring.combination import ScoreConfig, combination_for
from sameguard.scoring.texture import Terms
from sameguard.scoring.two_stage import TwoStageScorer
from sameguard.shapes import Queries, Scores
from sameguard.victim import BlackBox

SERVED_FILES = ("reconstruction.onnx", "auxiliary.onnx", "benign.npz")
RANK_CORRELATION_FLOOR, FLAG_AGREEMENT_FLOOR = 0.999, 0.998
ERROR_TOLERANCE = 0.1  # largest relative error of any reconstruction error: bf16 stays below, a miscompiled graph does not
PADDED_BATCHES = (1, 8, 64)  # OpenVINO compiles a plan for every batch size that it meets: these are enough


class Scorer(TwoStageScorer):
    """Raw terms and scores from an artefact.

    engine: auto (what the artefact was calibrated on, else onnxruntime), onnxruntime, openvino, openvino-bf16. for_calibration: another
    engine than the calibrated one is allowed, and the calibration that is there is not read.

    Raises ArtifactError for a damaged or foreign artefact, or one bound to another engine.
    """

    def __init__(self, directory: str | Path, *, engine: str = "auto", threads: int | None = None, for_calibration: bool = False) -> None:
        artifact = read_artifact(directory, names=SERVED_FILES)
        manifest = artifact.manifest
        try:
            contract = InputContract.from_json(manifest["contract"])
            config = ScoreConfig.from_json(manifest["score"])
            super().__init__(contract, int(manifest["classes"]), config, manifest["auxiliary"]["view"])
            self.label_only = manifest.get("victim", {}).get("output") == "labels"
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"artefact {directory} must have a manifest of this schema, got {type(error).__name__}: {error}") from error
        self.directory = Path(directory)
        self.manifest = manifest
        self.calibration: Calibration | None = None
        self.provider = self._choose_provider(engine, for_calibration)
        require(self.provider)
        self._artifact = artifact
        self._threads = threads
        self._open(self.provider)
        self.train_digests = np.empty(0, np.uint64)
        if "benign.npz" in artifact.files:
            self._read_benign(artifact, for_calibration)

    @property
    def thresholds(self) -> list[Threshold]:
        """The thresholds stored with this artefact, the first is the default."""
        return [Threshold.from_json(stored) for stored in self.manifest.get("thresholds", [])]

    def threshold(self, false_positive_rate: float | None = None) -> Threshold:
        """The stored threshold, or one at another rate from the stored calibration scores.

        Raises NotFittedError before calibration, CalibrationError where the stored scores cannot support the rate.
        """
        if self.calibration is None:
            raise NotFittedError(f"artefact {self.directory} must be calibrated first, got none: sameguard calibrate {self.directory}.")
        if false_positive_rate is None:
            stored = self.thresholds
            return stored[0] if stored else self.calibration.threshold(0.05)
        return self.calibration.threshold(false_positive_rate)

    def save(self, threshold: Threshold) -> None:
        """Stores calibration and threshold in the artefact, bound to this engine and precision; atomic.

        Raises NotFittedError before calibrate(), ArtifactError where the disk refuses.
        """
        if self.calibration is None or self.combination is None:
            raise NotFittedError("save needs a calibrated scorer, got none: run calibrate(scorer, ...) first.")
        calibration = self.calibration
        self.manifest = {
            **self.manifest,
            "provider": {"engine": self.provider.engine, "precision": self.provider.precision, "version": _version(self.provider.engine)},
            "thresholds": [threshold.to_json()],
            "agreement": calibration.agreement,
            "calibrated_on_training_data": calibration.biased,
            "roles": {"train": len(self.train_digests), **{role: len(keys) for role, keys in calibration.digests.items()}},
        }
        arrays = {f"combination.{name}": value for name, value in self.combination.state().items()}
        arrays |= {f"digests.{role}": keys for role, keys in calibration.digests.items()}
        arrays |= {
            "digests.train": self.train_digests,
            "scores": calibration.scores,
            "stage_a_scores": calibration.stage_a_scores,
            "statistics_stage_a": calibration.statistics_stage_a,
            "canary_queries": calibration.canary_queries,
            "canary_probs": calibration.canary_probs,
        }
        update_artifact(self.directory, self.manifest, arrays)
        self.manifest = json.loads((self.directory / "manifest.json").read_text(encoding="utf-8"))

    # ------------------------------------------------------------------ the network passes

    def _reconstruct(self, queries: Queries) -> tuple[dict[str, np.ndarray], Terms]:
        found = self._padded(self._reconstruction, queries)
        views = {name.removeprefix("reconstruction_"): images for name, images in found.items() if name.startswith("reconstruction_")}
        return views, {name: values for name, values in found.items() if name.startswith("error_")}

    def _auxiliary_logits(self, images: Queries) -> np.ndarray:
        return self._padded(self._auxiliary, images)["logits"]

    def _padded(self, run: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
        if self.provider.engine != "openvino":
            return run(batch)
        rows = len(batch)
        size = next((size for size in PADDED_BATCHES if size >= rows), rows)
        padded = batch if size == rows else np.concatenate([batch, np.repeat(batch[-1:], size - rows, axis=0)])
        return {name: values[:rows] for name, values in run(padded).items()}

    def _open(self, provider: Provider) -> None:
        self.provider = provider
        names = [f"{kind}_{view}" for view in self.manifest["views"] for kind in ("reconstruction", "error")]
        self._reconstruction = open_graph(self._artifact.files["reconstruction.onnx"], provider, names, self._threads)
        self._auxiliary = open_graph(self._artifact.files["auxiliary.onnx"], provider, ["logits"], self._threads)

    # ------------------------------------------------------------------ what the artefact says

    def _choose_provider(self, engine: str, for_calibration: bool) -> Provider:
        stored = self.manifest.get("provider")
        bound = Provider(stored["engine"], stored["precision"]) if stored else None
        if engine == "auto":
            return REFERENCE if for_calibration or bound is None else bound
        chosen = parse_provider(engine)
        if bound is not None and chosen != bound and not for_calibration:
            raise ArtifactError(
                f"artefact {self.directory} was calibrated on {bound}, got {chosen}: its thresholds mean nothing there. "
                f"Calibrate again: sameguard calibrate {self.directory} --engine {chosen}."
            )
        return chosen

    def _read_benign(self, artifact: Artifact, for_calibration: bool) -> None:
        arrays = artifact.arrays("benign.npz")
        self.train_digests = arrays.get("digests.train", self.train_digests)
        if for_calibration or "scores" not in arrays:
            return
        state = {name.removeprefix("combination."): value for name, value in arrays.items() if name.startswith("combination.")}
        self.combination = combination_for(self.score_config).restore(state)
        self.calibration = Calibration(
            scores=arrays["scores"],
            stage_a_scores=arrays["stage_a_scores"],
            statistics_stage_a=arrays["statistics_stage_a"],
            digests={role: arrays[f"digests.{role}"] for role in ("statistics", "calibration")},
            agreement=float(artifact.manifest["agreement"]),
            biased=bool(artifact.manifest["calibrated_on_training_data"]),
            canary_queries=arrays["canary_queries"],
            canary_probs=arrays["canary_probs"],
        )


# ---------------------------------------------------------------------- choosing an engine


def choose_engine(scorer: Scorer, benign: np.ndarray, victim: BlackBox, *, limit: int = 1000) -> dict[str, dict[str, float]]:
    """Switches `scorer` to the fastest engine here whose benign scores rank and flag like the reference's; returns what was measured.

    Needs benign data only. For each provider: ms_per_query (batches of 8), rank_correlation and flag_agreement at 5 % with the
    reference, largest_error of a reconstruction error relative to it; eligible above 0.999, from 99.8 % and up to 10 %.
    """
    queries = scorer.contract.canonicalise(benign[:limit])
    answers = victim.answer(queries)
    found: dict[str, dict[str, float]] = {}
    reference: Scores | None = None
    exact: Terms = {}
    best, best_time = REFERENCE, np.inf
    for provider in available_providers():
        scorer._open(provider)
        terms = scorer.score_terms(queries, answers)
        if reference is None:
            scorer.fit_combination(terms)
            exact = terms
        scores = scorer.combination.score(terms)
        reference = scores if reference is None else reference
        milliseconds = _milliseconds(scorer, queries[:8], answers[:8])
        correlation, agreement = _rank_correlation(reference, scores), _flag_agreement(reference, scores)
        worst = max(float(np.max(np.abs(terms[name] - exact[name]) / exact[name])) for name in exact if name.startswith("error_"))
        found[str(provider)] = {
            "ms_per_query": milliseconds,
            "rank_correlation": correlation,
            "flag_agreement": agreement,
            "largest_error": worst,
        }
        agrees = correlation > RANK_CORRELATION_FLOOR and agreement >= FLAG_AGREEMENT_FLOOR and worst <= ERROR_TOLERANCE
        if agrees and milliseconds < best_time:
            best, best_time = provider, milliseconds
    scorer._open(best)
    scorer.combination = None
    return found


def _milliseconds(scorer: Scorer, queries: np.ndarray, answers: np.ndarray) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        scorer.score_terms(queries, answers)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]) * 1000 / len(queries))


def _rank_correlation(first: Scores, second: Scores) -> float:
    ranks = [np.argsort(np.argsort(scores)).astype(np.float64) for scores in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _flag_agreement(first: Scores, second: Scores) -> float:
    return float(np.mean((first > np.quantile(first, 0.95)) == (second > np.quantile(second, 0.95))))


def _version(engine: str) -> str:
    from importlib.metadata import version

    return version(engine)
