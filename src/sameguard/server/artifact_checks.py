"""What no checksum tells of an artefact: that its calibration holds numbers that belong together, and that its networks score.

A checksum is right over whatever was written. Here everything that thresholds, policies, metrics and pages will read is looked at once,
before the artefact guards anything, and its own canary queries go through both stages as a client's would.
"""

import math

import numpy as np

from sameguard.calibration import Threshold
from sameguard.errors import ArtifactError
from sameguard.runtime import Scorer
from sameguard.server.scoring import StageA, StageB, run_jobs


def check_artifact(scorer: Scorer) -> Threshold:
    """The artefact's own threshold, where a guard can work with the rest as well; blocking, a second or two with large networks.

    Raises ArtifactError; contents of a type that is none of ours may raise anything else.
    """
    calibration = scorer.calibration
    if calibration is None:
        raise ArtifactError(
            f"artefact {scorer.directory} must be calibrated before it can serve, got none: sameguard calibrate {scorer.directory}."
        )
    queries, canaries = len(calibration.scores), len(calibration.canary_queries)
    early = queries if len(calibration.stage_a_scores) else 0
    wanted = {
        "scores": (calibration.scores, (max(queries, 1),)),
        "stage_a_scores": (calibration.stage_a_scores, (early,)),
        "statistics_stage_a": (calibration.statistics_stage_a, (len(calibration.statistics_stage_a),)),
        "canary_queries": (calibration.canary_queries, (canaries, *scorer.contract.shape)),
        "canary_probs": (calibration.canary_probs, (canaries, scorer.classes)),
    }
    for name, (found, shape) in wanted.items():
        if found.shape != shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise ArtifactError(
                f"artefact {scorer.directory} must hold finite {name} of shape {shape}, got {found.dtype} of shape {found.shape}"
                f"{_unless_finite(found)}: calibrate it again."
            )
    threshold = scorer.threshold()
    numbers = (threshold.value, threshold.stage_a, threshold.false_positive_rate, *threshold.interval)
    if len(numbers) != 5 or any(not isinstance(number, int | float) or math.isnan(number) for number in numbers):
        raise ArtifactError(f"artefact {scorer.directory} must hold a threshold in numbers, got another: calibrate it again.")
    if canaries:
        _check_scoring(scorer)
    return threshold


def in_a_line(error: Exception) -> str:
    """Engines break their texts into lines; an answer and a log have one."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _unless_finite(found: np.ndarray) -> str:
    return "" if found.dtype.kind not in "f" or np.isfinite(found).all() else f" with {int((~np.isfinite(found)).sum())} that are not"


def _check_scoring(scorer: Scorer) -> None:
    calibration = scorer.calibration
    try:
        early = run_jobs(scorer, [StageA(calibration.canary_queries)])[0]
        whole = run_jobs(scorer, [StageB(early.reconstruction, calibration.canary_probs)])[0]
    except Exception as error:  # whatever engine and arithmetic raise over parts that do not fit
        raise ArtifactError(
            f"artefact {scorer.directory} must score the canary queries of its own calibration, got {in_a_line(error)}: fit it again."
        ) from error
    for scores in (early.scores, whole.scores):
        if scores is not None and not np.isfinite(scores).all():
            raise ArtifactError(
                f"artefact {scorer.directory} must score the canary queries of its own calibration, got {int((~np.isfinite(scores)).sum())} "
                f"of {len(scores)} scores that are no number: calibrate it again."
            )
