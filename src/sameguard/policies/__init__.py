"""What happens to a suspicious query."""

from sameguard.policies.base import Action, Allow, Challenge, Coarsen, Policy, Refuse, TooCostly, action_of_batch
from sameguard.policies.coarsen import CoarseAnswers, coarsened, parse_coarsening
from sameguard.policies.ladder import Ladder
from sameguard.policies.levels import CUT_POINTS, BenignLevels, LevelDescription
from sameguard.policies.proof_of_work import PUZZLES, Pricing, ProofOfWork, Puzzle
from sameguard.policies.reject import Reject

__all__ = [
    "CUT_POINTS",
    "PUZZLES",
    "Action",
    "Allow",
    "BenignLevels",
    "Challenge",
    "CoarseAnswers",
    "Coarsen",
    "Ladder",
    "LevelDescription",
    "Policy",
    "Pricing",
    "ProofOfWork",
    "Puzzle",
    "Refuse",
    "Reject",
    "TooCostly",
    "action_of_batch",
    "coarsened",
    "parse_coarsening",
]
