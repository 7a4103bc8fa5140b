"""Attacks: what tries to rebuild the victim from its answers. One thief a file; each is an object with `run(endpoint, seed)`."""

from sameguard.attacks.active_thief import ActiveThief
from sameguard.attacks.base import Attack, Extraction
from sameguard.attacks.cloud_leak import CloudLeak
from sameguard.attacks.copycat import Copycat
from sameguard.attacks.dfme import DFME
from sameguard.attacks.jbda import JBDA, TargetedJBDA
from sameguard.attacks.knockoff import KnockoffNets
from sameguard.attacks.knockoff_adaptive import AdaptiveKnockoff
from sameguard.attacks.maze import MAZE
from sameguard.attacks.noise import NoiseQueries
from sameguard.attacks.thieves import BenignMix, FilteredKnockoff, ProjectedKnockoff, match_levels

__all__ = [
    "DFME",
    "JBDA",
    "MAZE",
    "ActiveThief",
    "AdaptiveKnockoff",
    "Attack",
    "BenignMix",
    "CloudLeak",
    "Copycat",
    "Extraction",
    "FilteredKnockoff",
    "KnockoffNets",
    "NoiseQueries",
    "ProjectedKnockoff",
    "TargetedJBDA",
    "match_levels",
]
