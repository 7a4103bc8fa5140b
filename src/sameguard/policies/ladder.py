"""A ladder of defences: the smaller the benign p-value, the harder the answer. Allow, coarsen, challenge, refuse."""

from sameguard.calibration import Calibration
from sameguard.errors import ConfigurationError
from sameguard.policies.base import Action, Allow, Coarsen, Refuse
from sameguard.policies.levels import BenignLevels, LevelDescription
from sameguard.policies.proof_of_work import Pricing, actions_at, describe_levels
from sameguard.shapes import Scores


class Ladder:
    """What lies at or below each benign p-value gets that rung's action; leave a rung out with None, or (), and it is passed over.

    coarsen_at: answers are coarsened from here. challenge_at: one or more levels of proof of work. refuse_at: no answer from here on.
    Raises ConfigurationError where a harder rung does not lie below the milder ones, CalibrationError where the calibration is too small.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        coarsen_at: float | None = 0.05,
        challenge_at: tuple[float, ...] = (0.03, 0.02),
        refuse_at: float | None = 0.01,
        coarsening: Coarsen | None = None,
        pricing: Pricing | None = None,
    ) -> None:
        self.pricing = pricing or Pricing()
        rungs: list[tuple[float, Action]] = [(coarsen_at, coarsening or Coarsen())] if coarsen_at is not None else []
        if challenge_at:
            rungs += zip(challenge_at, self.pricing.challenges(len(challenge_at)), strict=True)
        if refuse_at is not None:
            rungs.append((refuse_at, Refuse()))
        if not rungs:
            raise ConfigurationError("a ladder must have at least one rung, got none: give coarsen_at, challenge_at or refuse_at.")
        self.benign_levels = BenignLevels(calibration, tuple(cut_point for cut_point, _ in rungs))
        self.actions: tuple[Action, ...] = (Allow(), *(action for _, action in rungs))

    @property
    def largest_work(self) -> int:
        return self.pricing.largest_work

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]:
        return actions_at(self.benign_levels.stage_a_levels(stage_a_scores), stage_a_scores, self.actions)

    def decide(self, scores: Scores) -> list[Action]:
        return actions_at(self.benign_levels.levels(scores), scores, self.actions)

    def describe(self) -> list[LevelDescription]:
        """The rungs above `allow`, mildest first."""
        return describe_levels(self.benign_levels, self.actions, self.pricing)
