"""Detectors: what scores queries."""

from sameguard.detectors.presets import AuxiliaryConfig, default_auxiliary, preset
from sameguard.detectors.same import SAME

__all__ = ["SAME", "AuxiliaryConfig", "default_auxiliary", "preset"]
