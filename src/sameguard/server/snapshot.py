"""What one artefact decides, as one immutable value: a reload swaps it whole, and a request keeps the one that it began with."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from functools import cached_property

from sameguard.calibration import Calibration, Threshold
from sameguard.errors import ArtifactError, ConfigurationError, SameguardError
from sameguard.policies import (
    CUT_POINTS,
    PUZZLES,
    CoarseAnswers,
    Ladder,
    LevelDescription,
    Policy,
    Pricing,
    ProofOfWork,
    Reject,
    parse_coarsening,
)
from sameguard.protocol import DIALECTS, Dialect, Limits, ModelContract, PlainJsonPaths
from sameguard.runtime import Scorer
from sameguard.server.artifact_checks import check_artifact, in_a_line
from sameguard.server.scoring import Backend, LocalBackend, ScoringQueue
from sameguard.server.settings import PolicySettings, ProofSettings, Settings


@dataclass(frozen=True, eq=False)
class Snapshot:
    """artifact_digest: SHA-256 of the manifest, which names every other file by its own. threshold: the artefact's own, whatever the policy.

    largest_work: mean tries of one request, or None.
    """

    artifact_digest: str
    scorer: Scorer
    calibration: Calibration
    threshold: Threshold
    policy: Policy
    queue: ScoringQueue
    dialect: Dialect
    loaded_at: float = field(default_factory=time.time)

    @property
    def model(self) -> ModelContract:
        return self.dialect.model

    @property
    def largest_work(self) -> int | None:
        return getattr(self.policy, "largest_work", None)

    def speaking_binary(self, binary_tensors: bool) -> "Snapshot":
        """The same before a model server that takes binary tensors, or does not; both share one queue."""
        return replace(self, dialect=type(self.dialect)(replace(self.model, binary_tensors=binary_tensors)))

    @cached_property
    def prices(self) -> str:
        """A name for what the policy does and charges, the same in every instance with the same settings and artefact."""
        return hashlib.sha256("\n".join(policy_lines(self.policy)).encode()).hexdigest()[:16]


def load_snapshot(settings: Settings, *, binary_tensors: bool) -> Snapshot:
    """Reads, verifies, opens and tries the artefact; blocking. binary_tensors: the model server speaks the binary extension.

    Raises ArtifactError for a damaged, foreign, uncalibrated or other artefact than `artifact_digest` says, or one that cannot score;
    ConfigurationError and CalibrationError where the policy does not fit it.
    """
    chosen = settings.scorer
    try:
        scorer = Scorer(settings.artifact, engine=chosen.engine, threads=chosen.threads)
        digest = str(scorer.manifest["sha256"])
        if settings.artifact_digest is not None and digest != settings.artifact_digest:
            raise ArtifactError(
                f"artefact {settings.artifact} must have digest {settings.artifact_digest} (artifact_digest), got {digest}: it is another artefact."
            )
        threshold = check_artifact(scorer)
        policy = make_policy(settings.policy, settings.proofs, scorer)
        dialect = DIALECTS[settings.upstream.dialect](model_contract(settings, scorer, binary_tensors))
    except SameguardError:
        raise
    except Exception as error:  # its manifest and arrays may hold anything: what is not as it should be shows where it is read
        raise ArtifactError(
            f"artefact {settings.artifact} must hold what `sameguard fit` and `calibrate` write, got {in_a_line(error)}: fit it again."
        ) from error
    queue = ScoringQueue(
        _backend(settings, scorer),
        batch_rows=chosen.batch_rows,
        waiting_rows=max(chosen.waiting_rows, settings.listen.max_rows),
        deadline_seconds=chosen.deadline_seconds,
    )
    return Snapshot(digest, scorer, scorer.calibration, threshold, policy, queue, dialect)


def make_policy(chosen: PolicySettings, proofs: ProofSettings, scorer: Scorer) -> Policy:
    """The policy that the settings name, on this artefact's calibration."""
    if chosen.kind == "reject":
        return Reject(scorer.threshold(chosen.rate))
    if chosen.kind == "coarsen":
        return CoarseAnswers(scorer.threshold(chosen.rate), parse_coarsening(chosen.coarsening))
    pricing = Pricing(PUZZLES[proofs.puzzle], factor=proofs.factor, worst_seconds=proofs.worst_seconds)
    if chosen.kind == "proof-of-work":
        return ProofOfWork(scorer.calibration, cut_points=chosen.cut_points or CUT_POINTS, pricing=pricing)
    return Ladder(
        scorer.calibration,
        coarsen_at=chosen.coarsen_at,
        challenge_at=chosen.challenge_at,
        refuse_at=chosen.refuse_at,
        coarsening=parse_coarsening(chosen.coarsening),
        pricing=pricing,
    )


def model_contract(settings: Settings, scorer: Scorer, binary_tensors: bool) -> ModelContract:
    """The frame in which every message is read."""
    upstream, paths = settings.upstream, settings.upstream.plain_json
    kind = upstream.output_kind or scorer.manifest.get("victim", {}).get("output", "probs")
    if scorer.label_only and kind != "labels":
        raise ConfigurationError(
            f"upstream.output_kind must be labels, as the artefact was fitted on a victim that gives nothing else, got {kind!r}: leave it out."
        )
    return ModelContract(
        upstream.model,
        scorer.contract,
        scorer.classes,
        output=upstream.output,
        output_kind=kind,
        version=upstream.version,
        label=upstream.label,
        outputs=upstream.outputs,
        parameters=upstream.parameters,
        max_rows=settings.listen.max_rows,
        binary_tensors=binary_tensors,
        limits=Limits(settings.listen.body_bytes, settings.listen.inflate_ratio, upstream.response_bytes),
        plain_json=PlainJsonPaths(paths.infer, paths.health, paths.tensor, paths.probs, paths.batched),
    )


def policy_lines(policy: Policy) -> list[str]:
    """What the policy does, one line a level, for operators."""
    if isinstance(policy, Reject | CoarseAnswers):
        verb = "refused" if isinstance(policy, Reject) else f"coarsened ({_decimals(policy)})"
        return [f"{verb}: {policy.threshold}"]
    return [_level_line(level) for level in policy.describe()]


def _decimals(policy: CoarseAnswers) -> str:
    return "top class" if policy.coarsening.decimals is None else f"{policy.coarsening.decimals} decimals"


def _level_line(level: LevelDescription) -> str:
    low, high = level.interval
    line = f"level {level.level}: {level.action}, at most {level.benign_share:.2%} of benign queries (realised {low:.2%} to {high:.2%})"
    if level.work is None:
        return line
    return f"{line}; {level.work} tries on average, {level.expected_seconds:.2g} s expected and {level.worst_seconds:.2g} s at worst on one core"


def _backend(settings: Settings, scorer: Scorer) -> Backend:
    if settings.scorer.replicas == 0:
        return LocalBackend(scorer)
    from sameguard.server.ray_backend import RayBackend

    chosen = settings.scorer
    return RayBackend(
        settings.artifact, engine=chosen.engine, threads=chosen.threads, replicas=chosen.replicas, timeout_seconds=chosen.timeout_seconds
    )
