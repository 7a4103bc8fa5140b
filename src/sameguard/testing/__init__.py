"""Contracts shipped for plug-ins: one check for each kind of part. Tests import them, nothing else does."""

from sameguard.testing.attacks import check_attack
from sameguard.testing.detectors import check_detector

__all__ = ["check_attack", "check_detector"]
