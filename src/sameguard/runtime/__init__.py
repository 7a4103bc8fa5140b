"""Scoring without torch."""

from sameguard.runtime.engines import Provider, available_providers
from sameguard.runtime.scorer import Scorer, choose_engine

__all__ = ["Provider", "Scorer", "available_providers", "choose_engine"]
