"""Attacks: what tries to rebuild the victim from its answers."""

from sameguard.attacks.base import Attack, Extraction
from sameguard.attacks.knockoff import KnockoffNets

__all__ = ["Attack", "Extraction", "KnockoffNets"]
