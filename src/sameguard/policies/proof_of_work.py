"""Proof of work: what is suspicious must be paid for, and the more suspicious it is the more it costs (the paper's second defence).

A challenge of mean work W is solved after a number of tries drawn uniformly from [1, 2W]; a try is one run of a key derivation function.
The work multiplies from level to level, up to a cap on the longest honest solve. How challenges are signed and proofs checked is
`server.proofs`; which function is the default is decided by `benchmarks/bench_proofs.py`.
"""

import math
from dataclasses import dataclass

from sameguard.calibration import Calibration
from sameguard.errors import ConfigurationError
from sameguard.policies.base import Action, Allow, Challenge, Refuse
from sameguard.policies.levels import CUT_POINTS, BenignLevels, LevelDescription
from sameguard.shapes import Labels, Scores

ALGORITHMS = ("PBKDF2/SHA-256", "SCRYPT", "ARGON2ID")


@dataclass(frozen=True)
class Puzzle:
    """The key derivation of one try, in altcha's terms.

    cost: iterations (PBKDF2), N (SCRYPT), passes (ARGON2ID). memory_cost: block size r (SCRYPT), KiB (ARGON2ID). seconds_per_try: of an
    honest client on one core.
    """

    algorithm: str
    cost: int
    memory_cost: int | None = None
    parallelism: int | None = None
    seconds_per_try: float = 0.01

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigurationError(f"puzzle algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}.")
        if self.cost < 1 or not 0.0 < self.seconds_per_try < math.inf:
            raise ConfigurationError(f"puzzle cost and seconds_per_try must be above 0, got {self.cost} and {self.seconds_per_try}.")


PUZZLES = {  # seconds_per_try: rounded up from results/benchmarks/proofs.json, for cores that are slower
    "argon2id": Puzzle("ARGON2ID", cost=1, memory_cost=16 * 1024, parallelism=1, seconds_per_try=0.01),
    "scrypt": Puzzle("SCRYPT", cost=16 * 1024, memory_cost=8, parallelism=1, seconds_per_try=0.05),
    "pbkdf2": Puzzle("PBKDF2/SHA-256", cost=1000, seconds_per_try=0.0003),
}


@dataclass(frozen=True)
class Pricing:
    """What a level costs: W = first_work * factor^level tries on average, twice that at worst.

    first_work: what level 0 would cost, were it charged; None lets the last level take `worst_seconds`. worst_seconds: longest honest
    solve on one core, which no request's summed price passes either.
    """

    puzzle: Puzzle = PUZZLES["argon2id"]
    first_work: float | None = None
    factor: float = 4.0
    worst_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.factor > 1.0 or (self.first_work is not None and not self.first_work > 0.0):
            raise ConfigurationError(f"factor must be above 1 and first_work above 0, got {self.factor} and {self.first_work}.")
        if self.largest_work < 1:
            raise ConfigurationError(
                f"worst_seconds must leave room for two tries of {self.puzzle.seconds_per_try:g} s, got {self.worst_seconds:g}."
            )

    @property
    def largest_work(self) -> int:
        """Mean tries that one request may cost."""
        return int(self.worst_seconds / (2.0 * self.puzzle.seconds_per_try))

    def works(self, levels: int) -> tuple[int, ...]:
        """Mean tries of levels 1 to `levels`. Raises ConfigurationError where the last one's worst solve passes the cap."""
        first = self.largest_work / self.factor**levels if self.first_work is None else self.first_work
        works = tuple(max(1, math.floor(first * self.factor**level + 1e-9)) for level in range(1, levels + 1))
        if works[-1] > self.largest_work:
            raise ConfigurationError(
                f"level {levels} must be solved within {self.worst_seconds:g} s on one core at worst, got {self.worst_seconds_of(works[-1]):.3g} s "
                f"for {works[-1]} tries on average: lower first_work, factor or the number of cut points."
            )
        return works

    def challenges(self, levels: int) -> tuple[Challenge, ...]:
        """The challenges of levels 1 to `levels`."""
        return tuple(Challenge(level, work) for level, work in enumerate(self.works(levels), start=1))

    def expected_seconds_of(self, work: int) -> float:
        return work * self.puzzle.seconds_per_try

    def worst_seconds_of(self, work: int) -> float:
        return 2 * work * self.puzzle.seconds_per_try


class ProofOfWork:
    """Allow ordinary traffic, charge the rest by its level. A score that is no number, or infinite, has no price: it is refused.

    Raises ConfigurationError for settings that contradict each other, CalibrationError where the calibration is too small.
    """

    def __init__(self, calibration: Calibration, *, cut_points: tuple[float, ...] = CUT_POINTS, pricing: Pricing | None = None) -> None:
        self.pricing = pricing or Pricing()
        self.benign_levels = BenignLevels(calibration, cut_points)
        self.actions: tuple[Action, ...] = (Allow(), *self.pricing.challenges(len(self.benign_levels)))

    @property
    def largest_work(self) -> int:
        return self.pricing.largest_work

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]:
        return actions_at(self.benign_levels.stage_a_levels(stage_a_scores), stage_a_scores, self.actions)

    def decide(self, scores: Scores) -> list[Action]:
        return actions_at(self.benign_levels.levels(scores), scores, self.actions)

    def describe(self) -> list[LevelDescription]:
        """The levels that are charged, mildest first."""
        return describe_levels(self.benign_levels, self.actions, self.pricing)


def actions_at(levels: Labels, scores: Scores, actions: tuple[Action, ...]) -> list[Action]:
    """The action of each row's level; Refuse where the score is NaN or infinite, whatever the last level is."""
    return [actions[level] if score < math.inf else Refuse() for level, score in zip(levels, scores, strict=True)]


def describe_levels(benign_levels: BenignLevels, actions: tuple[Action, ...], pricing: Pricing) -> list[LevelDescription]:
    """One line for each level from 1 on, mildest first."""
    lines = []
    for level, (threshold, action) in enumerate(zip(benign_levels.thresholds, actions[1:], strict=True), start=1):
        paid: tuple[int, float, float] | tuple[()] = ()
        if isinstance(action, Challenge):
            paid = (action.work, pricing.expected_seconds_of(action.work), pricing.worst_seconds_of(action.work))
        lines.append(LevelDescription(level, threshold.false_positive_rate, threshold.interval, type(action).__name__.lower(), *paid))
    return lines
